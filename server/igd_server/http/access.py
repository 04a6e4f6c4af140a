"""Access control: API keys and their scopes, checked before a request's body is read."""

from __future__ import annotations

import functools
import hashlib
import hmac
import ipaddress
import logging
import os
import re
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, cast

from igd_core.errors import InputError
from igd_server.api.problems import FORBIDDEN, RATE_LIMITED, UNAUTHENTICATED, Finding, Refused
from igd_server.http.context import context_of, refusal
from igd_server.http.keys import KEY, read_keys

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from starlette.types import ASGIApp, Receive, Send
    from starlette.types import Scope as Connection

    from igd_server.http.keys import Scope, StoredKey
    from igd_server.http.limits import RateLimiter
    from igd_server.observe.metrics import Metrics

_LOOK_AGAIN_S = 1.0
_BEARER = re.compile(rb"bearer +([^ ]+) *", re.IGNORECASE)
_CALLER = "igd.caller"
# To be open, a path must stand here. What stands nowhere needs the strongest scope: a route that someone adds later is
# closed until they think of it.
_OPEN = frozenset({"/", "/compare", "/operate", "/healthz", "/readyz", "/startupz", "/docs", "/openapi.json"})
_OPEN_BELOW = ("/web/", "/docs/")
_SCOPES_BELOW: tuple[tuple[str, tuple[Scope, ...]], ...] = (
    ("/v1/admin", ("admin",)),
    ("/v1/events", ("events",)),
    ("/v1/users:forget", ("events", "users")),
    ("/v1/users", ("users", "admin")),
    ("/v1/", ("recommend",)),
)
_TO_FORGET: tuple[Scope, ...] = ("events", "users")

_log = logging.getLogger("igd.server")


class Access:
    """The API keys, as the keys file has them now."""

    def __init__(self, keys: _Keys | None) -> None:
        self._keys = keys

    @classmethod
    def open(cls) -> Self:
        """No keys needed: everyone may do everything."""
        return cls(None)

    @classmethod
    def from_file(cls, path: Path, *, metrics: Metrics | None = None, look_again_s: float = _LOOK_AGAIN_S) -> Self:
        """Only holders of a key in ``path`` have access; the file is checked every ``look_again_s`` seconds.

        Raises:
            InputError: the file cannot be read, or is not a keys file.
        """
        return cls(_Keys(path, metrics, look_again_s))

    @property
    def is_open(self) -> bool:
        """Whether no keys are needed."""
        return self._keys is None

    def authenticate(self, headers: Iterable[tuple[bytes, bytes]]) -> StoredKey | None:
        """The key in ``Authorization: Bearer KEY`` or ``X-API-Key: KEY``, one of them; None if no keys are asked for.

        Raises:
            Refused: 401: no key, two keys, or an unknown or expired one.
        """
        if self._keys is None:
            return None
        return self._keys.known(_sent_key(headers))


class _Keys:
    """The keys file, read again when it changes; if it cannot be used, the keys before stay in force."""

    def __init__(self, path: Path, metrics: Metrics | None, look_again_s: float) -> None:
        self._path = path
        self._metrics = metrics
        self._look_again_s = look_again_s
        self._looked_at = time.monotonic()
        # Before reading: a change during the read then shows at the next check.
        self._seen = self._signature()
        self._by_id: Mapping[str, StoredKey] = _by_id(path)
        # Compared with an unknown key's secret, so that it takes as long as a known key.
        self._nobodys = secrets.token_hex(32)

    def known(self, key: bytes) -> StoredKey:
        """The key, if it is a good one.

        Raises:
            Refused: 401: unknown or expired.
        """
        if time.monotonic() - self._looked_at >= self._look_again_s:
            self._look_again()
        parts = KEY.fullmatch(key)
        if parts is None:
            raise _unauthenticated("this is no API key")
        stored = self._by_id.get(parts[1].decode())
        digest = hashlib.sha256(parts[2]).hexdigest()
        matches = hmac.compare_digest(digest, self._nobodys if stored is None else stored.sha256)
        if stored is None or not matches:
            raise _unauthenticated("there is no such API key")
        if stored.has_expired():
            raise _unauthenticated(f"the key {stored.id} has expired")
        return stored

    def _look_again(self) -> None:
        # On the event loop: a stat takes microseconds, and the file changes a few times a year.
        self._looked_at = time.monotonic()
        signature = self._signature()
        if signature == self._seen:
            return
        self._seen = signature
        try:
            self._by_id = _by_id(self._path)
        except InputError as error:
            _log.error("keys_file_unusable", extra={"fields": {"detail": str(error), "keys_kept": len(self._by_id)}})
            self._tell(valid=False)
        else:
            _log.info("keys_read", extra={"fields": {"keys": len(self._by_id)}})
            self._tell(valid=True)

    def _tell(self, *, valid: bool) -> None:
        if self._metrics is not None:
            self._metrics.observe_keys_file(valid=valid)

    def _signature(self) -> tuple[int, ...] | None:
        """Changes when the file does; ``ctime`` also when only its permissions change."""
        try:
            status = os.stat(self._path)  # noqa: PTH116 - half the time of Path.stat
        except OSError:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _by_id(path: Path) -> Mapping[str, StoredKey]:
    return {key.id: key for key in read_keys(path).keys}


