"""`igd serve` in a process of its own, and what it serves: a tiny random Llama on the catalogue of films."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from films import film_artifact

from igd_core.artifact import save_artifact

if TYPE_CHECKING:
    from pathlib import Path

    from igd_core.artifact import Artifact
    from igd_core.catalogue.tokenization import TitleTokenizer
    from igd_core.engines.embedded.checkpoint import Checkpoint

START_S = 120
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONFAULTHANDLER": "1"}
_WITH_ANOTHER_CLOCK = """
import pathlib, sys, time
real, ahead = time.time, pathlib.Path(sys.argv.pop(1))
time.time = lambda: real() + float(ahead.read_text() or 0)
from igd_core.cli.main import main
sys.exit(main())
"""


@dataclass(slots=True, kw_only=True)
class ServerProcess:
    """A running `igd serve` and the log lines it has written."""

    process: subprocess.Popen[str]
    log: list[dict[str, Any]] = field(default_factory=list)
    stderr: str = ""
    _reader: threading.Thread | None = None

    @classmethod
    def start(cls, *flags: str, clock: Path | None = None, program: Path | None = None, **variables: str) -> Self:
        """Start `igd serve`, or a ``program`` that takes the same arguments.

        ``clock`` holds the seconds by which the process's wall clock is ahead, now and whenever it is asked.
        """
        start = ["-m", "igd_core.cli.main"] if program is None else [str(program)]
        if clock is not None:
            start = ["-c", _WITH_ANOTHER_CLOCK, str(clock)]
        command = [sys.executable, *start, "serve", "--port", "0", *flags]
        environment = {**os.environ, **_ENVIRONMENT, **variables}
        server = cls(process=subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment))
        server._reader = threading.Thread(target=server._read, daemon=True)
        server._reader.start()
        return server

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                self.stderr += line
                if line.startswith("{"):
                    self.log.append(json.loads(line))

    def event(self, name: str, timeout_s: float = START_S) -> dict[str, Any]:
        """Wait for a log line."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for line in list(self.log):
                if line.get("event") == name:
                    return line
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError(f"no event {name!r}:\n{self.stderr}")

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        status = self.process.wait(60)
        if self._reader is not None:
            self._reader.join(10)
        return status

    def assert_ended_well(self) -> None:
        """After `stop` or `wait`: status 0, and nothing unforeseen on stderr; the message ends with what was wrong."""
        lines = self.stderr.splitlines()
        traces = [place for place, line in enumerate(lines) if "Traceback" in line]
        wrong = ["\n".join(lines[max(place - 1, 0) : place + 30]) for place in traces]
        if self.process.returncode:
            wrong.append("\n".join([*lines[-5:], f"status {self.process.returncode}"]))
        assert not wrong, "\n...\n".join(wrong)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """Directories that the server is started with, and their parts."""

    artifact_dir: Path
    model_dir: Path
    artifact: Artifact

    @property
    def flags(self) -> tuple[str, ...]:
        return ("--artifact", str(self.artifact_dir), "--model", str(self.model_dir))


def make_bundle(root: Path, definition: dict[str, Any], tokenizer: TitleTokenizer, checkpoint: Checkpoint) -> Bundle:
    model_dir = root / "tiny-llama"
    checkpoint.model.save_pretrained(model_dir)
    (model_dir / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    (model_dir / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}), encoding="utf-8")
    artifact = film_artifact(tokenizer)
    save_artifact(artifact, root / "films")
    return Bundle(artifact_dir=root / "films", model_dir=model_dir, artifact=artifact)
