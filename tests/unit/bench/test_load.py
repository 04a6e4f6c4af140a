"""The load generator against small servers whose behaviour is known."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pytest
from patience import PATIENCE_S

from igd_core.bench.http_pool import Answer, HttpPool, Target
from igd_core.bench.load import TIMED_OUT, LoadArrays, LoadLimits, closed_loop, open_loop, planned_arrivals
from igd_core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: application/json\r\n\r\n{}"


@dataclass(slots=True)
class KnownServer:
    """Answers one request after the other on each connection, as ``answer`` says."""

    answer: Callable[[int], Awaitable[bytes]]
    port: int = 0
    taken: int = 0
    open: int = 0
    most_open: int = 0
    handlers: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def target(self) -> Target:
        return Target.of(f"http://127.0.0.1:{self.port}")

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.handlers.add(task)
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(length or 0))
                self.taken += 1
                answer = await self.answer(self.taken)
                writer.write(answer)
                await writer.drain()
                if not answer or b"close" in answer:
                    break
        self.open -= 1
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def serving(answer: Callable[[int], Awaitable[bytes]]) -> AsyncIterator[KnownServer]:
    known = KnownServer(answer)
    server = await asyncio.start_server(known.serve, "127.0.0.1", 0)
    known.port = server.sockets[0].getsockname()[1]
    async with server:
        yield known
        for handler in known.handlers:
            handler.cancel()
        await asyncio.gather(*known.handlers)


async def at_once(_: int) -> bytes:
    return OK


class Plain:
    """Asks the same every time; keeps the answers."""

    def __init__(self, target: Target) -> None:
        self.message = target.message("POST", "/x", b"{}")
        self.asked: list[int] = []
        self.answers: dict[int, Answer] = {}

    def request(self, number: int) -> bytes:
        self.asked.append(number)
        return self.message

    def judge(self, number: int, answer: Answer) -> int:
        assert number not in self.answers
        self.answers[number] = answer
        return 0


async def run_open(known: KnownServer, plan: Sequence[float], **limits: float) -> tuple[LoadArrays, Plain]:
    traffic = Plain(known.target)
    bounds = LoadLimits(
        timeout_s=limits.get("timeout_s", 10.0), max_connections=int(limits.get("max_connections", 100))
    )
    return await open_loop(known.target, traffic, np.array(plan), bounds), traffic


async def test_every_planned_request_is_sent_on_time_and_answered_once() -> None:
    plan = planned_arrivals(200, 1.0, even=False, rng=np.random.default_rng(1))
    async with serving(at_once) as known:
        requests, traffic = await run_open(known, plan.tolist())
    assert traffic.asked == list(range(200))
    assert known.taken == len(traffic.answers) == 200
    assert set(requests.status.tolist()) == {200}
    assert (requests.planned == plan).all()
    assert (requests.lag_s >= 0).all()
    assert np.median(requests.lag_s) < 0.25  # a busy machine; sent at the end of the plan it would be 0.5
    assert (requests.latency_s >= requests.service_s).all()
    assert traffic.answers[0].body == b"{}"
    assert traffic.answers[0].content_type == b"application/json"


async def test_a_stall_of_a_second_shows_in_the_p99_though_only_one_request_met_it() -> None:
    """One connection, so the client can have one request under way: a closed loop's view would miss the stall."""

    async def stall_once(taken: int) -> bytes:
        if taken == 50:
            await asyncio.sleep(1.0)
        return OK

    plan = planned_arrivals(100, 3.0, even=True, rng=np.random.default_rng(0))
    async with serving(stall_once) as known:
        requests, _ = await run_open(known, plan.tolist(), max_connections=1)
    assert set(requests.status.tolist()) == {200}
    # Arrivals kept to the plan during the stall: about a hundred waited, each for what was left of the second.
    assert np.percentile(requests.latency_s, 99) > 0.9
    assert np.count_nonzero(requests.latency_s > 0.25) > 60
    # From sending, one request in three hundred was slow: that is the omission.
    assert np.percentile(requests.service_s, 99) < 0.5
    assert np.count_nonzero(requests.service_s > 0.9) == 1


