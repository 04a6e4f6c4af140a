"""Allowed hosts: the names under which this server answers, against DNS rebinding.

A page of any site can point its own name to an address of this machine (DNS rebinding); the browser then lets the page
read this server's answers. With API keys, such a page has none. Without, the `Host` header shows which site's page
asks, so only this server's own names are answered.
"""

from __future__ import annotations

import functools
import ipaddress
import re
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from igd_server.api.problems import ProblemKind
from igd_server.http.context import refusal
from igd_server.settings import is_loopback

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from igd_server.observe.metrics import Metrics
    from igd_server.settings import Settings

MISDIRECTED = ProblemKind(name="misdirected", status=421, title="The server does not answer to this host name")

ANY = "*"
# An orchestrator or a load balancer asks these under whatever name it likes; they tell nothing.
_UNCHECKED = frozenset({"/healthz", "/readyz", "/startupz"})
_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,255})(:\d{1,5})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class AllowedHosts:
    """The hosts that a request may name.

    Attributes:
        names: lower case, without a port; ``*.example`` means every name below ``example``.
        addresses: whether any IP address will do. A page cannot be called by an address that is not its own, so where
            others may connect at all, their address of this machine is as good as its name.
    """

    names: frozenset[str]
    addresses: bool

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """``allowed_hosts`` of the settings and this machine's own names; None if every host is allowed.

        Every host is allowed if API keys are needed and no hosts are set, or if ``*`` is among them.
        """
        if ANY in settings.allowed_hosts or (settings.keys_file is not None and not settings.allowed_hosts):
            return None
        own = socket.gethostname()
        names = {"localhost", "*.localhost", settings.host, own, own.partition(".")[0], *settings.allowed_hosts}
        return cls(names=frozenset(map(_plain, names)), addresses=not is_loopback(settings.host))

    def admits(self, host: str) -> bool:
        """Whether a ``Host`` header, with or without a port, names this server."""
        found = _HOST.fullmatch(host)
        if found is None:
            return False
        name = _plain(found["name"])
        address = _address(name)
        if address is not None:
            return self.addresses or address.is_loopback or name in self.names
        above = name.split(".")
        return name in self.names or any(f"*.{'.'.join(above[at:])}" in self.names for at in range(1, len(above)))


class HostMiddleware:
    """Refuses requests to other hosts before anything else reads them; a few microseconds a request."""

    def __init__(self, app: ASGIApp, *, allowed: AllowedHosts, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics
        self._admits = functools.lru_cache(maxsize=256)(lambda host: allowed.admits(host.decode("latin-1")))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection. A request without ``Host``, which HTTP/1.0 allows, is not a browser's."""
        if scope["type"] == "http" and scope["path"] not in _UNCHECKED:
            host = None
            for name, value in scope["headers"]:
                if name == b"host":
                    host = value
                    break
            if host is not None and not self._admits(host):
                self._metrics.observe_rejected("host")
                detail = f"host: {host[:64].decode('latin-1')!r} is none of this server's names (IGD_ALLOWED_HOSTS)"
                await refusal(scope, MISDIRECTED, detail)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _plain(name: str) -> str:
    """The form in which names are compared: ``[::1]`` is ``::1``, ``Example.org.`` is ``example.org``."""
    return name.removeprefix("[").removesuffix("]").lower().removesuffix(".")


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
