"""Items that share a path, so that a model cannot tell them apart: how many, which, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from igd_core.ids import LeafIndex

if TYPE_CHECKING:
    from igd_core.artifact.bundle import Artifact

_EXAMPLES = 5
_ITEMS = 4

Why: TypeAlias = Literal["the same text", "cut to the same beginning", "the same to the tokenizer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedPath:
    """One path that several items have.

    Attributes:
        why: what makes the items share it.
        item_ids: a few of them, the most popular first.
        titles: their titles.
        items: how many items have the path.
    """

    why: Why
    item_ids: tuple[str, ...]
    titles: tuple[str, ...]
    items: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedPaths:
    """A catalogue's shared paths: the number of ``paths`` and of ``items`` on them, and those with the most items."""

    paths: int
    items: int
    examples: tuple[SharedPath, ...]


def shared_paths(artifact: Artifact) -> SharedPaths:
    """Count shared paths, and describe the five with the most items."""
    sizes = np.diff(artifact.trie.leaf_start)
    shared = np.flatnonzero(sizes > 1)
    largest = shared[np.argsort(-sizes[shared], kind="stable")[:_EXAMPLES]]
    return SharedPaths(
        paths=len(shared),
        items=int(sizes[shared].sum()),
        examples=tuple(_shared_path(artifact, LeafIndex(leaf)) for leaf in largest.tolist()),
    )


def _shared_path(artifact: Artifact, leaf: LeafIndex) -> SharedPath:
    catalogue, counts = artifact.catalogue, artifact.manifest.counts
    rows = artifact.trie.items_of(leaf)
    rows = rows[np.argsort(-catalogue.frequency[rows], kind="stable")]
    texts = {catalogue.texts[row] for row in rows.tolist()}
    why: Why = "the same text"
    if len(texts) > 1:
        was_cut = counts.truncated and len(artifact.trie.path(leaf)) == counts.depth
        why = "cut to the same beginning" if was_cut else "the same to the tokenizer"
    shown = rows[:_ITEMS].tolist()
    return SharedPath(
        why=why,
        item_ids=tuple(catalogue.item_ids[row] for row in shown),
        titles=tuple(catalogue.titles[row] for row in shown),
        items=len(rows),
    )
