"""The process of one replica: ``python -P -m igd_server.replicas``, started by the supervisor alone.

Its standard input is a socket to the supervisor, which sends one line of JSON (`Orders`), gets ``ready`` when
recommendations are served, and never sends anything else: when the socket ends, the supervisor has ended, however it
did, and this process drains and ends too.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

from igd_core.errors import IGDError
from igd_core.extras import what_to_install
from igd_server import process
from igd_server.http.turns import Board
from igd_server.replicas.orders import READY, Orders

_FAILED = 2
_LAST_S = 10.0

_log = logging.getLogger("igd.server")


def main() -> int:
    """Serve; returns the exit code."""
    control = socket.socket(fileno=sys.stdin.fileno())
    with control.makefile("rb") as lines:
        orders = Orders.read(json.loads(lines.readline()))
    settings = orders.settings
    threading.Thread(target=_end_with, args=(control, settings.grace_s), daemon=True).start()
    seat = process.Seat(
        number=orders.number,
        listener=socket.socket(fileno=orders.listener),
        board=Board(Path(orders.board)),
        operations=Path(orders.operations),
        say_ready=lambda: control.sendall(READY),
    )
    try:
        process.serve(settings, seat)
    except IGDError as error:
        print(f"igd: {error}", file=sys.stderr)  # noqa: T201 - as the command line says it
        return _FAILED
    except ModuleNotFoundError as error:
        advice = what_to_install(error, "serve")
        if advice is None:
            raise
        print(f"igd: {advice}", file=sys.stderr)  # noqa: T201
        return _FAILED
    return 0


def _end_with(control: socket.socket, grace_s: float) -> None:
    """Drain when the supervisor has ended: the port is free at once, for one that is started in its place."""
    try:
        while control.recv(64):
            pass
    except OSError:
        pass
    _log.error("supervisor_gone")
    os.kill(os.getpid(), signal.SIGHUP)
    time.sleep(grace_s + _LAST_S)
    os._exit(_FAILED)


if __name__ == "__main__":
    sys.exit(main())
