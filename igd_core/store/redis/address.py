"""Parse the address of a Redis from a URL: one server, sentinels, or a cluster; with or without TLS."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from igd_core.errors import InputError
from igd_core.store.names import without_secrets

if TYPE_CHECKING:
    from collections.abc import Mapping

_TLS_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_SENTINEL_OPTIONS = ("sentinel_username", "sentinel_password")
_TRUTH = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One of the URL's addresses."""

    name: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisAddress:
    """The address of a Redis.

    Attributes:
        kind: what listens at the hosts: one server, sentinels, or nodes of a cluster.
        hosts: at least one, for ``server`` exactly one.
        service: the name by which sentinels know the server; empty for other kinds.
        database: number of the logical database; 0 in a cluster.
        tls: redis-py's options for TLS; empty without TLS.
        credentials: ``username`` and ``password``, where given.
        sentinel_credentials: the same for the sentinels.
        label: the URL for messages, without credentials and options.
    """

    kind: Literal["server", "sentinel", "cluster"]
    hosts: tuple[Host, ...]
    service: str = ""
    database: int = 0
    tls: Mapping[str, str | bool] = field(default_factory=dict)
    credentials: Mapping[str, str] = field(default_factory=dict, repr=False)
    sentinel_credentials: Mapping[str, str] = field(default_factory=dict, repr=False)
    label: str = ""

    @staticmethod
    def parse(url: str) -> RedisAddress:
        """Parse a URL; docs/how-to/redis.md describes its parts.

        Raises:
            InputError: names the URL without its password, and what is wrong.
        """
        label = without_secrets(url)
        try:
            return _parse(url, label)
        except ValueError as error:
            raise InputError(f"store: {label!r}: {error}") from None


def _parse(url: str, label: str) -> RedisAddress:
    parts = urlsplit(url)
    if label.endswith("***") or "@" in parts.path or parts.fragment:
        raise ValueError(
            "not of the form redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]; in a password, '/', '?', '#' and '@' are"
            " written %2F, %3F, %23 and %40"
        )
    base, _, variant = parts.scheme.partition("+")
    kind: Literal["server", "sentinel", "cluster"] = (
        "sentinel" if variant == "sentinel" else "cluster" if variant == "cluster" else "server"
    )
    user, _, hosts = parts.netloc.rpartition("@")
    service, database = _service_and_database(parts.path, kind)
    options = _options(parts.query, kind, tls=base == "rediss")
    return RedisAddress(
        kind=kind,
        hosts=_hosts(hosts, kind),
        service=service,
        database=database,
        tls={} if base == "redis" else {"ssl": True, **_tls(options)},
        credentials=_credentials(*map(unquote, user.partition(":")[::2])),
        sentinel_credentials=_credentials(*(options.get(name, "") for name in _SENTINEL_OPTIONS)),
        label=label,
    )


def _hosts(text: str, kind: str) -> tuple[Host, ...]:
    default = 26379 if kind == "sentinel" else 6379
    hosts = []
    for one in text.split(","):
        parts = urlsplit(f"//{one}")
        hosts.append(Host(name=parts.hostname or "localhost", port=default if parts.port is None else parts.port))
    if kind == "server" and len(hosts) > 1:
        raise ValueError("several hosts; redis+sentinel:// or redis+cluster:// take more than one")
    return tuple(hosts)


def _service_and_database(path: str, kind: str) -> tuple[str, int]:
    pieces = [unquote(piece) for piece in path.split("/") if piece]
    service = ""
    if kind == "sentinel":
        if not pieces:
            raise ValueError("no service; redis+sentinel://HOST:PORT/SERVICE is needed")
        service = pieces.pop(0)
    if len(pieces) > 1 or not all(piece.isdecimal() for piece in pieces):
        raise ValueError(f"the path {path!r} does not end in one number, the database's")
    database = int(pieces[0]) if pieces else 0
    if kind == "cluster" and database:
        raise ValueError("a cluster has database 0 only")
    return service, database


def _options(query: str, kind: str, *, tls: bool) -> dict[str, str]:
    known = [*((*_TLS_FILES, "ssl_check_hostname") if tls else ()), *(_SENTINEL_OPTIONS if kind == "sentinel" else ())]
    options: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in known:
            raise ValueError(f"no option {name[:32]!r}; known here are {', '.join(known) or 'none'}")
        options[name] = value
    return options


def _tls(options: Mapping[str, str]) -> dict[str, str | bool]:
    for name in _TLS_FILES:
        if name in options and not Path(options[name]).is_file():
            raise ValueError(f"{name}: {options[name]!r} is not a file")
    files: dict[str, str | bool] = {name: options[name] for name in _TLS_FILES if name in options}
    checked = options.get("ssl_check_hostname", "true").lower()
    if checked not in _TRUTH:
        raise ValueError(f"ssl_check_hostname: {checked!r} is not true or false")
    return {**files, "ssl_check_hostname": _TRUTH[checked]}


def _credentials(username: str, password: str) -> dict[str, str]:
    return {name: value for name, value in (("username", username), ("password", password)) if value}
