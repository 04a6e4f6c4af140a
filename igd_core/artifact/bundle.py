"""An artifact in memory: immutable, shared by all requests to its version."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from igd_core.artifact.manifest import SCORER_PART
from igd_core.catalogue.gain import leaf_prior_of
from igd_core.catalogue.items import SharedTitles, prior

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from igd_core.artifact.manifest import Manifest
    from igd_core.catalogue.gain import InfoGainTable
    from igd_core.catalogue.items import Catalogue
    from igd_core.catalogue.trie import TokenTrie
    from igd_core.ids import ItemIndex
    from igd_core.scorers.blended import BlendedScorer
    from igd_core.scorers.record import ScorerPart
    from igd_core.scorers.sasrec import SASRecScorer
    from igd_core.scorers.sparse import SparseScorer


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """Everything that serving a catalogue needs but the model.

    Attributes:
        version: content hash.
        manifest: counts, settings, prompt template, tokenizer fingerprint.
        catalogue: items, titles, metadata.
        trie: token paths.
        gains: information gain per edge.
        leaf_of_item: ``(num_items,)`` int32.
        leaf_prior: ``(num_leaves,)`` float64; share of interactions, smoothed as the manifest says.
        shares_path: a byte for each item, 1 where another item has the same path; read in every request, faster than an
            array.
        scorer: how likely each item comes next; None where the artifact holds none.
        shared_titles: which items share a title; None where titles spell the paths, so that such items share a path
            too.
    """

    version: str
    manifest: Manifest
    catalogue: Catalogue
    trie: TokenTrie
    gains: InfoGainTable
    leaf_of_item: NDArray[np.int32]
    leaf_prior: NDArray[np.float64]
    shares_path: bytes
    scorer: SparseScorer | SASRecScorer | BlendedScorer | None = None
    shared_titles: SharedTitles | None = None

    @staticmethod
    def assemble(
        manifest: Manifest,
        catalogue: Catalogue,
        trie: TokenTrie,
        gains: InfoGainTable,
        scorer: ScorerPart | None = None,
    ) -> Artifact:
        """Join the parts and derive what follows from them; ``scorer`` is there where the manifest tells of one."""
        leaf_prior = leaf_prior_of(trie, prior(catalogue.frequency, manifest.smoothing))
        leaf_of_item = trie.leaf_of_item()
        return Artifact(
            version=manifest.version,
            manifest=manifest,
            catalogue=catalogue,
            trie=trie,
            gains=gains,
            leaf_of_item=leaf_of_item,
            leaf_prior=leaf_prior,
            shares_path=(np.diff(trie.leaf_start) > 1)[leaf_of_item].tobytes(),
            scorer=_scorer(manifest, scorer),
            shared_titles=None if catalogue.texts is catalogue.titles else SharedTitles.of_titles(catalogue.titles),
        )

    def of_same_path_or_title(self, items: Sequence[int]) -> set[int]:
        """Rows of all items that share the path or the title of one of ``items``, which no user can tell apart.

        ``items`` themselves are included.
        """
        found = {*items}
        if self.shared_titles is not None:
            for item in items:
                found.update(self.shared_titles.of(self.catalogue.titles, item))
        # Memoryviews: Python reads their numbers faster than NumPy's.
        leaf_of_item, trie = self.leaf_of_item.data, self.trie
        leaf_start, leaf_items = trie.leaf_start.data, trie.leaf_items.data
        for item in items:
            if self.shares_path[item]:
                leaf = leaf_of_item[item]
                found.update(leaf_items[leaf_start[leaf] : leaf_start[leaf + 1]])
        return found

    def popular_leaves(self) -> NDArray[np.int32]:
        """Leaves by falling prior, ties in catalogue order, ``(num_leaves,)`` int32; sorts all of them."""
        first_item = np.minimum.reduceat(self.trie.leaf_items, self.trie.leaf_start[:-1])
        return np.asarray(np.lexsort((first_item, -self.leaf_prior)), np.int32)

    def prompt(self, history: Sequence[ItemIndex], *, left_out: int = 0) -> list[int]:
        """Token ids of the prompt for ``history``, oldest first, without its window's oldest ``left_out`` items."""
        return self.manifest.template.build(history, self.trie, self.leaf_of_item, left_out=left_out)

    def num_left_out(self, history: Sequence[ItemIndex], context_tokens: int) -> int:
        """How many of the window's oldest items the prompt must leave out to fit a model's context.

        Room for the longest path is kept. If not even the newest item fits, that is all of the window.
        """
        template, room = self.manifest.template, context_tokens - self.trie.depth
        if template.longest(self.trie.depth) <= room:  # usually: nothing needs to be counted
            return 0
        return template.num_left_out(history, self.trie, self.leaf_of_item, max_tokens=room)


def _scorer(manifest: Manifest, part: ScorerPart | None) -> SparseScorer | SASRecScorer | BlendedScorer | None:
    if manifest.scorer is None or part is None:
        return None
    return manifest.scorer.scorer(part, sha256=manifest.parts[SCORER_PART].sha256)
