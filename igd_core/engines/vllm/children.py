"""The best children of the nodes that sessions asked vLLM about, chosen in its worker, where the logits are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from igd_core.search.scores import child_scores, put_on

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from igd_core.search.scores import RowSettings, ScoredChildren, TrieWeights


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
        model, prior = put_on(self.model[children.row], device), put_on(self.prior, device)
        log_linear = model * children.score + prior
        if not self.linear.any():
            return log_linear
        linear = torch.logaddexp(model + children.score, prior)
        return torch.where(put_on(self.linear[children.row], device), linear, log_linear)


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
    place = put_on(np.repeat(np.arange(len(rows.node)) * width, best.count) + column, device)
    token = put_on(trie.edge_token[best.children.edge], device)[best.place]
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
    row = put_on(children.row, device)[best.place]
    mass = torch.zeros(num_rows, device=device).index_add_(0, row, best.logprob.exp())
    logits.fill_(float("-inf"))
    logits.scatter_(1, put_on(gap, device)[:, None], torch.log1p(-mass.clamp_(max=_ALL_BUT_NOTHING))[:, None])
    logits.view(-1).index_copy_(0, put_on(children.row * vocab + token, device)[best.place], best.logprob)
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
    places = put_on(found, device)
    if (count <= keep).all():
        return places
    by_score = torch.argsort(ranked_by.index_select(0, places), descending=True, stable=True)
    by_row = by_score[torch.argsort(put_on(row, device)[by_score], stable=True)]
    rank = np.arange(len(found)) - (count.cumsum() - count)[row]
    return places[by_row[put_on(rank < keep[row], device)]]