async def test_a_stall_is_seen_with_as_many_connections_as_arrivals_need() -> None:
    stalled = asyncio.Event()

    async def stall(taken: int) -> bytes:
        if taken == 50:
            asyncio.get_running_loop().call_later(1.0, stalled.set)
        if taken >= 50:
            await stalled.wait()
        return OK

    plan = planned_arrivals(100, 2.0, even=True, rng=np.random.default_rng(0))
    async with serving(stall) as known:
        requests, _ = await run_open(known, plan.tolist())
    assert 50 < known.most_open <= 101
    assert np.percentile(requests.latency_s, 99) > 0.9


async def test_a_server_slower_than_the_rate_shows_a_growing_queue() -> None:
    async def slow(_: int) -> bytes:
        await asyncio.sleep(0.02)
        return OK

    plan = planned_arrivals(100, 1.0, even=True, rng=np.random.default_rng(0))
    async with serving(slow) as known:
        requests, _ = await run_open(known, plan.tolist(), max_connections=1)
    # At most 50 a second are answered, so the last of 100 waits for a second.
    assert requests.latency_s[-1] > 0.9
    assert requests.latency_s[-1] > requests.latency_s[50] > requests.latency_s[10]


async def test_answers_that_never_come_are_given_up_on_and_the_run_ends() -> None:
    never = asyncio.Event()

    async def hang(taken: int) -> bytes:
        if taken % 2:
            await never.wait()
        return OK

    async with serving(hang) as known, asyncio.timeout(PATIENCE_S):
        requests, _ = await run_open(known, [0.0, 0.01, 0.02, 0.03, 0.04, 0.05], timeout_s=0.3, max_connections=2)
        never.set()
    given_up = requests.status == TIMED_OUT
    assert given_up.any()
    assert (requests.latency_s[given_up] >= 0.3).all()
    assert (requests.status[~given_up] == 200).all()


async def test_a_request_that_is_given_up_on_before_a_connection_is_free_is_never_sent() -> None:
    never = asyncio.Event()

    async def hang(_: int) -> bytes:
        await never.wait()
        return OK

    async with serving(hang) as known:
        requests, _ = await run_open(known, [0.0, 0.0, 0.0], timeout_s=0.2, max_connections=1)
        never.set()
        assert known.taken <= 2
    assert (requests.status == TIMED_OUT).all()
    assert np.isnan(requests.sent).any()


@pytest.mark.parametrize(
    ("answer", "status", "reason"),
    [
        (b"", 0, b"closed before the answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nclose", 0, b"closed before the answer"),
        (b"nonsense, close\r\n\r\n", 0, b"no HTTP"),
        (b"HTTP/1.1 503 X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", 503, b""),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", 200, b"abc"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, 200, b"{}"),
    ],
)
async def test_each_answer_is_what_came_over_the_wire(answer: bytes, status: int, reason: bytes) -> None:
    async def fixed(_: int) -> bytes:
        return answer

    async with serving(fixed) as known:
        requests, traffic = await run_open(known, [0.0, 0.05, 0.1])
    assert requests.status.tolist() == [status] * 3
    assert all(reason in found.body for found in traffic.answers.values())


async def test_a_server_that_is_not_there_fails_every_request_at_once() -> None:
    async with serving(at_once) as known:
        pass
    requests, traffic = await run_open(known, [number / 100 for number in range(20)])
    assert requests.status.tolist() == [0] * 20
    assert all(b"cannot connect" in found.body for found in traffic.answers.values())


async def test_a_closed_loop_keeps_as_many_under_way_as_asked_and_stops_in_time() -> None:
    async def slow(_: int) -> bytes:
        await asyncio.sleep(0.02)
        return OK

    async with serving(slow) as known:
        traffic = Plain(known.target)
        requests = await closed_loop(known.target, traffic, concurrency=5, seconds=0.5, limits=LoadLimits())
    assert known.most_open == 5
    assert len(requests.planned) == known.taken
    assert 10 <= known.taken <= 130  # 5 x 25 without any other cost; once each, and nobody went on, would be 5
    assert set(requests.status.tolist()) == {200}
    assert requests.planned.max() < 0.5


