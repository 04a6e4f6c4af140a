"""A published model: a checkpoint or a LoRA adapter in the store, which versions of catalogues name.

A model is stored as a bundle, like a version of a catalogue, under a name that no catalogue can have: its files, all
safetensors and JSON, and a manifest whose hash is its version. No pointer names it: the version of a catalogue does,
so that catalogue and model change, and go back, together.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, get_args

from igd_core.artifact.counts import PartRecord
from igd_core.artifact.manifest import MAX_MANIFEST_BYTES, VERSION_LENGTH
from igd_core.errors import ArtifactError
from igd_core.store.names import MODELS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from igd_core.store.base import ArtifactStore

FORMAT = "igd-model"
FORMAT_VERSION = 1
MAX_FILES = 512
MAX_TEXT_BYTES = 256 << 20
"""Of one JSON file; the largest tokenizers have some 30 MiB."""
MAX_MODEL_BYTES = 1 << 40

ModelKind: TypeAlias = Literal["checkpoint", "adapter"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\.(json|safetensors)")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelManifest:
    """What a published model is, and the sha256 of its files.

    Attributes:
        name: for people, answers and metrics.
        kind: a whole ``checkpoint``, or an ``adapter`` on one.
        base: of an adapter, the `content` of the checkpoint that it was tuned on; empty for a checkpoint.
        tokenizer_sha256: of a checkpoint, its tokenizer's fingerprint; empty for an adapter, which has its base's.
        parts: the files, by name.
    """

    name: str
    kind: ModelKind
    base: str
    tokenizer_sha256: str
    parts: dict[str, PartRecord]

    model: ClassVar[None] = None
    """No model is served with another; versions of catalogues are."""

    @property
    def version(self) -> str:
        """Content hash: the first 16 hex digits of sha256 over every field, as sorted JSON."""
        return hashlib.sha256(_dense(self._body())).hexdigest()[:VERSION_LENGTH]

    @property
    def content(self) -> str:
        """sha256 over names and contents of the files, as `igd_core.engines.identity.FolderDigests` makes it."""
        total = hashlib.sha256()
        for name in sorted(self.parts):
            total.update(name.encode() + b"\0" + bytes.fromhex(self.parts[name].sha256))
        return total.hexdigest()

    @property
    def size_bytes(self) -> int:
        """Of all files together."""
        return sum(part.bytes for part in self.parts.values())

    def to_bytes(self) -> bytes:
        """The bytes of the manifest file."""
        body = {"format": FORMAT, "format_version": FORMAT_VERSION, "version": self.version, **self._body()}
        return json.dumps(body, indent=2, sort_keys=True).encode() + b"\n"

    def _body(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_bytes(data: bytes) -> ModelManifest:
        """Parse and check a manifest file.

        Raises:
            ArtifactError: no model's, of another format version, out of bounds, or altered.
        """
        body = read_body(data)
        if body.pop("format", None) != FORMAT:
            raise ArtifactError(f"{_MANIFEST}: not an {FORMAT}")
        found = body.pop("format_version", None)
        if found != FORMAT_VERSION:
            raise ArtifactError(
                f"{_MANIFEST}: format version {found!r} of a model; this release reads {FORMAT_VERSION}"
            )
        body.pop("version", None)
        try:
            parts = {
                name: PartRecord(sha256=part["sha256"], bytes=part["bytes"]) for name, part in body.pop("parts").items()
            }
            manifest = ModelManifest(parts=parts, **body)
            _check(manifest)
            written = manifest.to_bytes()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(f"{_MANIFEST}: {type(error).__name__}: {error}") from None
        if data != written:
            raise ArtifactError(f"{_MANIFEST}: altered; not as model {manifest.version} was written")
        return manifest


def read_body(data: bytes) -> dict[str, Any]:
    """The JSON object of a manifest.

    Raises:
        ArtifactError: too long, or no JSON object.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise ArtifactError(f"{_MANIFEST}: {len(data)} bytes; at most {MAX_MANIFEST_BYTES} are read")
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{_MANIFEST}: not JSON ({error})") from None
    if not isinstance(body, dict):
        raise ArtifactError(f"{_MANIFEST}: not a JSON object")
    return body


@contextlib.contextmanager
def staged(files: Path, names: Sequence[str], manifest: bytes) -> Iterator[Path]:
    """A folder for `ArtifactStore.add`: links to files of the folder ``files``, and a manifest. Gone after the block.

    Raises:
        OSError: the links cannot be made.
    """
    with tempfile.TemporaryDirectory(prefix="igd-publish-") as scratch:
        folder = Path(scratch)
        for name in names:
            (folder / name).symlink_to((files / name).resolve())
        (folder / _MANIFEST).write_bytes(manifest)
        yield folder


async def prune_models(store: ArtifactStore) -> Sequence[str]:
    """Delete models that no stored version of any catalogue names, and that nobody is publishing; returns which."""
    named = {
        stored.model
        for catalogue in await store.catalogues()
        for stored in await store.versions(catalogue)
        if stored.model is not None
    }
    return await store.prune(MODELS, keep=0, spare=named)


def is_model_name(name: str) -> bool:
    """Whether a model may have this name."""
    return _NAME.fullmatch(name) is not None


def check_files(parts: dict[str, PartRecord]) -> None:
    """Check names, sizes and hashes of a model's files.

    Raises:
        ValueError: out of bounds.
    """
    if not 1 <= len(parts) <= MAX_FILES:
        raise ValueError(f"{len(parts)} files; 1 to {MAX_FILES} are stored")
    for name, part in parts.items():
        if not _FILE.fullmatch(name) or name == _MANIFEST:
            raise ValueError(f"{name[:80]!r} is no file of a model: only .json and .safetensors are")
        if type(part.bytes) is not int or part.bytes < 1 or not _SHA256.fullmatch(part.sha256):
            raise ValueError(f"{name}: {part}")
        if name.endswith(".json") and part.bytes > MAX_TEXT_BYTES:
            raise ValueError(f"{name}: {part.bytes} bytes; at most {MAX_TEXT_BYTES} are read")
    if (size := sum(part.bytes for part in parts.values())) > MAX_MODEL_BYTES:
        raise ValueError(f"{size} bytes; at most {MAX_MODEL_BYTES} are stored")


def _check(manifest: ModelManifest) -> None:
    check_files(manifest.parts)
    if not is_model_name(manifest.name):
        raise ValueError(f"name is {manifest.name!r}")
    if manifest.kind not in get_args(ModelKind):
        raise ValueError(f"kind is {manifest.kind!r}")
    told, other = manifest.tokenizer_sha256, manifest.base
    if manifest.kind == "adapter":
        told, other = other, told
    if not _SHA256.fullmatch(told) or other:
        raise ValueError(f"base is {manifest.base!r} and tokenizer_sha256 {manifest.tokenizer_sha256!r}")


def _dense(body: dict[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
