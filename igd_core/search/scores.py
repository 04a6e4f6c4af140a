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


def child_scores(
    logits: torch.Tensor, trie: TrieWeights, rows: RowSettings, *, columns: NDArray[np.int64] | None = None
) -> ScoredChildren:
    """Score all children of each row's node.

    torch works only on the logits, where they are. The host computes which logits to read: no waiting for a GPU, and at
    10 rows, where a torch call costs more than its work, numpy is far quicker.

    Args:
        logits: ``(rows, vocab)``, any float dtype, rows may be 0; read in float32, not changed.
        trie: the rows' trie.
        rows: node, alpha and temperature per row.
        columns: ``(n,)`` int64, ascending; the tokens that ``logits`` are of, at least all `child_tokens`, where all
            rows are normalised over children. None: those of the vocabulary.
    """
    start = trie.row_start[rows.node].astype(np.int64)
    degree = trie.row_start[rows.node + 1] - start
    end = degree.cumsum()
    row = np.repeat(np.arange(len(degree)), degree)
    edge = (start + degree - end)[row] + np.arange(len(row))
    token = trie.edge_token[edge]
    logprob = _logprobs(logits, row, token if columns is None else np.searchsorted(columns, token), rows)
    weight = decoding_weight(trie.sibling_gain[edge], rows.alpha[row])
    return ScoredChildren(row=row, edge=edge, logprob=logprob, score=logprob * _put(weight, logits.device))


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
    logits.view(-1).index_copy_(0, _put(place, logits.device), children.score.to(logits.dtype))
    return logits


