from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from igd_server.catalogues.attempts import LOADING, SERVING, Attempts

from igd_core.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

ONE, OTHER = "0123456789abcdef", "fedcba9876543210"

_ATTEMPT = """
import pathlib, sys, time
from igd_server.catalogues.attempts import SERVING, Attempts
attempt = Attempts(pathlib.Path(sys.argv[1])).begin(sys.argv[2], allowed=int(sys.argv[3]))
if sys.argv[4] == "serving":
    attempt.note(SERVING)
print("begun", flush=True)
time.sleep(600)
"""


class Attempting:
    """A process in an attempt."""

    def __init__(self, folder: Path, version: str, *, allowed: int = 0, stage: str = "loading") -> None:
        command = [sys.executable, "-c", _ATTEMPT, str(folder), version, str(allowed), stage]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "begun\n"

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        self.process.send_signal(number)
        assert self.process.wait(30) == -number
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_process_that_ends_in_an_attempt_leaves_it_on_record(number: signal.Signals, tmp_path: Path) -> None:
    attempts = Attempts(tmp_path / "new" / "attempts")
    assert attempts.dead() == []
    attempting = Attempting(tmp_path / "new" / "attempts", ONE, stage="serving")
    assert attempts.dead() == []  # it lives: another server of this host
    attempting.end(number)
    (dead,) = attempts.dead(ONE)
    assert (dead.version, dead.allowed, dead.stage) == (ONE, 0, SERVING)
    assert attempts.dead(OTHER) == []


def test_an_attempt_that_ends_leaves_nothing_and_may_end_twice(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path)
    attempt = attempts.begin(ONE, allowed=0)
    assert attempts.dead() == []
    attempt.end()
    attempt.end()
    attempt.note(SERVING)
    assert list(tmp_path.iterdir()) == []


def test_an_attempt_that_is_left_counts_as_one_that_never_ended(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path)
    attempts.begin(ONE, allowed=0).abandon()
    (dead,) = attempts.dead()
    assert dead.stage == LOADING


def test_two_servers_of_one_host_know_their_attempts_apart(tmp_path: Path) -> None:
    one, other = Attempting(tmp_path, ONE), Attempting(tmp_path, ONE)
    one.end()
    attempts = Attempts(tmp_path)
    assert len(attempts.dead(ONE)) == 1
    attempts.forget(ONE)
    assert attempts.dead() == []
    other.end()  # was not forgotten with it
    assert len(attempts.dead(ONE)) == 1


@pytest.mark.parametrize("damage", ["empty", "noise", "unreadable", "of another century", "from the future"])
def test_a_damaged_record_counts_like_another(damage: str, tmp_path: Path) -> None:
    Attempts(tmp_path).begin(ONE, allowed=3).abandon()
    (record,) = tmp_path.iterdir()
    match damage:
        case "empty":
            record.write_bytes(b"")
        case "noise":
            record.write_bytes(os.urandom(1 << 20))
        case "unreadable":
            record.unlink()
            record.symlink_to("loop")
            (tmp_path / "loop").symlink_to(record.name)
        case "of another century":
            os.utime(record, (-2_000_000_000, -2_000_000_000))
        case _:
            os.utime(record, (time.time() + 1e9, time.time() + 1e9))
    (dead,) = Attempts(tmp_path).dead(ONE)
    assert (dead.version, dead.allowed) == (ONE, 3)
    assert dead.stage in (LOADING, "in an attempt of which no more is known")


def test_what_was_allowed_since_does_not_count(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path)
    for allowed in (0, 1, 2):
        attempts.begin(ONE, allowed=allowed).abandon()
    attempts.begin(OTHER, allowed=0).abandon()
    attempts.forget(ONE, before=2)
    assert [(dead.version, dead.allowed) for dead in attempts.dead(ONE)] == [(ONE, 2)]
    assert len(attempts.dead()) == 2


def test_a_disk_that_cannot_take_the_record_is_an_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = Attempts(tmp_path / "attempts")
    with pytest.raises(InputError):
        attempts.begin("../elsewhere", allowed=0)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="Not a directory"):
        Attempts(tmp_path / "file" / "attempts").begin(ONE, allowed=0)
    descriptors = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0  # noqa: PTH208, PTH112

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        attempts.begin(ONE, allowed=0)
    assert list((tmp_path / "attempts").iterdir()) == []
    assert attempts.dead() == []
    if descriptors:
        assert len(os.listdir("/proc/self/fd")) == descriptors  # noqa: PTH208


def test_very_many_records_and_those_without_a_name_are_swept(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path)
    attempts.sweep()
    for number in range(70):
        attempts.begin(f"{number:016x}", allowed=0).abandon()
        (record,) = tmp_path.glob(f"{number:016x}.*")
        os.utime(record, (number, number))
    (tmp_path / f".new-{ONE}.0.01234567").write_bytes(b"")
    (tmp_path / "somebody's own").write_bytes(b"")
    living = attempts.begin(OTHER, allowed=0)
    attempts.sweep()
    assert [dead.version for dead in attempts.dead()] == [f"{number:016x}" for number in range(6, 70)]
    assert not list(tmp_path.glob(".new-*"))
    assert (tmp_path / "somebody's own").exists()
    living.abandon()
    assert len(attempts.dead(OTHER)) == 1