async def test_two_thousand_requests_a_second_are_each_sent_once_over_connections_that_are_used_again() -> None:
    """How long they take is for `tests/bench/hot_path.py`."""
    taken: list[int] = []

    class Fast(asyncio.Protocol):
        transport: asyncio.Transport

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            self.transport = transport
            self.number = len(taken)
            taken.append(0)

        def data_received(self, data: bytes) -> None:
            assert data.count(b"POST ") == 1
            assert data.endswith(b"{}")
            taken[self.number] += 1
            self.transport.write(OK)

    server = await asyncio.get_running_loop().create_server(Fast, "127.0.0.1", 0)
    limits = LoadLimits(timeout_s=60.0)
    async with server:
        target = Target.of(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        plan = planned_arrivals(2000, 1.0, even=False, rng=np.random.default_rng(0))
        requests = await open_loop(target, Plain(target), plan, limits)
    assert set(requests.status.tolist()) == {200}
    assert sum(taken) == len(requests.planned) == 2000
    assert len(taken) <= limits.max_connections


async def test_closing_a_pool_leaves_no_connection_open() -> None:
    never = asyncio.Event()

    async def hang(_: int) -> bytes:
        await never.wait()
        return OK

    async with serving(hang) as known:
        answers: list[int] = []
        pool = HttpPool(
            known.target,
            max_connections=3,
            on_sent=lambda _: None,
            on_answer=lambda number, _: answers.append(number),
        )
        message = known.target.message("GET", "/")
        for number in range(5):
            pool.send(number, message)
        async with asyncio.timeout(PATIENCE_S):
            while known.taken < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await pool.close()
        never.set()
        async with asyncio.timeout(PATIENCE_S):
            while known.open:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert answers == []


def test_poisson_arrivals_have_the_rate_and_the_spread_of_independent_users() -> None:
    arrivals = planned_arrivals(500, 20.0, even=False, rng=np.random.default_rng(3))
    gaps = np.diff(arrivals)
    assert len(arrivals) == 10_000
    assert (gaps >= 0).all()
    assert 0 <= arrivals[0] <= arrivals[-1] < 20
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # of an exponential distribution they are equal
    even = planned_arrivals(10, 2.0, even=True, rng=np.random.default_rng(3))
    assert np.allclose(even, np.arange(20) / 10)


@pytest.mark.parametrize(
    ("url", "host", "port", "base", "loopback"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1", 8000, "", True),
        ("http://localhost/", "localhost", 80, "", True),
        ("http://[::1]:9/", "::1", 9, "", True),
        ("https://recs.example/v/1/", "recs.example", 443, "/v/1", False),
        ("http://10.0.0.1", "10.0.0.1", 80, "", False),
    ],
)
def test_urls_name_a_host_a_port_and_a_path(url: str, host: str, port: int, base: str, loopback: bool) -> None:
    target = Target.of(url)
    assert (target.host, target.port, target.base, target.is_loopback) == (host, port, base, loopback)


@pytest.mark.parametrize(
    "url", ["", "recs.example", "ftp://x", "http://", "http://x:abc", "http://x:70000", "http://u:p@x", "http://x/?a=b"]
)
def test_anything_else_is_refused(url: str) -> None:
    with pytest.raises(InputError, match=r"^url: "):
        Target.of(url)


def test_a_message_is_one_request_of_http() -> None:
    target = Target.of("http://[::1]:8000/base/")
    message = target.message("POST", "/v1/x", json.dumps({"é": 1}).encode(), key="igd_1_2")
    head, _, body = message.partition(b"\r\n\r\n")
    assert head.split(b"\r\n")[0] == b"POST /base/v1/x HTTP/1.1"
    assert b"Host: [::1]:8000" in head
    assert b"Authorization: Bearer igd_1_2" in head
    assert f"Content-Length: {len(body)}".encode() in head
    assert b"Content-Length" not in target.message("GET", "/")
