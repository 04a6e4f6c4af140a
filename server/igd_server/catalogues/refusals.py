"""Catalogue versions that could not be served, and why."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from igd_core.errors import ArtifactError, EngineError, InputError, ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from igd_server.api.schemas_catalogues import VersionRefusalReason

_MOST_KEPT = 8
_MAX_DETAIL_CHARS = 300
_REASON_OF_PART: dict[str, VersionRefusalReason] = {
    "tokenizer": "tokenizer",
    "eos": "tokenizer",
    "vocabulary": "vocabulary",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A version that was not served: why and when; ``detail`` is one line for operators."""

    version: str
    reason: VersionRefusalReason
    detail: str
    refused_at: datetime

    @staticmethod
    def of(version: str, error: Exception) -> Refusal:
        """The refusal for ``error``, which kept a version from being served."""
        reason = _reason(error)
        said = (str(error).splitlines() or [""])[0] if reason != "unforeseen" else type(error).__name__
        return Refusal(version=version, reason=reason, detail=said[:_MAX_DETAIL_CHARS], refused_at=datetime.now(UTC))


class Refusals:
    """The latest refusals of a catalogue, one a version."""

    def __init__(self) -> None:
        self._by_version: dict[str, Refusal] = {}

    def __iter__(self) -> Iterator[Refusal]:
        """The latest first."""
        return reversed(self._by_version.values())

    def __contains__(self, version: str) -> bool:
        return version in self._by_version

    def of(self, version: str) -> Refusal | None:
        """The version's refusal, if it was refused."""
        return self._by_version.get(version)

    def add(self, refusal: Refusal) -> None:
        """Add a refusal, replacing an earlier one of the same version."""
        self.forget(refusal.version)
        self._by_version[refusal.version] = refusal
        if len(self._by_version) > _MOST_KEPT:
            del self._by_version[next(iter(self._by_version))]

    def forget(self, version: str) -> None:
        """Remove a version's refusal: it is served after all."""
        self._by_version.pop(version, None)


def _reason(error: Exception) -> VersionRefusalReason:
    if isinstance(error, ArtifactError):
        part, _, said = str(error).partition(": ")
        if part == "manifest.json" and said.startswith(("not an ", "format version ")):
            return "format"
        return _REASON_OF_PART.get(part, "damaged")
    if isinstance(error, InputError):
        return "missing"
    if isinstance(error, ModelError):
        return "model"
    return "engine" if isinstance(error, EngineError) else "unforeseen"
