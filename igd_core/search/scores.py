"""The score kernel: from a model's logits to weighted log-probabilities of trie children.

``score = log p(token) * decoding_weight(g, alpha)`` with g the sibling-normalised information gain, and ``log p`` over
the FULL vocabulary (arXiv 2506.13229) or over the children of the node alone (`igd_core.search.normalisation`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from igd_core.catalogue.gain import decoding_weight
from igd_core.errors import ModelFault

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from igd_core.artifact import Artifact

# A block's log-softmax is a temporary. 2**20 logits (4 MiB) stay in a CPU's cache: at 1,000 rows x 49k vocabulary that
# is 2.8x faster than one call over all rows, at 10 rows the same (`tests/bench/trie.py`). A GPU wants large launches.
_BLOCK_LOGITS_CPU = 1 << 20
_BLOCK_LOGITS_CUDA = 1 << 28


@dataclass(frozen=True, slots=True, kw_only=True)
class TrieWeights:
    """What scoring needs of a trie. In host memory, since a row's children must be known before its logits are.

    Attributes:
        row_start: ``(num_nodes + 1,)`` int32.
        edge_token: ``(num_edges,)`` int32.
        sibling_gain: ``(num_edges,)`` float32.
    """

    row_start: NDArray[np.int32]
    edge_token: NDArray[np.int32]
    sibling_gain: NDArray[np.float32]

    @staticmethod
    def of(artifact: Artifact) -> TrieWeights:
        """The artifact's own arrays, mapped from its files."""
        return TrieWeights(
            row_start=artifact.trie.row_start,
            edge_token=artifact.trie.edge_token,
            sibling_gain=artifact.gains.sibling_gain,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSettings:
    """How to score each row; the rows of one call may belong to different requests.

    Attributes:
        node: ``(rows,)`` int64; trie node whose children the row scores.
        alpha: ``(rows,)`` float32.
        temperature: ``(rows,)`` float32 > 0, or None when every row's is 1.
        over_children: ``(rows,)`` bool; whether probabilities are normalised over all children of the node, whatever a
            filter admits, rather than over the vocabulary. None when no row's are.
    """

    node: NDArray[np.int64]
    alpha: NDArray[np.float32]
    temperature: NDArray[np.float32] | None = None
    over_children: NDArray[np.bool_] | None = None

    def of(self, rows: slice | NDArray[np.bool_]) -> RowSettings:
        """Those of some of the rows."""
        return RowSettings(
            node=self.node[rows],
            alpha=self.alpha[rows],
            temperature=None if self.temperature is None else self.temperature[rows],
            over_children=None if self.over_children is None else self.over_children[rows],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredChildren:
    """Children of every row, row after row.

    Attributes:
        row: ``(n,)`` int64, ascending; on the host.
        edge: ``(n,)`` int64, ascending within a row; on the host.
        logprob: ``(n,)`` float32, nats, unweighted; where the logits are.
        score: ``(n,)`` float32, weighted; where the logits are.
    """

    row: NDArray[np.int64]
    edge: NDArray[np.int64]
    logprob: torch.Tensor
    score: torch.Tensor


def child_tokens(trie: TrieWeights, nodes: NDArray[np.int64]) -> NDArray[np.int64]:
    """The tokens of all children of some nodes, ascending: all that `child_scores` reads of them over children."""
    of_node = [trie.edge_token[trie.row_start[node] : trie.row_start[node + 1]] for node in nodes]
    tokens = np.sort(np.concatenate([trie.edge_token[:0], *of_node])).astype(np.int64)
    is_new = np.append(True, tokens[1:] != tokens[:-1])[: len(tokens)]
    return np.asarray(tokens[is_new])  # np.unique takes ten times as long


@dataclass(frozen=True, slots=True)
class PartLogits:
    """Logits of some of the rows that are scored together.

    Attributes:
        logits: ``(rows, vocab)``, any float dtype, rows may be 0; read in float32, not changed.
        columns: ``(n,)`` int64, ascending; the tokens that ``logits`` are of, at least all `child_tokens`, where all
            its rows are normalised over children. None: those of the vocabulary.
    """

    logits: torch.Tensor
    columns: NDArray[np.int64] | None = None


def child_scores(logits: torch.Tensor, trie: TrieWeights, rows: RowSettings) -> ScoredChildren:
    """`child_scores_of` one part: ``(rows, vocab)`` logits."""
    return child_scores_of([PartLogits(logits)], trie, rows)


def child_scores_of(parts: Sequence[PartLogits], trie: TrieWeights, rows: RowSettings) -> ScoredChildren:
    """Score all children of each row's node.

    torch works only on the logits, where they are. The host computes which logits to read: no waiting for a GPU, and at
    10 rows, where a torch call costs more than its work, numpy is far quicker.

    Args:
        parts: logits of the rows, the first rows' first; all on one device.
        trie: the rows' trie.
        rows: node, alpha and temperature per row, of all parts.
    """
    start = trie.row_start[rows.node].astype(np.int64)
    degree = trie.row_start[rows.node + 1] - start
    end = degree.cumsum()
    row = np.repeat(np.arange(len(degree)), degree)
    edge = (start + degree - end)[row] + np.arange(len(row))
    logprob = _logprobs(parts, row, trie.edge_token[edge], rows)
    weight = decoding_weight(trie.sibling_gain[edge], rows.alpha[row])
    return ScoredChildren(row=row, edge=edge, logprob=logprob, score=logprob * put_on(weight, logprob.device))


def require_finite(scores: NDArray[np.float64]) -> None:
    """Refuse scores that cannot be ranked.

    Raises:
        ModelFault: a score is NaN or infinite.
    """
    if not np.isfinite(scores).all():
        count = int(np.count_nonzero(~np.isfinite(scores)))
        raise ModelFault(f"{count} of {scores.size} scores are not finite")


def constrain_logits_(logits: torch.Tensor, trie: TrieWeights, rows: RowSettings) -> torch.Tensor:
    """Overwrite ``logits`` with weighted child log-probabilities, and -inf for every other token; returns ``logits``.

    Args:
        logits: ``(rows, vocab)`` float32, contiguous, changed in place.
        trie: the rows' trie.
        rows: node, alpha and temperature per row.
    """
    children = child_scores(logits, trie, rows)
    place = children.row * logits.shape[1] + trie.edge_token[children.edge]
    logits.fill_(float("-inf"))
    logits.view(-1).index_copy_(0, put_on(place, logits.device), children.score.to(logits.dtype))
    return logits


def put_on(values: NDArray[Any], device: torch.device) -> torch.Tensor:
    """An array as a tensor there, without waiting for it."""
    return torch.from_numpy(values).to(device, non_blocking=True)


def _logprobs(
    parts: Sequence[PartLogits], row: NDArray[np.int64], token: NDArray[np.integer[Any]], rows: RowSettings
) -> torch.Tensor:
    """Log-probability of each child, ``(n,)`` float32, each row normalised as it asks."""
    if len(parts) == 1:
        return _logprobs_of_part(parts[0].logits, row, _columns_of(parts[0], token), rows)
    all_over_children = rows.over_children is not None and bool(rows.over_children.all())
    found = []
    first_row = first = 0
    for part in parts:
        end_row = first_row + len(part.logits)
        end = int(row.searchsorted(end_row))
        row_of, column = row[first:end] - first_row, _columns_of(part, token[first:end])
        if all_over_children:
            found.append(_gathered(part.logits, row_of, column))
        else:
            found.append(_logprobs_of_part(part.logits, row_of, column, rows.of(slice(first_row, end_row))))
        first_row, first = end_row, end
    together = torch.cat(found)
    return _over_children(together, row, rows.temperature, first_row) if all_over_children else together


def _columns_of(part: PartLogits, token: NDArray[np.integer[Any]]) -> NDArray[np.integer[Any]]:
    return token if part.columns is None else part.columns.searchsorted(token)


def _logprobs_of_part(
    logits: torch.Tensor, row: NDArray[np.int64], column: NDArray[np.integer[Any]], rows: RowSettings
) -> torch.Tensor:
    over = rows.over_children
    if over is not None and over.all():
        return _over_children(_gathered(logits, row, column), row, rows.temperature, len(logits))
    if over is None or not over.any():
        return _gather_log_softmax(logits, row, column, rows.temperature)
    result = torch.empty(len(row), dtype=torch.float32, device=logits.device)
    for chosen in (over, ~over):
        mine, renumbered = np.flatnonzero(chosen[row]), chosen.cumsum() - 1
        part = logits.index_select(0, put_on(np.flatnonzero(chosen), logits.device))
        found = _logprobs_of_part(part, renumbered[row[mine]], column[mine], rows.of(chosen))
        result.index_copy_(0, put_on(mine, logits.device), found)
    return result


def _gathered(logits: torch.Tensor, row: NDArray[np.int64], column: NDArray[np.integer[Any]]) -> torch.Tensor:
    """``logits[row, column]``, float32."""
    return logits.reshape(-1).index_select(0, put_on(row * logits.shape[1] + column, logits.device)).float()


def _over_children(
    values: torch.Tensor, row: NDArray[np.int64], temperature: NDArray[np.float32] | None, num_rows: int
) -> torch.Tensor:
    """Log-softmax of the logits of each row's children among themselves, ``(n,)`` float32."""
    of_row = put_on(row, values.device)
    if temperature is not None:
        values = values / put_on(temperature, values.device)[of_row]
    highest, rest = log_sum_exp_of_groups(values, of_row, num_rows)
    return values - highest[of_row] - rest[of_row]


def log_sum_exp_of_groups(
    values: torch.Tensor, group: torch.Tensor, num_groups: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """``ln sum exp`` of each group's values, in two parts that add up to it: the highest value, and the rest.

    Args:
        values: ``(n,)`` real.
        group: ``(n,)`` int64, the group of each.
        num_groups: how many there are; both parts are -inf for one without values.

    Returns:
        ``(num_groups,)`` twice; gradients flow through the rest.
    """
    none = torch.full((num_groups,), float("-inf"), dtype=values.dtype, device=values.device)
    highest = none.scatter_reduce(0, group, values.detach(), "amax")
    total = torch.zeros_like(highest).index_add(0, group, (values - highest[group]).exp())
    return highest, total.log()


def _gather_log_softmax(
    logits: torch.Tensor,
    row: NDArray[np.int64],
    token: NDArray[np.integer[Any]],
    temperature: NDArray[np.float32] | None,
) -> torch.Tensor:
    """``log_softmax(logits / temperature)[row, token]``, float32, without a result the size of ``logits``."""
    num_rows, vocab = logits.shape
    block = max(1, (_BLOCK_LOGITS_CUDA if logits.is_cuda else _BLOCK_LOGITS_CPU) // vocab)
    place = put_on(row * vocab + token, logits.device)
    divisor = None if temperature is None else put_on(temperature, logits.device)
    firsts = range(0, num_rows, block)
    if len(firsts) <= 1:
        return _log_softmax(logits, divisor).view(-1).index_select(0, place)
    bounds = [*np.searchsorted(row, firsts).tolist(), len(row)]
    gathered = torch.empty(len(row), dtype=torch.float32, device=logits.device)
    for first, begin, end in zip(firsts, bounds[:-1], bounds[1:], strict=True):
        rows = slice(first, first + block)
        part = _log_softmax(logits[rows], None if divisor is None else divisor[rows])
        gathered[begin:end] = part.view(-1).index_select(0, place[begin:end] - first * vocab)
    return gathered


def _log_softmax(logits: torch.Tensor, temperature: torch.Tensor | None) -> torch.Tensor:
    wide = logits.float()
    return torch.log_softmax(wide if temperature is None else wide / temperature[:, None], dim=-1)
