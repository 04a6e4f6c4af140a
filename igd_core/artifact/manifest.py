"""The manifest of an artifact: what it was built with, its files by sha256, and its version, a hash of all that."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass
from typing import Any

from igd_core.artifact.bounds import check_sizes
from igd_core.artifact.counts import Counts, PartRecord
from igd_core.catalogue.prompts import PromptTemplate
from igd_core.errors import ArtifactError, CatalogueError
from igd_core.limits import DEFAULT_BEAMS, MAX_BEAMS
from igd_core.scorers.record import ScorerRecord

FORMAT = "igd-artifact"
FORMAT_VERSION = 1
FORMAT_VERSION_WITH_SCORER = 2
"""Of those that hold a scorer, so that a release from before them refuses what it would serve without it."""
FORMAT_VERSION_WITH_MODEL = 3
"""Of those that name a published model, so that a release from before them refuses what it would serve with another."""
MAX_MANIFEST_BYTES = 1 << 20
PART_NAMES = ("trie.safetensors", "infogain.safetensors", "items.parquet")
"""Of every artifact."""
SCORER_PART = "scorer.safetensors"
VERSION_LENGTH = 16
_VERSION = re.compile(rf"[0-9a-f]{{{VERSION_LENGTH}}}")
_SCALARS = {
    "name": str,
    "tokenizer_sha256": str,
    "vocab_size": int,
    "eos_id": int,
    "model_id": str,
    "alpha": float,
    "smoothing": float,
    "path_column": str,
    "entropy_nats": float,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """All of a bundle but its arrays, and the sha256 of the files that hold those.

    Attributes:
        name: the catalogue's name, for people.
        tokenizer_sha256: fingerprint of the tokenizer that made the paths.
        vocab_size: one more than the highest token id of that tokenizer.
        eos_id: last token of every path.
        model_id: the checkpoint that the artifact is meant for; empty if any checkpoint with this tokenizer will do.
        alpha: decoding weight used when a request names none.
        smoothing: interactions added to every item's count in the prior.
        path_column: the column that spells items.
        entropy_nats: entropy of the catalogue's prior, H(root).
        template: the prompt's token ids.
        counts: sizes.
        parts: the files, by name.
        scorer: the item scorer that the artifact holds; left out where it has none.
        beams: width of the search used when a request names none; left out where it is `DEFAULT_BEAMS`.
        model: the published model to serve it with, by its version (`igd_core.store.published_models`); left out where
            that is the server's own.
    """

    name: str
    tokenizer_sha256: str
    vocab_size: int
    eos_id: int
    model_id: str
    alpha: float
    smoothing: float
    path_column: str
    entropy_nats: float
    template: PromptTemplate
    counts: Counts
    parts: dict[str, PartRecord]
    scorer: ScorerRecord | None = None
    beams: int = DEFAULT_BEAMS
    model: str | None = None

    @property
    def version(self) -> str:
        """Content hash: the first 16 hex digits of sha256 over every field of this manifest, as sorted JSON.

        The fields hold the sha256 of each file (`parts`), so the hash covers items, trie and gains as well. Equal
        bundles have equal versions; whatever changes in a bundle changes its version.
        """
        return hashlib.sha256(_canonical(self._body())).hexdigest()[:VERSION_LENGTH]

    def to_bytes(self) -> bytes:
        """The bytes of the manifest file."""
        body = {"format": FORMAT, "format_version": self._format_version, "version": self.version, **self._body()}
        return json.dumps(body, indent=2, sort_keys=True).encode() + b"\n"

    @property
    def _format_version(self) -> int:
        if self.model is not None:
            return FORMAT_VERSION_WITH_MODEL
        return FORMAT_VERSION if self.scorer is None else FORMAT_VERSION_WITH_SCORER

    def _body(self) -> dict[str, Any]:
        body = {**asdict(self), "template": self.template.to_json()}
        if self.scorer is None:  # as it was before there were any: such artifacts keep their versions
            del body["scorer"]
        else:
            body["scorer"] = self.scorer.to_json()
        if self.beams == DEFAULT_BEAMS:  # likewise
            del body["beams"]
        if self.model is None:  # likewise
            del body["model"]
        return body

    @staticmethod
    def from_bytes(data: bytes) -> Manifest:
        """Parse and check a manifest file.

        Raises:
            ArtifactError: not an artifact, another format version, incomplete, or altered (the version does not match).
        """
        body = _parse(data)
        if body.pop("format", None) != FORMAT:
            raise ArtifactError(f"manifest.json: not an {FORMAT}")
        found = body.pop("format_version", None)
        if found not in (FORMAT_VERSION, FORMAT_VERSION_WITH_SCORER, FORMAT_VERSION_WITH_MODEL):
            read = f"{FORMAT_VERSION} to {FORMAT_VERSION_WITH_MODEL}"
            raise ArtifactError(f"manifest.json: format version {found!r}; this release reads {read}")
        version = body.pop("version", None)
        try:
            _check_scalars(body)
            counts = Counts(**{key: int(value) for key, value in body.pop("counts").items()})
            parts = {
                str(name): PartRecord(sha256=str(part["sha256"]), bytes=int(part["bytes"]))
                for name, part in body.pop("parts").items()
            }
            scorer = ScorerRecord(**body.pop("scorer")) if "scorer" in body else None
            manifest = Manifest(
                counts=counts,
                parts=parts,
                template=PromptTemplate.from_json(body.pop("template")),
                scorer=scorer,
                **body,
            )
            computed = manifest.version
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, CatalogueError) as error:
            raise ArtifactError(f"manifest.json: {type(error).__name__}: {error}") from None
        if version != computed:
            raise ArtifactError(f"manifest.json: altered; it says version {version!r}, its content is {computed!r}")
        if data != manifest.to_bytes():  # white space, and whatever else JSON parsing forgives
            raise ArtifactError(f"manifest.json: altered; not as version {version!r} was written")
        expected = {*PART_NAMES, *(() if scorer is None else (SCORER_PART,))}
        if set(parts) != expected:
            raise ArtifactError(f"manifest.json: parts are {sorted(parts)}, expected {sorted(expected)}")
        check_sizes(counts, parts, scorer=scorer)
        return manifest


def _parse(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_MANIFEST_BYTES:
        raise ArtifactError(f"manifest.json: {len(data)} bytes; at most {MAX_MANIFEST_BYTES} are read")
    try:
        body = json.loads(data)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ArtifactError(f"manifest.json: not JSON ({error})") from None
    if not isinstance(body, dict):
        raise ArtifactError("manifest.json: not a JSON object")
    return body


def _check_scalars(body: dict[str, Any]) -> None:
    for name, kind in _SCALARS.items():
        value = body[name]
        if type(value) is not kind and (type(value), kind) != (int, float):
            raise TypeError(f"{name} is {value!r}")
    if not (0.0 <= body["alpha"] <= 1.0 and body["smoothing"] >= 0.0):
        raise ValueError(f"alpha is {body['alpha']}, smoothing is {body['smoothing']}")
    beams = body.get("beams", DEFAULT_BEAMS)
    if type(beams) is not int or not 1 <= beams <= MAX_BEAMS:
        raise ValueError(f"beams is {beams!r}")
    model = body.get("model")
    if model is not None and not (isinstance(model, str) and _VERSION.fullmatch(model)):
        raise ValueError(f"model is {model!r}")
    template = body["template"]
    for token in (*template["prefix_ids"], *template.get("bullet_ids", ()), *template["suffix_ids"]):
        if not 0 <= token < body["vocab_size"]:
            raise ValueError(f"template: token id {token} is outside the vocabulary of {body['vocab_size']}")


def _canonical(body: dict[str, Any]) -> bytes:
    if not all(math.isfinite(value) for value in body.values() if isinstance(value, float)):
        raise ValueError("a number is not finite")
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
