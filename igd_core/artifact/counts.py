"""What a manifest counts: a bundle's files, and the sizes of its arrays."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PartRecord:
    """A file of the bundle: ``sha256`` (hex) over its ``bytes`` bytes."""

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Sizes, checked against the arrays on load. ``cold`` items have no interaction, ``truncated`` ones a cut path."""

    items: int
    leaves: int
    nodes: int
    edges: int
    depth: int
    cold: int
    truncated: int
