"""What a manifest counts: the files of a bundle, and the sizes of its arrays."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PartRecord:
    """A file of the bundle: its ``bytes``, and the ``sha256`` (hex) of them."""

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
