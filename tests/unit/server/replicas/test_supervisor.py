"""Replicas that end at awkward moments: real processes, of a shell."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest
from igd_server.http.turns import Board
from igd_server.replicas.changes import Changes
from igd_server.replicas.replica import Ended, Replica, Start
from igd_server.replicas.supervisor import Supervisor
from igd_server.settings import read_settings
from patience import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SERVES = "read orders; echo ready >&0;"
STAYS = "read nothing; exit 0"  # until the socket to the supervisor ends, so that none outlives a test that fails
IMPORTS = f"exec sleep {PATIENCE_S}"


@pytest.fixture
def start_of(tmp_path: Path) -> Iterator[Callable[[str], Start]]:
    """What starts replicas that run a script, in an empty folder."""
    settings = read_settings(
        {}, artifact="films", model="m", operations_port=0, store="file:///s", replicas=2, replica_silence_s=0
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield lambda script: Start(
            settings=settings,
            listener=listener,
            folder=tmp_path,
            program=("/bin/sh", "-c", f"cd '{tmp_path}'; {script}"),
        )


def running(supervisor: Supervisor) -> asyncio.Task[int]:
    return asyncio.create_task(supervisor.run(socket.create_server(("127.0.0.1", 0))))


async def eventually(true: Callable[[], object], run: asyncio.Task[int]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert not run.done(), run
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def ended(run: asyncio.Task[int]) -> int:
    return await asyncio.wait_for(run, PATIENCE_S)


@pytest.mark.parametrize(("script", "code"), [("exit 7", 7), ("sleep 0.1; exit 7", 7), ("kill -9 $$", -9)])
async def test_a_process_that_ends_with_its_orders_unread_has_ended(
    start_of: Callable[[str], Start], script: str, code: int
) -> None:
    start = start_of(script)
    replica = Replica(1, start, Changes(), Board(start.board_path, places=2))
    for _ in range(3):
        assert await replica.live() == Ended(code=code)
    assert not replica.runs


async def test_a_first_replica_that_ends_with_its_orders_unread_ends_the_server(
    start_of: Callable[[str], Start],
) -> None:
    assert await ended(running(Supervisor(start_of("exit 7")))) == 7


async def test_a_replica_that_ends_with_its_orders_unread_is_started_again(start_of: Callable[[str], Start]) -> None:
    # The second process to start is the second replica's first.
    second = f"if mkdir first || ! mkdir second; then {SERVES} {STAYS}; fi; exit 7"
    supervisor = Supervisor(start_of(second))
    run = running(supervisor)
    await eventually(lambda: all(replica.serves for replica in supervisor.replicas), run)
    assert [replica.lives for replica in supervisor.replicas] == [1, 2]
    os.kill(os.getpid(), signal.SIGTERM)
    assert await ended(run) == 0


async def test_a_replica_that_cannot_be_watched_is_started_again(
    start_of: Callable[[str], Start], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    live = Replica.live

    async def failing(self: Replica) -> Ended:
        result = await live(self)
        if self.lives == 1:
            raise RuntimeError("no such luck")
        return result

    monkeypatch.setattr(Replica, "live", failing)
    supervisor = Supervisor(start_of(f"{SERVES} {STAYS}"))
    run = running(supervisor)
    await eventually(lambda: all(replica.serves for replica in supervisor.replicas), run)
    supervisor.replicas[1].stop(signal.SIGTERM)
    await eventually(lambda: supervisor.replicas[1].lives == 2 and supervisor.replicas[1].serves, run)
    told = [record.fields for record in caplog.records if record.msg == "loop_error"]  # type: ignore[attr-defined]
    assert [(fields["detail"], fields["cause"]) for fields in told] == [
        ("replica 2 could not be watched", "RuntimeError")
    ]
    # The first fails as the server stops: the second is waited for none the less.
    os.kill(os.getpid(), signal.SIGTERM)
    assert await ended(run) == 0


async def test_a_stop_while_one_replica_imports_waits_for_what_another_answers(
    start_of: Callable[[str], Start], tmp_path: Path
) -> None:
    drains = "trap 'sleep 0.5; mkdir drained; exit 0' TERM"
    supervisor = Supervisor(start_of(f"if mkdir first; then {drains}; {SERVES} {STAYS}; fi; {IMPORTS}"))
    run = running(supervisor)
    await eventually(lambda: supervisor.replicas[1].runs, run)
    os.kill(os.getpid(), signal.SIGTERM)
    assert await ended(run) == 0
    assert (tmp_path / "drained").exists()


async def test_what_fails_as_the_server_stops_does_not_end_the_wait_for_replicas(
    start_of: Callable[[str], Start],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def failing(_: Supervisor) -> None:
        raise RuntimeError("no such luck")

    monkeypatch.setattr(Supervisor, "_stand_in", failing)
    supervisor = Supervisor(start_of(f"trap 'sleep 0.5; mkdir drained-$$; exit 0' TERM; {SERVES} {STAYS}"))
    run = running(supervisor)
    await eventually(lambda: all(replica.serves for replica in supervisor.replicas), run)
    os.kill(os.getpid(), signal.SIGTERM)
    assert await ended(run) == 0
    assert len(list(tmp_path.glob("drained-*"))) == 2  # noqa: ASYNC240 - a folder of ours
    assert "loop_error" in caplog.messages


async def test_a_signal_reaches_a_process_that_is_being_made_and_not_one_that_comes_later(
    start_of: Callable[[str], Start], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = start_of(f"if mkdir first; then sleep 0.2; exit 7; fi; {IMPORTS}")
    replica = Replica(1, start, Changes(), Board(start.board_path, places=2))
    replica.stop(signal.SIGTERM)
    assert await replica.live() == Ended(code=7)

    create = asyncio.create_subprocess_exec

    async def told_meanwhile(*program: str, **options: Any) -> asyncio.subprocess.Process:
        process = await create(*program, **options)
        replica.stop(signal.SIGTERM)
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", told_meanwhile)
    assert await replica.live() == Ended(code=-signal.SIGTERM)
