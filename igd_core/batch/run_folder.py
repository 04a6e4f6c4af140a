"""A run's folder: what the run is made of, whether it is complete, and who may write it.

``manifest.json`` names all that decides the answers: files, artifact, model, options. A run that was cut off goes on
only if all of it is the same; what differs is refused by its name.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from typing import TYPE_CHECKING, Any

from igd_core.errors import DataError, ModelError
from igd_core.locked_folders import LOCK_FILE
from igd_core.whole_files import replaced_file, write_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

FORMAT, FORMAT_VERSION = "igd-batch", 1
_MANIFEST, _CLAIM = "manifest.json", ".model-"


def digest_of(identity: Mapping[str, Any]) -> str:
    """Digest of all that decides a run's answers, 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


class RunFolder:
    """The folder ``--out``: ``recommendations/``, ``rejected.jsonl``, ``manifest.json``; meanwhile ``staging/``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def recommendations(self) -> Path:
        """Folder of the answers."""
        return self.path / "recommendations"

    @property
    def staging(self) -> Path:
        """Folder of the chunks of the input."""
        return self.path / "staging"

    @property
    def side_file(self) -> Path:
        """Rows that got nothing, as JSON lines."""
        return self.path / "rejected.jsonl"

    def begin(self, identity: Mapping[str, Any]) -> dict[str, Any] | None:
        """Begin a run, or go on with it; its result if it is complete, else None.

        A run without a part, whose input or options were wrong, gives way to another one.

        Raises:
            DataError: the folder holds another run, which is told by the first name that differs, or other files.
        """
        manifest = self.manifest()
        if manifest is None:
            if other := sorted(path.name for path in self.path.iterdir() if path.name != LOCK_FILE):
                raise DataError(f"out: {self.path} holds {other[0]!r}, and no run of igd batch; choose an empty folder")
        elif manifest["run"] == identity or manifest["result"] is not None or any(self.recommendations.glob("part-*")):
            _require_same(self.path, manifest["run"], identity)
            result: dict[str, Any] | None = manifest["result"]
            return result
        for claim in self.path.glob(f"{_CLAIM}*"):
            claim.unlink(missing_ok=True)
        self.write_manifest(identity, None)
        return None

    def write_manifest(self, identity: Mapping[str, Any], result: Mapping[str, Any] | None) -> None:
        """Say what the run is made of, and, with a result, that every row is answered or in the side file."""
        write_json(
            self.path / _MANIFEST,
            {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "complete": result is not None,
                "run": dict(identity),
                "result": result,
            },
        )

    @contextlib.contextmanager
    def written(self) -> Iterator[None]:
        """Name the folder where the system does not say which file could not be written.

        Raises:
            DataError: the disk is full, or failed.
        """
        try:
            yield
        except OSError as error:
            if error.filename is not None or error.errno is None or isinstance(error, ConnectionError):
                raise
            raise DataError(f"out: {self.path}: {os.strerror(error.errno)}; the same command goes on") from error

    def manifest(self) -> dict[str, Any] | None:
        """The manifest; None where there is none.

        Raises:
            DataError: it cannot be read, or is of another format.
        """
        path = self.path / _MANIFEST
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            raise DataError(f"{path}: cannot be read") from None
        if found.get("format") != FORMAT or found.get("format_version") != FORMAT_VERSION:
            raise DataError(f"{path}: no {FORMAT} manifest of version {FORMAT_VERSION}")
        return found

    def claim_model(self, fingerprint: str) -> None:
        """Hold the run to one fingerprint of the model, whichever process comes first.

        The manifest knows the files of the model. A fingerprint has the device, the data type and the libraries of the
        machine that runs it, too, and scores of two of them differ in their last digits or more.

        Raises:
            ModelError: other answers of the run are of another fingerprint.
        """
        claim = self.path / f"{_CLAIM}{fingerprint}"
        is_new = not claim.exists()
        claim.touch()
        claimed = self.fingerprints()
        if claimed == [fingerprint]:
            return
        if is_new:
            claim.unlink(missing_ok=True)
        other = next(each for each in claimed if each != fingerprint)
        raise ModelError(
            f"model_fingerprint: {fingerprint} here, and {other} in other answers of this run: machines or sessions "
            "with another device, dtype or releases of libraries; make them the same, or choose another --out"
        )

    def fingerprints(self) -> list[str]:
        """Of the model, in the answers so far."""
        return sorted(path.name.removeprefix(_CLAIM) for path in self.path.glob(f"{_CLAIM}*"))

    def write_side_file(self, lines: Iterator[str]) -> int:
        """Write the rejected rows, each a line of JSON; returns how many."""
        written = 0
        with replaced_file(self.side_file) as file:
            for line in lines:
                file.write(line)
                written += 1
        return written

    def rejected(self) -> int | None:
        """Lines of the side file; None where there is none."""
        try:
            with self.side_file.open("rb") as file:
                return sum(1 for _ in file)
        except FileNotFoundError:
            return None


def _require_same(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for name in dict.fromkeys([*wanted, *found]):
        was, now = found.get(name), wanted.get(name)
        if was == now:
            continue
        if name == "files" and was and now:
            told = _other_files(was, now)
        else:
            told = f"{name} was {_short(was)}, now it is {_short(now)}"
        raise DataError(f"out: {path} holds a run of something else: {told}; choose another --out")


def _other_files(was: Mapping[str, str], now: Mapping[str, str]) -> str:
    if gone := [name for name in was if name not in now]:
        return f"file {gone[0]!r} was there and is not now"
    if new := [name for name in now if name not in was]:
        return f"file {new[0]!r} was not there"
    changed = next(name for name in now if now[name] != was[name])
    return f"file {changed!r} has changed, or is read otherwise"


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
