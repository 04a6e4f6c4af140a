"""Training rows as token ids: the prompt that serving would use, and the target's path as the response.

Rows that begin alike are computed together, as a small tree of tokens: each token sees its ancestors alone and has its
own depth as position, so every loss is as in a row of its own, and shared tokens are computed once. Histories of one
user grow by one item from row to row, so this saves most tokens: 35 instead of 95 a row on Video Games, and 25 instead
of 179 on ML-100K, whose windows move in blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from igd_core.errors import DataError
from igd_core.ids import ItemIndex, NodeId
from igd_core.tuning.weights import TokenWeights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from igd_core.artifact import Artifact
    from igd_core.catalogue.gain import InfoGainTable
    from igd_core.catalogue.trie import TokenTrie
    from igd_core.datasets.rows import HistoryRows

    Int32 = NDArray[np.int32]
    Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pack:
    """Several rows as one tree of tokens, in the order of a depth-first walk.

    The tree is a list of segments: segment s holds tokens ``segment_start[s]`` up to the next segment's start, each
    the child of the one before it; its first is the child of token ``segment_parent[s]`` (-1: a root).

    Attributes:
        tokens: ``(n,)`` int32.
        depth: ``(n,)`` int32; the position of a token in its row.
        segment_start: ``(s,)`` int32, ascending, 0 first.
        segment_parent: ``(s,)`` int32.
        position: ``(m,)`` int32; the token after which a response token is predicted.
        target: ``(m,)`` int32; the response token.
        edge: ``(m,)`` int32; the trie's edge that it is.
        zero_ig: ``(m,)`` bool; whether the response token rules out no item.
        weight: ``(m,)`` float32; its weight in the loss.
        rows: number of rows.
    """

    tokens: Int32
    depth: Int32
    segment_start: Int32
    segment_parent: Int32
    position: Int32
    target: Int32
    edge: Int32
    zero_ig: NDArray[np.bool_]
    weight: Float32
    rows: int

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def is_chain(self) -> bool:
        """Whether plain causal attention is enough."""
        return len(self.segment_start) == 1

    def visible(self) -> NDArray[np.bool_]:
        """Which token sees which: ``(n, n)`` bool, row i is true at i and its ancestors."""
        size = len(self)
        seen = np.zeros((size, size), dtype=bool)
        ends = np.append(self.segment_start[1:], size)
        for start, end, parent in zip(self.segment_start, ends, self.segment_parent, strict=True):
            if parent >= 0:
                seen[start:end] = seen[parent]
            seen[start:end, start:end] = np.tri(end - start, dtype=bool)
        return seen


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Examples:
    """A file's rows, ready to be batched.

    Attributes:
        packs: the rows, grouped.
        rows: number of rows.
        row_tokens: tokens of all rows without sharing, prompts included.
        shortened: number of rows whose oldest items were left out to fit ``max_tokens``.
    """

    packs: Sequence[Pack]
    rows: int
    row_tokens: int
    shortened: int

    @property
    def tokens(self) -> int:
        """Tokens to compute."""
        return sum(len(pack) for pack in self.packs)

    @property
    def targets(self) -> int:
        """Response tokens that have a loss."""
        return sum(len(pack.target) for pack in self.packs)

    @property
    def zero_ig_share(self) -> float:
        """Share of them that rule out no item."""
        return sum(int(pack.zero_ig.sum()) for pack in self.packs) / self.targets


@dataclass(frozen=True, slots=True, kw_only=True)
class PackLimits:
    """What rows come to.

    Attributes:
        max_tokens: of a row.
        tokens: of a pack.
        rows: of a pack.
        decisions_only: leave out response tokens that have no sibling, and what is fed after the last that has one:
            normalised over children, their loss is 0.
    """

    max_tokens: int = 512
    tokens: int = 512
    rows: int = 16
    decisions_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Response:
    """A leaf's path as what is to be predicted.

    Attributes:
        ids: token ids of the whole path, EOS included.
        edges: ``(t,)`` int32, the trie's.
        gain: ``(t,)`` float32, information gain of each token, nats.
        asked: ``(m,)`` int64, places of the tokens that have a loss.
    """

    ids: list[int]
    edges: Int32
    gain: Float32
    asked: NDArray[np.int64]

    @property
    def fed(self) -> list[int]:
        """What is computed: the last token with a loss is predicted, not fed."""
        return self.ids[: self.asked[-1]]


def gain_of_response(trie: TokenTrie, gains: InfoGainTable, response: Sequence[int]) -> Float32:
    """Information gain of each token of a response, ``(len(response),)`` float32, nats.

    Exactly 0 where the set of possible items stays the same, as in the table. In a response that is not a path of the
    trie, every token gains 0 (as in arXiv 2506.13229's released implementation).
    """
    node = NodeId(0)
    gain = np.zeros(len(response), dtype=np.float32)
    for place, token in enumerate(response):
        child = trie.child(node, token)
        if child is None:
            return np.zeros(len(response), dtype=np.float32)
        node = child
        gain[place] = gains.information_gain[node - 1]
    return gain if trie.is_leaf(node) else np.zeros(len(response), dtype=np.float32)


def make_examples(artifact: Artifact, rows: HistoryRows, limits: PackLimits, weights: TokenWeights) -> Examples:
    """Tokenise every row, and group the rows.

    Raises:
        DataError: no rows, or a row that does not fit ``max_tokens`` even without a history; or a catalogue of one
            title, which leaves nothing to decide.
    """
    if not len(rows):
        raise DataError("there are no rows to tune on")
    if limits.decisions_only:
        _require_decisions(artifact)
    return _Packing(artifact, limits, weights).run(rows)


class GroupPacks:
    """Packs of one prompt and several of the catalogue's paths behind it, of which decisions alone are targets."""

    def __init__(self, artifact: Artifact) -> None:
        """Raises DataError for a catalogue of one title, which leaves nothing to decide."""
        _require_decisions(artifact)
        self._packing = _Packing(artifact, PackLimits(decisions_only=True), TokenWeights(beta=1.0))

    def pack(self, prompt: Sequence[int], leaves: NDArray[np.int64], weight: NDArray[np.float64]) -> Pack:
        """The prompt's tokens, and those of the paths; a token that several paths share is there once.

        Args:
            prompt: token ids.
            leaves: ``(g,)`` int64, distinct.
            weight: ``(g,)`` float64; of each path, for every target on it.
        """
        growing = _Growing()
        for place in np.argsort(leaves):  # the order of a depth-first walk
            response = self._packing.response(int(leaves[place]))
            targets = len(response.asked)
            growing.add(np.array([*prompt, *response.fed], dtype=np.int32), len(prompt), response)
            growing.count(np.zeros(targets, dtype=bool), np.full(targets, weight[place], dtype=np.float32))
        return growing.finish()


def _require_decisions(artifact: Artifact) -> None:
    if artifact.trie.num_leaves == 1:
        raise DataError("the catalogue has one title: normalised over children there is nothing to learn")


class _Packing:
    """Goes through the rows in the order of their items, and extends a pack while the next row begins like the last."""

    def __init__(self, artifact: Artifact, limits: PackLimits, weights: TokenWeights) -> None:
        self.artifact = artifact
        self.limits = limits
        self.weights = weights
        self.template = artifact.manifest.template
        self.responses: dict[int, _Response] = {}
        self.packs: list[Pack] = []
        self.growing: _Growing | None = None
        self.row_tokens = 0
        self.shortened = 0

    def run(self, rows: HistoryRows) -> Examples:
        windows = [self._window(rows, row) for row in range(len(rows))]
        order = range(len(rows)) if self.limits.rows == 1 else sorted(range(len(rows)), key=windows.__getitem__)
        for row in order:
            self._add(windows[row])
        if self.growing is not None:
            self.packs.append(self.growing.finish())
        return Examples(packs=self.packs, rows=len(rows), row_tokens=self.row_tokens, shortened=self.shortened)

    def _window(self, rows: HistoryRows, row: int) -> tuple[int, ...]:
        """Leaves of the history that the prompt shows, and of the target."""
        template, leaf = self.template, self.artifact.leaf_of_item
        shown = template.window([ItemIndex(item) for item in rows.history(row).tolist()])
        leaves = [int(leaf[item]) for item in shown]
        target = int(leaf[rows.item[row]])
        length = len(template.of_paths(())) + len(self.response(target).ids) - 1
        lengths = [len(template.bullet_ids) + len(self.response(item).ids) - 1 for item in leaves]
        over = length + sum(lengths) - self.limits.max_tokens
        if over > 0:
            self.shortened += 1
            while over > 0 and leaves:
                over -= lengths.pop(0)
                leaves.pop(0)
            if over > 0:
                raise DataError(
                    f"max_tokens: {self.limits.max_tokens}; row {row + 1} takes {length} tokens without a history"
                )
        return (*leaves, target)

    def response(self, leaf: int) -> _Response:
        """That of a leaf."""
        if leaf not in self.responses:
            trie = self.artifact.trie
            edges = np.array(trie.edges_to(NodeId(int(trie.leaf_node[leaf]))), dtype=np.int32)
            ids: list[int] = trie.edge_token[edges].tolist()
            parent = trie.parents(edges + 1)
            branching = trie.row_start[parent + 1] - trie.row_start[parent] > 1
            self.responses[leaf] = _Response(
                ids=ids,
                edges=edges,
                gain=gain_of_response(trie, self.artifact.gains, ids),
                asked=np.flatnonzero(branching) if self.limits.decisions_only else np.arange(len(ids)),
            )
        return self.responses[leaf]

    def _add(self, leaves: tuple[int, ...]) -> None:
        response = self.response(leaves[-1])
        prompt_ids = self.template.of_paths(self.response(leaf).ids for leaf in leaves[:-1])
        tokens, prompt = np.array([*prompt_ids, *response.fed], dtype=np.int32), len(prompt_ids)
        self.row_tokens += len(tokens)
        if self.growing is None or not self.growing.takes(tokens, prompt, self.limits):
            if self.growing is not None:
                self.packs.append(self.growing.finish())
            self.growing = _Growing()
        self.growing.add(tokens, prompt, response)
        asked = response.asked
        self.growing.count((response.gain == 0)[asked], self.weights.of_response(response.gain)[asked])


class _Growing:
    """A pack to which rows are being added; `path` is the last row's tokens, `place` their positions in the pack."""

    def __init__(self) -> None:
        self.path = np.empty(0, dtype=np.int32)
        self.place = np.empty(0, dtype=np.int32)
        self.tokens: list[Int32] = []
        self.depth: list[Int32] = []
        self.starts: list[int] = []
        self.parents: list[int] = []
        self.position: list[Int32] = []
        self.target: list[Int32] = []
        self.edge: list[Int32] = []
        self.zero_ig: list[NDArray[np.bool_]] = []
        self.weight: list[Float32] = []
        self.size = 0

    def takes(self, tokens: Int32, prompt: int, limits: PackLimits) -> bool:
        """Whether the row shares half of its prompt with the last one, and fits."""
        if len(self.target) >= limits.rows:
            return False
        shared = self._shared(tokens)
        return 2 * shared >= prompt and self.size + len(tokens) - shared <= limits.tokens

    def add(self, tokens: Int32, prompt: int, response: _Response) -> None:
        shared = self._shared(tokens)
        new = len(tokens) - shared
        if new:
            parent = int(self.place[shared - 1]) if shared else -1
            if not self.tokens or parent != self.size - 1:
                self.starts.append(self.size)
                self.parents.append(parent)
            self.tokens.append(tokens[shared:])
            self.depth.append(np.arange(shared, len(tokens), dtype=np.int32))
        self.place = np.concatenate([self.place[:shared], np.arange(self.size, self.size + new, dtype=np.int32)])
        self.path = tokens
        self.size += new
        self.position.append(self.place[prompt - 1 + response.asked])
        self.target.append(np.array(response.ids, dtype=np.int32)[response.asked])
        self.edge.append(response.edges[response.asked])

    def count(self, zero_ig: NDArray[np.bool_], weight: Float32) -> None:
        """Add weights and zero-IG flags of the added row's response tokens that have a loss."""
        self.zero_ig.append(zero_ig)
        self.weight.append(weight)

    def finish(self) -> Pack:
        return Pack(
            tokens=np.concatenate(self.tokens),
            depth=np.concatenate(self.depth),
            segment_start=np.array(self.starts, dtype=np.int32),
            segment_parent=np.array(self.parents, dtype=np.int32),
            position=np.concatenate(self.position),
            target=np.concatenate(self.target),
            edge=np.concatenate(self.edge),
            zero_ig=np.concatenate(self.zero_ig),
            weight=np.concatenate(self.weight),
            rows=len(self.target),
        )

    def _shared(self, tokens: Int32) -> int:
        """How many leading tokens ``tokens`` shares with the last row."""
        length = min(len(tokens), len(self.path))
        differs = tokens[:length] != self.path[:length]
        return int(differs.argmax()) if differs.any() else length
