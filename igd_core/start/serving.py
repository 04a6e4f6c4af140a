"""See to it that what was made is served: start the server, ask it once over HTTP, and stop it."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from igd_core.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_PATIENCE_S = 300.0
_STOP_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedAnswer:
    """What the server said.

    Attributes:
        history: titles that it was asked about, oldest first.
        titles: that it answered, the best first.
        source: ``model``, or what answered in its place.
        milliseconds: that the answer took, by the server's clock.
        ready_seconds: from the start of the process until it was ready.
    """

    history: tuple[str, ...]
    titles: tuple[str, ...]
    source: str
    milliseconds: float
    ready_seconds: float


def ask_server(arguments: Sequence[str], history: Sequence[str], log: Path) -> ServedAnswer:
    """Run ``igd serve`` with ``arguments`` on a free port until it has answered one history of item ids.

    Args:
        arguments: of the command, without host and port.
        history: oldest first.
        log: file for what the server logs.

    Raises:
        EngineError: it ended, or did not answer in five minutes; names the log.
    """
    started = time.perf_counter()
    with _server(arguments, log) as (process, url):
        while not _answers(f"{url}/readyz"):
            if process.poll() is not None or time.perf_counter() - started > _PATIENCE_S:
                raise EngineError(f"igd serve did not become ready; its log is {log}")
            time.sleep(0.1)
        ready = time.perf_counter() - started
        body = json.dumps({"history": list(history), "k": 5}).encode()
        try:
            answer = _json(
                urllib.request.Request(  # noqa: S310 - this machine's own port
                    f"{url}/v1/recommendations", body, {"content-type": "application/json"}
                )
            )
            shown = [_json(f"{url}/v1/items/{urllib.parse.quote(item, safe='')}")["title"] for item in history]
        except (OSError, ValueError, KeyError) as error:
            raise EngineError(f"igd serve answered {error}; its log is {log}") from None
    return ServedAnswer(
        history=tuple(shown),
        titles=tuple(item["title"] for item in answer["items"]),
        source=answer["source"],
        milliseconds=answer["timings"]["total_ms"],
        ready_seconds=ready,
    )


@contextlib.contextmanager
def _server(arguments: Sequence[str], log: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "igd_core", "serve", *arguments, "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as written, subprocess.Popen(command, stdout=written, stderr=written) as process:
        try:
            yield process, f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - this machine's own port
            return bool(answer.status == 200)
    except OSError:
        return False


def _json(request: str | urllib.request.Request) -> dict[str, Any]:
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - this machine's own port
        body: dict[str, Any] = json.load(answer)
    return body
