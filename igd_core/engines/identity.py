"""Fingerprint the content of a model's folders: a name may mean other weights tomorrow.

Engines with equal fingerprints compute the same; caches use the fingerprint, never the name.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import stat
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

from igd_core.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from types import TracebackType

# The files that loading may read: configuration, tokenizer, index and weights. Pickles and code are never read.
_PATTERNS = ("*.json", "*.safetensors")
_NOT_READ = ("manifest.json",)  # what a published model was stored with
_CHUNK_BYTES = 4 << 20
_MOST_THREADS = 8
_LIBRARIES = {"tree": ("transformers", "torch", "peft"), "vllm": ("vllm", "torch")}


def runtime_of(engine: str, *, dtype: str, device: str) -> str:
    """Data type, device and releases of libraries: ``float32 on cpu, transformers 5.1.0, torch 2.13.0``."""
    return ", ".join([f"{dtype} on {device}", *(found for name in _LIBRARIES[engine] if (found := _release_of(name)))])


def _release_of(package: str) -> str | None:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return None


class FolderDigests:
    """Hashes folders on threads of its own while a model is loaded from them: names and contents, sha256.

    ``with FolderDigests(directory, *adapters) as digests: ...load...; digests.result()``. Nothing is kept between
    starts: equal size and time of a file do not prove equal content.
    """

    def __init__(self, *folders: Path) -> None:
        """Note the files in ``folders``; hashing begins with the block.

        Raises:
            ModelError: a folder cannot be read.
        """
        self._folders = folders
        self._seen = [_state_of(folder) for folder in folders]
        self._given_up = threading.Event()
        self._pool = ThreadPoolExecutor(max_workers=min(_MOST_THREADS, os.cpu_count() or 1), thread_name_prefix="hash")
        self._digests: dict[Path, Future[bytes]] = {}

    def __enter__(self) -> Self:
        sizes = {path: size for files in self._seen for path, (size, *_) in files.items()}
        for path in sorted(sizes, key=lambda path: -sizes[path]):  # the largest first: last, it would run alone
            self._digests[path] = self._pool.submit(_sha256, path, self._given_up)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._given_up.set()
        self._pool.shutdown(cancel_futures=True)

    def files(self) -> dict[str, tuple[int, str]]:
        """Size and sha256 of each file, by name; of several folders that share a name, the last one's.

        Raises:
            ModelError: a file cannot be read, or a folder has changed since hashing began.
        """
        found = {
            path.name: (size, self._digests[path].result().hex())
            for files in self._seen
            for path, (size, *_) in files.items()
        }
        self.require_unchanged()
        return found

    def result(self) -> list[str]:
        """One digest for each folder, in order; call it when everything is loaded.

        Raises:
            ModelError: a file cannot be read, or a folder has changed since loading began.
        """
        found = [self._combined(files) for files in self._seen]
        self.require_unchanged()
        return found

    def require_unchanged(self) -> None:
        """Refuse folders that may have been read half before a change and half after it.

        Raises:
            ModelError: a folder has changed since loading began.
        """
        for folder, seen in zip(self._folders, self._seen, strict=True):
            if _state_of(folder) != seen:
                raise ModelError(f"{folder}: changed while the model was being loaded from it; start again")

    def together(self) -> str:
        """One digest of all folders; of a single folder, its own."""
        return self._combined(path for files in self._seen for path in files)

    def _combined(self, files: Iterable[Path]) -> str:
        total = hashlib.sha256()
        for path in files:
            total.update(path.name.encode() + b"\0" + self._digests[path].result())
        return total.hexdigest()


def _state_of(folder: Path) -> dict[Path, tuple[int, int, int]]:
    """Size, time of change and inode of each file that loading may read, by name."""
    try:
        found = sorted(path for pattern in _PATTERNS for path in folder.glob(pattern) if path.name not in _NOT_READ)
        states = {path: path.stat() for path in found}
    except OSError as error:
        raise ModelError(f"{error.filename}: cannot be read: {error.strerror}") from None
    for path, state in states.items():
        if not stat.S_ISREG(state.st_mode):  # a pipe would be waited for without end
            raise ModelError(f"{path}: cannot be read: no regular file")
    return {path: (state.st_size, state.st_mtime_ns, state.st_ino) for path, state in states.items()}


def _sha256(path: Path, given_up: threading.Event) -> bytes:
    digest, chunk = hashlib.sha256(), bytearray(_CHUNK_BYTES)
    try:
        with path.open("rb", buffering=0) as file:
            while (read := file.readinto(chunk)) and not given_up.is_set():
                digest.update(memoryview(chunk)[:read])  # other threads run meanwhile
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from None
    return digest.digest()