def _put(values: NDArray[Any], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(values).to(device, non_blocking=True)


def _logprobs(
    logits: torch.Tensor, row: NDArray[np.int64], token: NDArray[np.integer[Any]], rows: RowSettings
) -> torch.Tensor:
    """Log-probability of each child, ``(n,)`` float32, each row normalised as it asks."""
    over = rows.over_children
    if over is not None and over.all():
        return _log_softmax_over_children(logits, row, token, rows.temperature)
    if over is None or not over.any():
        return _gather_log_softmax(logits, row, token, rows.temperature)
    result = torch.empty(len(row), dtype=torch.float32, device=logits.device)
    for chosen, normalised in ((over, _log_softmax_over_children), (~over, _gather_log_softmax)):
        mine, renumbered = np.flatnonzero(chosen[row]), chosen.cumsum() - 1
        part = logits.index_select(0, _put(np.flatnonzero(chosen), logits.device))
        temperature = None if rows.temperature is None else rows.temperature[chosen]
        found = normalised(part, renumbered[row[mine]], token[mine], temperature)
        result.index_copy_(0, _put(mine, logits.device), found)
    return result


def _log_softmax_over_children(
    logits: torch.Tensor,
    row: NDArray[np.int64],
    token: NDArray[np.integer[Any]],
    temperature: NDArray[np.float32] | None,
) -> torch.Tensor:
    """Log-softmax of the logits of each row's children among themselves, float32; no other logit is read."""
    device = logits.device
    of_row = _put(row, device)
    values = logits[of_row, _put(token, device).long()].float()
    if temperature is not None:
        values = values / _put(temperature, device)[of_row]
    highest, rest = log_sum_exp_of_groups(values, of_row, len(logits))
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
    place = _put(row * vocab + token, logits.device)
    divisor = None if temperature is None else _put(temperature, logits.device)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildChoice:
    """Which children of each row's node may come back, and how many of them.

    Attributes:
        keep: ``(rows,)`` int64, >= 1; most children left of a row, the best by weighted score.
        only_listed: ``(rows,)`` bool; whether a row's listed children are its only ones, rather than the ones left out.
        listed_row: ``(m,)`` int64; the row of each listed child.
        listed_child: ``(m,)`` int64; its place among the children of that row's node.
        mixing: what their scores are mixed with before they are ranked; None where no row's are.
    """

    keep: NDArray[np.int64]
    only_listed: NDArray[np.bool_]
    listed_row: NDArray[np.int64]
    listed_child: NDArray[np.int64]
    mixing: RowMixing | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RowMixing:
    """`igd_core.search.prior.MixingTerms` of each row; a row without a prior has ``linear`` False, 1 and zeros.

    Attributes:
        linear: ``(rows,)`` bool.
        model: ``(rows,)`` float32.
        prior: ``(n,)`` float32; of all children of each row's node, row after row.
    """

    linear: NDArray[np.bool_]
    model: NDArray[np.float32]
    prior: NDArray[np.float32]

    def mixed(self, children: ScoredChildren) -> torch.Tensor:
        """What the children are ranked by: ``(n,)`` float32, where their scores are."""
        device = children.score.device
        model, prior = _put(self.model[children.row], device), _put(self.prior, device)
        log_linear = model * children.score + prior
        if not self.linear.any():
            return log_linear
        linear = torch.logaddexp(model + children.score, prior)
        return torch.where(_put(self.linear[children.row], device), linear, log_linear)


@dataclass(frozen=True, slots=True, kw_only=True)
class BestChildren:
    """The children that are left of every row, row after row.

    Attributes:
        count: ``(rows,)`` int64, how many are left of each; on the host.
        place: ``(n,)`` int64, their places among all children of the rows; where the logits are.
        logprob: ``(n,)`` float32, nats, unweighted; where the logits are.
        children: all children of the rows.
    """

    count: NDArray[np.int64]
    place: torch.Tensor
    logprob: torch.Tensor
    children: ScoredChildren


def best_children(logits: torch.Tensor, trie: TrieWeights, rows: RowSettings, choice: ChildChoice) -> BestChildren:
    """The best admitted children of each row's node, by weighted score or by that mixed with a prior."""
    children = child_scores(logits, trie, rows)
    first = np.searchsorted(children.row, np.arange(len(rows.node)))
    admitted = ~choice.only_listed[children.row]
    admitted[first[choice.listed_row] + choice.listed_child] = choice.only_listed[choice.listed_row]
    ranked_by = children.score if choice.mixing is None else choice.mixing.mixed(children)
    found = np.flatnonzero(admitted)
    place = _best_of_each_row(children.row, ranked_by, found, choice.keep)
    count = np.minimum(np.bincount(children.row[found], minlength=len(rows.node)), choice.keep)
    return BestChildren(count=count, place=place, logprob=children.logprob[place], children=children)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildTable:
    """The children that are left of every row, as a table; where the logits are.

    Attributes:
        tokens: ``(rows, width)`` int32, -1 where a row has no more children.
        logprobs: ``(rows, width)`` float32, nats, unweighted; -inf there.
    """

    tokens: torch.Tensor
    logprobs: torch.Tensor


def tabulate_children(
    logits: torch.Tensor, trie: TrieWeights, rows: RowSettings, choice: ChildChoice, *, width: int
) -> ChildTable:
    """As `expose_children_`, but beside the logits, which are only read: nothing here is as wide as the vocabulary.

    Args:
        logits: ``(rows, vocab)``.
        trie: the rows' trie.
        rows: node, alpha and temperature per row.
        choice: what is left of each row.
        width: of the table; at least what is kept of any row.
    """
    best, device = best_children(logits, trie, rows, choice), logits.device
    end = best.count.cumsum()
    column = np.arange(int(best.count.sum())) - np.repeat(end - best.count, best.count)
    place = _put(np.repeat(np.arange(len(rows.node)) * width, best.count) + column, device)
    token = _put(trie.edge_token[best.children.edge], device)[best.place]
    tokens = torch.full((len(rows.node), width), -1, dtype=torch.int32, device=device)
    logprobs = torch.full((len(rows.node), width), float("-inf"), device=device)
    tokens.view(-1).index_copy_(0, place, token)
    logprobs.view(-1).index_copy_(0, place, best.logprob)
    return ChildTable(tokens=tokens, logprobs=logprobs)


def expose_children_(logits: torch.Tensor, trie: TrieWeights, rows: RowSettings, choice: ChildChoice) -> torch.Tensor:
    """Keep only the best children in each row, so that a log-softmax gives their log-probabilities; returns ``logits``.

    The best children by weighted score, or by that mixed with a prior, keep their UNWEIGHTED log-probability: the
    reader could not undo a weight near 0. The probability that they leave goes to the lowest token id that is not a
    child. So the row already sums to one, and a log-softmax over it, which a sampler may insist on, changes nothing.
    All other tokens are -inf.

    Args:
        logits: ``(rows, vocab)`` float32, contiguous, changed in place; vocab is larger than the number of any node's
            children.
        trie: the rows' trie.
        rows: node, alpha and temperature per row.
        choice: what is left of each row.
    """
    device, (num_rows, vocab) = logits.device, logits.shape
    best = best_children(logits, trie, rows, choice)
    children, first = best.children, np.searchsorted(best.children.row, np.arange(num_rows))
    token = trie.edge_token[children.edge]
    # Tokens are ascending within a node: children at the position of their own id are 0, 1, 2... up to the first gap.
    in_place = token == np.arange(len(token)) - first[children.row]
    gap = np.bincount(children.row[in_place], minlength=num_rows)
    row = _put(children.row, device)[best.place]
    mass = torch.zeros(num_rows, device=device).index_add_(0, row, best.logprob.exp())
    logits.fill_(float("-inf"))
    logits.scatter_(1, _put(gap, device)[:, None], torch.log1p(-mass.clamp_(max=_ALL_BUT_NOTHING))[:, None])
    logits.view(-1).index_copy_(0, _put(children.row * vocab + token, device)[best.place], best.logprob)
    return logits


# float32's largest number below 1: if the children have all probability, the rest is still finite.
_ALL_BUT_NOTHING = 1.0 - 2.0**-24


def _best_of_each_row(
    row_of: NDArray[np.int64], ranked_by: torch.Tensor, found: NDArray[np.int64], keep: NDArray[np.int64]
) -> torch.Tensor:
    """Those of the children ``found`` that are among their row's ``keep`` best; by row, ties by edge."""
    device = ranked_by.device
    row = row_of[found]
    count = np.bincount(row, minlength=len(keep))
    places = _put(found, device)
    if (count <= keep).all():
        return places
    by_score = torch.argsort(ranked_by.index_select(0, places), descending=True, stable=True)
    by_row = by_score[torch.argsort(_put(row, device)[by_score], stable=True)]
    rank = np.arange(len(found)) - (count.cumsum() - count)[row]
    return places[by_row[_put(rank < keep[row], device)]]
