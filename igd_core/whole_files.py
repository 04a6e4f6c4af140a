"""Write folders and files atomically, and durably: they survive a crash."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import BinaryIO

    from matplotlib.figure import Figure

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_OF_RUST = re.compile(r"\(os error (\d+)\)")
_LITTLE = 1 << 20
"""Bytes left on a disk that is full: what was being written may not fill the last of them."""


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Within the block, that the disk is full or failed is said of ``path``: the system does not know what it wrote.

    Raises:
        OSError: the disk is full or failed; also where a library says so in an error of its own.
    """
    try:
        yield
    except Exception as error:
        number = disk_errno(error, path.parent)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def disk_errno(error: Exception, folder: Path) -> int | None:
    """The system's number for what is wrong with the disk, where ``error`` means that; None where it does not.

    Args:
        error: of the system, or of a library that wrote.
        folder: where it wrote to: torch does not say why it could not write, so it is looked whether that is full.
    """
    if isinstance(error, OSError):
        at_fault = _FULL if error.filename is not None else _FULL | {errno.EIO}
        return error.errno if error.errno in at_fault else None
    if (told := _OF_RUST.search(str(error))) is not None:  # safetensors, tokenizers
        return int(told[1]) if int(told[1]) in _FULL else None
    if isinstance(error, RuntimeError) and "inline_container" in str(error):
        with contextlib.suppress(OSError):
            if shutil.disk_usage(folder).free < _LITTLE:
                return errno.ENOSPC
    return None


@contextlib.contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """An empty folder to fill; it replaces ``target`` when the block ends without an error.

    A link is followed: the folder that it leads to is replaced, and the link stays.
    """
    target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        with naming(target):
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
def replaced_file(path: Path) -> Iterator[io.TextIOWrapper]:
    """A text file to write, in UTF-8; it replaces ``path`` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = str(path.parent / f".{path.name}-{secrets.token_hex(8)}")
    # Not `mkstemp`, whose files nobody else may read: who writes is often not who reads.
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with naming(path), os.fdopen(descriptor, "w", encoding="utf-8") as file:
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


def write_figure(figure: Figure, path: Path | BinaryIO, *, dpi: int) -> None:
    """Replace ``path`` by a picture, of the kind that its name says."""
    if not isinstance(path, Path):
        figure.savefig(path, dpi=dpi)
        return
    picture = io.BytesIO()
    figure.savefig(picture, dpi=dpi, format=path.suffix.removeprefix(".") or None)
    with replaced_file(path) as file:
        file.buffer.write(picture.getvalue())


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
