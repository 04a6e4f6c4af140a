from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from igd_server.api.problems import Refused, finding_of
from igd_server.http.access import Access, AccessMiddleware, weigh
from igd_server.http.context import ContextMiddleware, context_of, refusal
from igd_server.http.keys import SCOPES, KeyFile, NewKey, make_key, write_keys
from igd_server.http.limits import RateLimiter
from igd_server.observe.metrics import Metrics

from igd_core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from igd_server.http.keys import Scope
    from starlette.types import Message, Receive, Send
    from starlette.types import Scope as Connection

    Headers = Sequence[tuple[bytes, bytes]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def key(path: Path) -> NewKey:
    """A key with the scope ``recommend``, in ``path``."""
    return add(path, "recommend")


@pytest.fixture
def access(path: Path, key: NewKey) -> Access:  # noqa: ARG001 - the file must be there
    return Access.from_file(path, look_again_s=0.0)


def add(path: Path, *scopes: Scope, expires_at: datetime | None = None) -> NewKey:
    new = make_key("test", frozenset(scopes), expires_at)
    keys = KeyFile.model_validate_json(path.read_bytes()) if path.exists() else KeyFile()
    write_keys(path, keys.with_key(new.stored))
    return new


def bearer(key: NewKey | str | bytes) -> Headers:
    token = key.token if isinstance(key, NewKey) else key
    return [(b"authorization", b"Bearer " + (token if isinstance(token, bytes) else token.encode()))]


class Exchange:
    """What a request brought about."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.reached_the_app = False
        self.body_was_read = False
        self.facts: dict[str, Any] = {}

    @property
    def problem(self) -> dict[str, Any]:
        read: dict[str, Any] = json.loads(self.body)
        return read


class Server:
    """The middleware between the real outermost one and an app that takes everything.

    ``counts``: as how many requests a recommendation counts; None if its body is nothing that could be weighed.
    """

    counts: int | None = 1
    before_the_body: Callable[[], Awaitable[object]] | None = None

    def __init__(self, access: Access, limiter: RateLimiter | None = None, *, metrics_are_open: bool = False) -> None:
        self.metrics = Metrics()
        guarded = AccessMiddleware(
            self._app, access=access, limiter=limiter, metrics=self.metrics, metrics_are_open=metrics_are_open
        )
        self._stack = ContextMiddleware(guarded, metrics=self.metrics)

    async def _app(self, scope: Connection, receive: Receive, send: Send) -> None:
        scope["test.exchange"].reached_the_app = True
        if self.before_the_body is not None:
            await self.before_the_body()
        while (await receive()).get("more_body", False):
            pass
        if self.counts is not None and scope["path"] == "/v1/recommendations":
            try:
                await weigh(scope, self.counts)
            except Refused as error:
                found = finding_of(error)
                await refusal(scope, found.kind, found.detail, headers=found.headers)(scope, receive, send)
                return
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async def ask(
        self, path: str = "/v1/recommendations", headers: Headers = (), *, client: tuple[str, int] | None = None
    ) -> Exchange:
        exchange = Exchange()
        scope: Connection = {
            "type": "http",
            "method": "POST",
            "path": path,
            "headers": list(headers),
            "client": client or ("192.0.2.1", 1234),
            "test.exchange": exchange,
        }

        async def receive() -> Message:
            exchange.body_was_read = True
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                exchange.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            else:
                exchange.body += message.get("body", b"")

        await self._stack(scope, receive, send)
        exchange.facts = context_of(scope).facts
        return exchange

    def rejected(self, reason: str) -> float:
        lines = self.metrics.render("")[0].decode().splitlines()
        begins = f'igd_rejected_requests_total{{reason="{reason}"}} '
        return next((float(line.removeprefix(begins)) for line in lines if line.startswith(begins)), 0.0)


# --- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form", ["Authorization: Bearer {}", "authorization: bearer {}", "Authorization: BEARER   {} ", "X-API-Key: {}"]
)
async def test_a_good_key_is_let_in_and_named_in_the_log(access: Access, key: NewKey, form: str) -> None:
    name, _, value = form.format(key.token).partition(": ")
    server = Server(access)
    answer = await server.ask(headers=[(b"accept", b"*/*"), (name.lower().encode(), value.encode())])
    assert (answer.status, answer.facts["key"]) == (204, key.stored.id)
    assert server.rejected("key") == 0


def hostile_headers(key: NewKey) -> dict[str, Headers]:
    token = key.token.encode()
    upper, other = key.token.upper().encode(), make_key("other", frozenset(SCOPES), None).token.encode()
    return {
        "none": [],
        "empty": bearer(b""),
        "scheme alone": [(b"authorization", b"Bearer")],
        "no scheme": [(b"authorization", token)],
        "basic": [(b"authorization", b"Basic " + token)],
        "digest": [(b"authorization", b"Digest " + token)],
        "two schemes": [(b"authorization", b"Bearer Bearer " + token)],
        "tab for a space": [(b"authorization", b"Bearer\t" + token)],
        "scheme as a name": [(b"bearer", token)],
        "proxy's header": [(b"proxy-authorization", b"Bearer " + token)],
        "twice, both good": [*bearer(token), *bearer(token)],
        "good, then bad": [*bearer(token), *bearer(other)],
        "bad, then good": [*bearer(other), *bearer(token)],
        "both headers": [*bearer(token), (b"x-api-key", token)],
        "good and basic": [*bearer(token), (b"authorization", b"Basic dXNlcjpwYXNz")],
        "joined by a comma": bearer(token + b", Bearer " + token),
        "two keys": bearer(token + b" " + token),
        "quoted": bearer(b'"' + token + b'"'),
        "of nobody": bearer(other),
        "its id with another's secret": bearer(token[:17] + other[17:]),
        "one digit off": bearer(token[:-1] + (b"0" if token[-1:] != b"0" else b"1")),
        "one digit short": bearer(token[:-1]),
        "one digit long": bearer(token + b"0"),
        "a line end at the end": bearer(token + b"\n"),
        "a null at the end": bearer(token + b"\0"),
        "a null before": bearer(b"\0" + token),
        "upper case": bearer(upper),
        "no id": bearer(b"igd__" + token[17:]),
        "no secret": bearer(token[:17]),
        "the stored hash": bearer(token[:17] + key.stored.sha256.encode()),
        "latin-1": bearer("igd_clé_ÿþ".encode("latin-1")),
        "utf-8": bearer("igd_ключ_🔑".encode()),
        "no text at all": bearer(bytes(range(128, 256))),
        "full-width digits": bearer(token[:-1] + "０".encode()),
        "arabic digits": bearer(("igd_" + "٣" * 12 + "_" + "٣" * 64).encode()),
        "a megabyte": bearer(b"a" * (1 << 20)),
        "a megabyte of spaces": [(b"authorization", b"Bearer" + b" " * (1 << 20) + b"x y")],
        "a megabyte after a good key": bearer(token + b"0" * (1 << 20)),
        "a thousand headers": [*bearer(other)] * 1000,
    }


@pytest.mark.parametrize("case", hostile_headers(make_key("names", frozenset(), None)))
async def test_whatever_is_no_good_key_is_401_and_its_body_is_not_read(access: Access, key: NewKey, case: str) -> None:
    server = Server(access)
    began = time.thread_time()  # of this thread alone: what others take of a busy machine does not count
    answer = await server.ask(headers=hostile_headers(key)[case])
    assert time.thread_time() - began < 1.0
    assert (answer.status, answer.reached_the_app, answer.body_was_read) == (401, False, False)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["www-authenticate"].startswith('Bearer realm="igd"')
    assert ("error=" in answer.headers["www-authenticate"]) == (
        case not in {"none", "scheme as a name", "proxy's header"}
    )
    assert answer.problem["type"] == "urn:igd:problem:unauthenticated"
    assert len(answer.body) < 1000
    assert key.token[17:] not in answer.body.decode()
    assert server.rejected("key") == 1


@pytest.fixture(scope="module")
def one_key(tmp_path_factory: pytest.TempPathFactory) -> Access:
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    add(path, "recommend")
    return Access.from_file(path)


@given(value=st.binary(max_size=200) | st.from_regex(rb"igd_[0-9a-f]{12}_[0-9a-f]{64}", fullmatch=True))
def test_no_guess_is_a_key(one_key: Access, value: bytes) -> None:
    guesses: list[Headers] = [[(b"authorization", value)], [(b"x-api-key", value)], bearer(value)]
    for headers in guesses:
        with pytest.raises(Refused):
            one_key.authenticate(headers)
        assert Access.open().authenticate(headers) is None


@pytest.mark.parametrize("known", [True, False])
async def test_an_unknown_id_costs_the_same_comparison_as_a_wrong_secret(
    access: Access, key: NewKey, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[int, int]] = []
    really_compare = hmac.compare_digest

    def compare(one: str, other: str) -> bool:
        compared.append((len(one), len(other)))
        return really_compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    other = make_key("other", frozenset(), None).token
    answer = await Server(access).ask(headers=bearer(key.token[:17] + other[17:] if known else other))
    assert answer.status == 401
    assert answer.problem["detail"] == "there is no such API key"
    assert compared == [(64, 64)]


async def test_a_key_that_has_expired_is_told_so_but_only_to_its_holder(path: Path, access: Access) -> None:
    over = add(path, "recommend", expires_at=datetime.now(UTC) - timedelta(seconds=1))
    good = add(path, "recommend", expires_at=datetime.now(UTC) + timedelta(minutes=1))
    server = Server(access)
    answer = await server.ask(headers=bearer(over))
    assert (answer.status, answer.problem["detail"]) == (401, f"the key {over.stored.id} has expired")
    guessed = await server.ask(headers=bearer(over.token[:-1] + ("0" if over.token[-1] != "0" else "1")))
    assert (guessed.status, guessed.problem["detail"]) == (401, "there is no such API key")
    assert (await server.ask(headers=bearer(good))).status == 204


# --- scopes -----------------------------------------------------------------------------------------------------------

NEEDED: dict[str, Scope | tuple[Scope, ...] | None] = {
    "/": None,
    "/healthz": None,
    "/readyz": None,
    "/docs": None,
    "/openapi.json": None,
    "/web/app.js": None,
    "/v1/recommendations": "recommend",
    "/v1/recommendations:batch": "recommend",
    "/v1/items": "recommend",
    "/v1/items/../admin": "recommend",  # an item's id, nothing resolves it
    "/v1/catalogues": "recommend",
    "/v1/events": "events",
    "/v1/users/anna": ("users", "admin"),
    "/v1/users:known": ("users", "admin"),
    "/v1/users:forget": ("events", "users"),
    "/v1/users": ("users", "admin"),
    "/v1/admin/catalogues/films:rollback": "admin",
    "/v1/admin/catalogues/films:allow": "admin",
    "/v1/admin": "admin",
    "/metrics": "metrics",
    # What is no route needs the most, whatever it may become.
    "/metrics/": "admin",
    "/healthz/": "admin",
    "//healthz": "admin",
    "/v1": "admin",
    "/V1/recommendations": "admin",
    "//v1/admin": "admin",
    "/web": "admin",
    "/website": "admin",
    "/docs/swagger-ui.css": None,
    "/docs-later": "admin",
    "/later": "admin",
    "": "admin",
}


@pytest.mark.parametrize("path_", NEEDED)
async def test_each_path_takes_exactly_the_keys_of_its_scope(path: Path, access: Access, path_: str) -> None:
    server = Server(access)
    needed = NEEDED[path_]
    enough: tuple[str, ...] = (needed,) if isinstance(needed, str) else (needed or SCOPES)
    for scope in SCOPES:
        answer = await server.ask(path_, bearer(add(path, scope)))
        assert answer.status == (204 if scope in enough else 403), scope
        if scope not in enough:
            assert answer.problem["type"] == "urn:igd:problem:forbidden"
            assert f'error="insufficient_scope", scope="{enough[0]}"' in answer.headers["www-authenticate"]
            assert not answer.body_was_read
    assert (await server.ask(path_, bearer(add(path)))).status == (204 if needed is None else 403)
    assert (await server.ask(path_, bearer(add(path, *SCOPES)))).status == 204
    assert (await server.ask(path_)).status == (204 if needed is None else 401)


async def test_metrics_ask_for_no_key_on_a_port_of_their_own_and_admin_still_does(access: Access) -> None:
    server = Server(access, metrics_are_open=True)
    assert (await server.ask("/metrics")).status == 204
    assert (await server.ask("/v1/admin/catalogues/films:rollback")).status == 401


@pytest.mark.parametrize("path_", NEEDED)
async def test_an_open_server_lets_everyone_do_everything_whatever_they_send(path_: str) -> None:
    assert Access.open().is_open
    server = Server(Access.open())
    answer = await server.ask(path_, [*bearer(b"\xff"), *bearer(b"x")])
    assert (answer.status, "key" in answer.facts) == (204, False)


async def test_what_is_no_http_request_passes(access: Access) -> None:
    passed = []

    async def app(scope: Connection, _: Receive, __: Send) -> None:
        passed.append(scope["type"])

    async def nothing(*_: Any) -> Any:
        raise AssertionError

    await AccessMiddleware(app, access=access)({"type": "lifespan"}, nothing, nothing)
    assert passed == ["lifespan"]


# --- rotation ---------------------------------------------------------------------------------------------------------


def valid(metrics: Metrics) -> bool:
    return "igd_keys_file_valid 1.0" in metrics.render("")[0].decode()


def works(access: Access, key: NewKey) -> bool:
    try:
        known = access.authenticate(bearer(key))
    except Refused:
        return False
    return known is not None and known.id == key.stored.id


def test_keys_come_and_go_without_a_restart(path: Path, key: NewKey, access: Access) -> None:
    new = add(path, "recommend")
    assert works(access, key)
    assert works(access, new)
    write_keys(path, KeyFile().with_key(new.stored))
    assert not works(access, key)
    assert works(access, new)
    write_keys(path, KeyFile())
    assert not works(access, new)


@pytest.mark.parametrize("broken", ["", "{", '{"format": 1, "keys": [{}]}', "\x00" * 100, None])
def test_a_broken_file_leaves_the_old_keys_in_force_until_it_is_mended(
    path: Path, key: NewKey, broken: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics()
    access = Access.from_file(path, metrics=metrics, look_again_s=0.0)
    added = make_key("later", frozenset({"recommend"}), None)
    if broken is None:
        path.unlink()
    else:
        path.write_text(broken)
    for _ in range(5):
        assert works(access, key)
    assert not valid(metrics)
    assert [record.msg for record in caplog.records] == ["keys_file_unusable"]  # once
    write_keys(path, KeyFile().with_key(added.stored))
    assert works(access, added)
    assert not works(access, key)
    assert valid(metrics)


def test_a_file_whose_permissions_alone_are_mended_is_read(
    path: Path, key: NewKey, access: Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = make_key("later", frozenset({"recommend"}), None)
    write_keys(path, KeyFile().with_key(new.stored))
    with monkeypatch.context() as patch:  # tests may run as root, who may read everything

        def refuse(_: Path) -> bytes:
            raise PermissionError(13, "Permission denied")

        patch.setattr(Path, "read_bytes", refuse)
        assert works(access, key)
    assert works(access, key)  # not tried again and again
    path.chmod(0o400)
    assert works(access, new)
    assert not works(access, key)


def test_the_file_is_looked_at_once_a_second_and_not_at_every_request(
    path: Path, key: NewKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = Access.from_file(path)
    looks = 0
    really_look = os.stat

    def look(file: Path) -> os.stat_result:
        nonlocal looks
        looks += 1
        return really_look(file)

    now = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", look)
        for passed_s in (0.0, 0.5, 0.9, 1.1, 1.2, 2.0, 2.2, 3.3):
            patch.setattr(time, "monotonic", lambda at=now + passed_s: at)
            assert works(access, key)
    assert looks == 3


def test_a_server_does_not_start_without_keys_it_can_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        Access.from_file(tmp_path / "keys.json")
    (tmp_path / "keys.json").write_text("{")
    with pytest.raises(InputError, match="Invalid JSON"):
        Access.from_file(tmp_path / "keys.json")


def test_the_hash_is_of_the_secret_alone_so_that_anyone_can_make_the_file(path: Path) -> None:
    secret = "5" * 64
    record = {
        "id": "0123456789ab",
        "name": "by hand",
        "sha256": hashlib.sha256(secret.encode()).hexdigest(),
        "scopes": ["events"],
        "created_at": "2026-01-01T00:00:00Z",
    }
    path.write_text(json.dumps({"format": 1, "keys": [record]}))
    known = Access.from_file(path).authenticate(bearer(f"igd_0123456789ab_{secret}"))
    assert known is not None
    assert (known.id, set(known.scopes)) == ("0123456789ab", {"events"})


# --- rates ------------------------------------------------------------------------------------------------------------


async def test_above_its_rate_a_key_is_429_with_the_seconds_to_wait(path: Path, access: Access, key: NewKey) -> None:
    server = Server(access, RateLimiter("3/minute"))
    statuses = [(await server.ask(headers=bearer(key))).status for _ in range(5)]
    assert statuses == [204, 204, 204, 429, 429]
    answer = await server.ask(headers=bearer(key))
    assert answer.problem["type"] == "urn:igd:problem:rate-limited"
    assert 1 <= int(answer.headers["retry-after"]) <= 120
    assert not answer.body_was_read
    assert server.rejected("rate") == 3
    assert (await server.ask(headers=bearer(add(path, "recommend")))).status == 204
    assert (await server.ask("/healthz", bearer(key))).status == 204


async def test_probes_and_open_metrics_are_not_counted() -> None:
    server = Server(Access.open(), RateLimiter("1/minute"))
    for path_ in ("/metrics", "/healthz", "/readyz") * 3:
        assert (await server.ask(path_)).status == 204
    assert (await server.ask()).status == 204


async def test_requests_without_a_good_key_use_up_nobodys_rate(access: Access, key: NewKey) -> None:
    server = Server(access, RateLimiter("1/minute"))
    for headers in hostile_headers(key).values():
        await server.ask(headers=headers)
    for _ in range(3):
        assert (await server.ask("/v1/admin", bearer(key))).status == 403
    assert (await server.ask(headers=bearer(key))).status == 204


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2:ffff::1", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("", "/run/igd.sock", True),
    ],
)
async def test_without_keys_addresses_are_counted_and_of_ipv6_networks(one: str, other: str, together: bool) -> None:
    server = Server(Access.open(), RateLimiter("1/minute"))
    assert (await server.ask(client=(one, 1))).status == 204
    assert (await server.ask(client=(other, 2))).status == (429 if together else 204)


async def _asked_for(rate: str | None, *counts: int | None) -> list[int]:
    """Statuses of requests that count as so many, one after another."""
    server = Server(Access.open(), None if rate is None else RateLimiter(rate))
    statuses = []
    for server.counts in counts:
        answer = await server.ask()
        assert answer.status != 429 or int(answer.headers["retry-after"]) >= 1
        statuses.append(answer.status)
    return statuses


async def test_a_batch_is_charged_for_its_entries() -> None:
    assert await _asked_for("10/minute", 7, 7) == [204, 429]
    assert await _asked_for(None, 7, 7) == [204, 204]


@pytest.mark.parametrize("entries", [9, 10, 11, 1000])
async def test_a_batch_of_the_limit_or_more_is_taken_where_nothing_else_was(entries: int) -> None:
    assert await _asked_for("10/minute", entries, 2) == [204, 429]


async def test_a_refused_batch_leaves_the_room_that_there_was() -> None:
    assert await _asked_for("10/minute", 7, 5, 5, 5, 3, 1) == [204, 429, 429, 429, 204, 429]


async def test_what_its_route_cannot_read_counts_as_one() -> None:
    assert await _asked_for("3/minute", None, None, 2, 1, None, 1) == [204, 204, 429, 204, 429, 429]


async def test_requests_whose_bodies_are_on_their_way_count_already() -> None:
    server, asking = Server(Access.open(), RateLimiter("2/minute")), asyncio.Event()
    server.before_the_body = asking.wait
    requests = [asyncio.create_task(server.ask()) for _ in range(6)]
    while sum(request.done() for request in requests) < 4:  # noqa: ASYNC110 - step by step
        await asyncio.sleep(0)
    asking.set()
    answers = await asyncio.gather(*requests)
    assert sorted((answer.status, answer.body_was_read) for answer in answers) == [(204, True)] * 2 + [(429, False)] * 4
