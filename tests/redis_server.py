"""A real redis-server of a test: on a free port, in a directory of its own, to be killed, frozen and started again."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import socket
import subprocess
import time
from typing import TYPE_CHECKING, Self

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

HOST = "127.0.0.1"
_PATIENCE_S = 15.0
# Below Linux's range for outgoing connections: nobody takes the port while the server is down. A cluster's bus listens
# 10,000 above.
_PORTS = range(12_000, 22_000)


class RedisServer:
    """``with RedisServer(tmp_path) as redis: redis.url``; options as on redis-server's command line, without dashes.

    It writes nothing to disk unless told to, as by ``RedisServer(path, appendonly="yes", appendfsync="always")``, and
    then finds it again at the next ``start``.
    """

    def __init__(self, directory: Path, *, port: int | None = None, sentinel: bool = False, **options: str) -> None:
        self.port = port or free_port()
        self._directory = directory
        self._sentinel = sentinel
        self._options = {"save": "", **options}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """For `open_store` and redis-py, without a password."""
        return f"redis://{HOST}:{self.port}/0"

    @property
    def pid(self) -> int:
        """Of the server that runs now."""
        return self._running().pid

    def start(self) -> None:
        """Start, or start again on the same port, and wait until it answers."""
        binary = shutil.which("redis-server")
        if binary is None:
            pytest.skip("redis-server is not installed: apt-get install redis-server")
        if self._sentinel:  # a sentinel writes what it learns into its configuration
            command = [binary, str(self._directory / "sentinel.conf"), "--sentinel"]
        else:
            command = [binary]
            for name, value in self._options.items():
                command += [f"--{name.replace('_', '-')}", value]
        command += ["--port", str(self.port), "--bind", HOST, "--dir", str(self._directory)]
        with (self._directory / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        self._wait_for_an_answer()

    def kill(self) -> None:
        """SIGKILL: no goodbye, nothing saved that was not saved before."""
        process = self._running()
        process.kill()
        process.wait(_PATIENCE_S)
        self._process = None

    def pause(self) -> None:
        """Freeze it: connections are accepted, nothing is answered."""
        self._running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Go on after `pause`."""
        self._running().send_signal(signal.SIGCONT)

    def cli(self, *arguments: str) -> str:
        """What redis-cli prints, without the last line's end; it ends with an error if Redis answers with one."""
        command = ["redis-cli", "-e", "-h", HOST, "-p", str(self.port), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_PATIENCE_S)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout.removesuffix("\n")

    def log(self) -> str:
        """What the server has written."""
        return (self._directory / "redis.log").read_text(errors="replace")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self.kill()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("this redis-server is not running")
        return self._process

    def _wait_for_an_answer(self) -> None:
        for _ in patiently("redis-server", self.log):
            if self._running().poll() is not None:
                self._process = None
                raise RuntimeError(f"redis-server ended at once:\n{self.log()}")
            with contextlib.suppress(OSError), socket.create_connection((HOST, self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                if connection.recv(64).startswith((b"+PONG", b"-NOAUTH", b"-DENIED")):
                    return


def free_port() -> int:
    """A port that nobody listens on."""
    for port in random.sample(_PORTS, k=100):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind((HOST, port))
            return port
    raise RuntimeError(f"no free port among {_PORTS}")


def patiently(what: str, story: Callable[[], str] = str) -> Iterator[None]:
    """For loops that look again and again: pauses between looks, and after a while gives up and tells the story."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        yield
        time.sleep(0.01)
    raise TimeoutError(f"{what}: not in {_PATIENCE_S:.0f} s\n{story()}")
