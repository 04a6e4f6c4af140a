"""The best children as a table, and how many items filters leave, without a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from igd_core.engines.vllm.children import ChildChoice, tabulate_children
from igd_core.ids import ROOT, ItemIndex
from igd_core.search.query import Query
from igd_core.search.recommender import admitted
from igd_core.search.scores import RowSettings, TrieWeights, child_scores

if TYPE_CHECKING:
    from igd_core.artifact import Artifact


def test_a_table_has_each_rows_best_children_first_and_says_where_they_end(artifact: Artifact) -> None:
    trie, second = TrieWeights.of(artifact), int(artifact.trie.children(ROOT)[0]) + 1
    rows = RowSettings(node=np.array([ROOT, second]), alpha=np.array([0.2, 0.0], np.float32))
    logits = torch.randn(2, artifact.manifest.vocab_size, generator=torch.Generator().manual_seed(1))
    listed = np.zeros(1, np.int64)  # the root's first child is left out
    choice = ChildChoice(
        keep=np.array([3, 2]), only_listed=np.zeros(2, np.bool_), listed_row=listed, listed_child=listed
    )
    table = tabulate_children(logits, trie, rows, choice, width=3)
    children = child_scores(logits, trie, rows)
    for row, keep in enumerate((3, 2)):
        places = [at for at in np.flatnonzero(children.row == row).tolist() if row or at]
        best = sorted(places, key=lambda at: -float(children.score[at]))[:keep]
        tokens = [int(artifact.trie.edge_token[children.edge[at]]) for at in best]
        assert table.tokens[row].tolist() == [*tokens, *[-1] * (3 - len(tokens))]
        assert table.logprobs[row, : len(best)].tolist() == [float(children.logprob[at]) for at in best]
        assert torch.isneginf(table.logprobs[row, len(best) :]).all()


def test_items_that_filters_leave_are_counted_by_their_paths(artifact: Artifact) -> None:
    everything = Query(history=(), exclude_seen=True)
    assert admitted(everything, artifact, None) == artifact.trie.num_leaves
    allowed = tuple(ItemIndex(item) for item in range(5))
    paths = {int(artifact.leaf_of_item[item]) for item in allowed}
    assert admitted(Query(history=(), allow=allowed), artifact, None) == len(paths)