def _sent_key(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The only key in the headers."""
    sent = [(name, value) for name, value in headers if name in {b"authorization", b"x-api-key"}]
    if not sent:
        raise _unauthenticated("send an API key as 'Authorization: Bearer KEY' or as 'X-API-Key: KEY'", sent=False)
    if len(sent) > 1:
        raise _unauthenticated("more than one Authorization or X-API-Key header")
    name, value = sent[0]
    if name == b"x-api-key":
        return value
    bearer = _BEARER.fullmatch(value)
    if bearer is None:
        raise _unauthenticated("the Authorization header is not 'Bearer KEY'")
    return bearer[1]


def _unauthenticated(detail: str, *, sent: bool = True) -> Refused:
    challenge = 'Bearer realm="igd"' + (', error="invalid_token"' if sent else "")
    return Refused(Finding(kind=UNAUTHENTICATED, detail=detail, headers={"WWW-Authenticate": challenge}))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Caller:
    """Whose requests are counted together, and by what; ``limiter`` is None where there is no limit."""

    name: str
    limiter: RateLimiter | None
    metrics: Metrics | None

    async def charge(self) -> None:
        """Count a request as one."""
        if self.limiter is not None:
            self._refuse_for(await self.limiter.check(self.name))

    async def weigh(self, requests: int) -> None:
        """Count the same request as so many."""
        if self.limiter is not None:
            self._refuse_for(await self.limiter.weigh(self.name, requests))

    def _refuse_for(self, retry_after_s: int | None) -> None:
        if retry_after_s is not None:
            if self.metrics is not None:
                self.metrics.observe_rejected("rate")
            detail = f"the limit is reached; try again in {retry_after_s} s"
            raise Refused(Finding(kind=RATE_LIMITED, detail=detail, headers={"Retry-After": str(retry_after_s)}))


class AccessMiddleware:
    """Refuses requests without a key for their path, and callers beyond their rate, before reading the body.

    A request with a key takes about 10 us longer for it; with a limit 10 to 20 us more, or 0.25 ms where Redis counts
    (on loopback, of which 0.15 ms are this process's).

    Probes, the page and the API's documentation are open to all. ``/v1/admin`` needs the scope ``admin``;
    ``/v1/events`` needs ``events``; to forget a user needs ``events`` or ``users``, to read what is known of one
    ``users`` or ``admin``; the rest of ``/v1`` needs ``recommend``; ``/metrics`` needs ``metrics``, a scope of its own
    so that a scraper's key can roll nothing back. Anything else needs ``admin``.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        access: Access,
        limiter: RateLimiter | None = None,
        metrics: Metrics | None = None,
        metrics_are_open: bool = False,
    ) -> None:
        """``metrics_are_open``: ``/metrics`` needs no key, as on a port that only operators reach."""
        self._app = app
        self._access = access
        self._limiter = limiter
        self._metrics = metrics
        self._open = _OPEN | {"/metrics"} if metrics_are_open or access.is_open else _OPEN

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "http":
            path = scope["path"]
            if path not in self._open and not path.startswith(_OPEN_BELOW):
                try:
                    await self._admit(scope, _scopes_for(scope["method"], path))
                except Refused as refused:
                    found = refused.finding
                    if self._metrics is not None and found.kind is not RATE_LIMITED:
                        self._metrics.observe_rejected("key")
                    await refusal(scope, found.kind, found.detail, headers=found.headers)(scope, receive, send)
                    return
        await self._app(scope, receive, send)

    async def _admit(self, scope: Connection, enough: tuple[Scope, ...]) -> None:
        key = self._access.authenticate(scope["headers"])
        if key is None:
            name = name_of_address(scope["client"][0] if scope.get("client") else "")
        else:
            name = f"key-{key.id}"
            context_of(scope).facts["key"] = key.id
            _require(key, enough)
        caller = scope[_CALLER] = _Caller(name=name, limiter=self._limiter, metrics=self._metrics)
        await caller.charge()


def caller_of(scope: Connection) -> str:
    """Whose share of the server a request uses: its key's, or without keys its address's."""
    return cast("_Caller", scope[_CALLER]).name


async def weigh(scope: Connection, requests: int) -> None:
    """Count a request, which the middleware counted as one, as so many: a batch as its entries, for example.

    Raises:
        Refused: 429: too many.
    """
    await cast("_Caller", scope[_CALLER]).weigh(requests)


def _scopes_for(method: str, path: str) -> tuple[Scope, ...]:
    """The scopes of which one is enough."""
    if path == "/metrics":
        return ("metrics",)
    if method == "DELETE" and path.startswith("/v1/users"):
        return _TO_FORGET
    return next((scopes for prefix, scopes in _SCOPES_BELOW if path.startswith(prefix)), ("admin",))


def _require(key: StoredKey, enough: tuple[Scope, ...]) -> None:
    if key.scopes.isdisjoint(enough):
        challenge = f'Bearer realm="igd", error="insufficient_scope", scope="{enough[0]}"'
        detail = f"the key {key.id} has not the scope {' or '.join(map(repr, enough))}"
        raise Refused(Finding(kind=FORBIDDEN, detail=detail, headers={"WWW-Authenticate": challenge}))


@functools.lru_cache(maxsize=4096)
def name_of_address(host: str) -> str:
    """The caller at an address; an IPv6 network of 64 bits, which one customer has, is one caller."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:  # a Unix socket
        return "address-unknown"
    if address.version == 6:
        if address.ipv4_mapped is not None:
            return f"address-{address.ipv4_mapped}"
        address = ipaddress.IPv6Address(int(address) >> 64 << 64)
    return f"address-{address}"
