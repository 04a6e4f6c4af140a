"""An artefact in memory: immutable, shared by all requests that began with its version."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from igd_core.catalogue import prior
from igd_core.infogain import leaf_prior_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from igd_core.artifact.manifest import Manifest
    from igd_core.catalogue import Catalogue
    from igd_core.ids import ItemIndex
    from igd_core.infogain import InfoGainTable
    from igd_core.trie import TokenTrie


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
        popular_leaves: ``(num_leaves,)`` int64; leaves by falling prior, ties in catalogue order.
        popularity_rank: ``(num_leaves,)`` int64; where each leaf stands in ``popular_leaves``.
    """

    version: str
    manifest: Manifest
    catalogue: Catalogue
    trie: TokenTrie
    gains: InfoGainTable
    leaf_of_item: NDArray[np.int32]
    leaf_prior: NDArray[np.float64]
    popular_leaves: NDArray[np.int64]
    popularity_rank: NDArray[np.int64]

    @staticmethod
    def assemble(manifest: Manifest, catalogue: Catalogue, trie: TokenTrie, gains: InfoGainTable) -> Artifact:
        """Join the parts and derive what follows from them."""
        leaf_prior = leaf_prior_of(trie, prior(catalogue.frequency, manifest.smoothing))
        first_item = np.minimum.reduceat(trie.leaf_items, trie.leaf_start[:-1])
        popular_leaves = np.lexsort((first_item, -leaf_prior))
        popularity_rank = np.empty(len(popular_leaves), dtype=np.int64)
        popularity_rank[popular_leaves] = np.arange(len(popular_leaves))
        return Artifact(
            version=manifest.version,
            manifest=manifest,
            catalogue=catalogue,
            trie=trie,
            gains=gains,
            leaf_of_item=trie.leaf_of_item(),
            leaf_prior=leaf_prior,
            popular_leaves=popular_leaves,
            popularity_rank=popularity_rank,
        )

    def prompt(self, history: Sequence[ItemIndex]) -> list[int]:
        """Token ids of the prompt for ``history``, oldest first."""
        return self.manifest.template.build(history, self.trie, self.leaf_of_item)
