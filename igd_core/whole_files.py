"""Write folders and files atomically, and durably: they survive a crash."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@contextlib.contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """An empty folder to fill; it replaces ``target`` when the block ends without an error.

    A link is followed: the folder that it leads to is replaced, and the link stays.
    """
    target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        (scratch / "new").mkdir()
        yield scratch / "new"
        for path in (scratch / "new").rglob("*"):
            if path.is_file():
                sync(path)
        if target.exists():
            target.rename(scratch / "old")
        (scratch / "new").rename(target)
        sync(target.parent)
    except BaseException:  # also an interrupt must not leave the old folder in the scratch folder
        if (scratch / "old").exists() and not target.exists():
            (scratch / "old").rename(target)
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def replaced_file(path: Path) -> Iterator[IO[str]]:
    """A text file to write, in UTF-8; it replaces ``path`` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = str(path.parent / f".{path.name}-{secrets.token_hex(8)}")
    # Not `mkstemp`, whose files nobody else may read: who writes is often not who reads.
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            yield file
            sync_file(file)
        os.replace(name, path)  # noqa: PTH105 - atomic, and `name` is text
    except BaseException:
        os.unlink(name)  # noqa: PTH108
        raise


def write_json(path: Path, data: Mapping[str, Any], *, dense: bool = False) -> None:
    """Replace ``path`` by JSON; a reader sees the old file or the new one. ``dense``: no line for each element."""
    with replaced_file(path) as file:
        json.dump(data, file, indent=None if dense else 1, separators=(",", ":") if dense else None)
        file.write("\n")


def sync_file(file: IO[Any]) -> None:
    """Sync an open file's content to the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Sync a file's content, or the names in a folder, to the disk.

    Raises:
        OSError: it cannot be opened, or the disk failed.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
