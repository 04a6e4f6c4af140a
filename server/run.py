"""Running the app in a process: socket, log, signals, and what happens when it cannot start."""

from __future__ import annotations

import contextlib
import logging
import socket
from typing import TYPE_CHECKING

import uvicorn
from prometheus_client import disable_created_metrics

from igd_core.errors import InputError
from server.app import create_app
from server.deployment import Deployment
from server.logs import log_to_stderr

if TYPE_CHECKING:
    from server.settings import Settings

_MAX_HEADER_BYTES = 16 << 10
_BACKLOG = 1024

_log = logging.getLogger("igd.server")


def serve(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM; running requests then get ``grace_s`` seconds.

    Raises:
        InputError: the address cannot be listened on.
        IGDError: the artefact or the model cannot be loaded.
    """
    log_to_stderr(settings.log_level)
    disable_created_metrics()  # type: ignore[no-untyped-call]  # half of all series would be times at which others began
    listener = _listen(settings.host, settings.port)
    deployment = Deployment(settings)
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(settings, deployment=deployment),
            http="h11",  # bounds a request's head, which httptools does not
            h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=settings.keep_alive_s,
            timeout_graceful_shutdown=settings.grace_s,
        )
    )

    def stop() -> None:
        server.should_exit = True

    deployment.on_failure = stop
    host, port = listener.getsockname()[:2]
    _log.info("listening", extra={"fields": {"url": f"http://{f'[{host}]' if ':' in host else host}:{port}/"}})
    with listener, contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again once all is closed
        server.run(sockets=[listener])
    if deployment.failure is not None:
        raise deployment.failure


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise InputError(f"host and port: cannot listen on {host}:{port}: {error.strerror or error}") from None
