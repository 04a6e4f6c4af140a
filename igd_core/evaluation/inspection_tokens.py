"""How a checkpoint scores zero-IG tokens: the paper's analysis, on held-out rows.

A language model predicts forced tokens easily, so each takes little of the loss; but there are many of them, and in a
beam's score their near-zero log-probabilities say nothing about the item (arXiv 2506.13229).

The loss is the one that the checkpoint was tuned with. Over the children of trie nodes forced tokens have no part in
it, and what is left of zero-IG tokens are those beside siblings that nobody chose.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from igd_core.engines.embedded.checkpoint import context_tokens
from igd_core.errors import DataError, EngineError
from igd_core.evaluation.bootstrap import Interval, Resampling
from igd_core.evaluation.decode import RowDecoder
from igd_core.evaluation.metrics import NONE, discounted_gains, target_ranks
from igd_core.ids import NodeId
from igd_core.progress import progress
from igd_core.search.normalisation import Normalisation
from igd_core.search.scores import require_finite

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from igd_core.artifact import Artifact
    from igd_core.catalogue.trie import TokenTrie
    from igd_core.engines.embedded.checkpoint import Checkpoint
    from igd_core.evaluation.methods import DecodingSetting
    from igd_core.evaluation.rows import EvaluationRows
    from igd_core.search.engine import Engine

_BATCH_TOKENS = 2048
_PLAIN = Normalisation()


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetTokens:
    """The tokens of all rows' targets that count in the loss, newline and EOS included, row after row.

    Attributes:
        row: ``(n,)`` int64.
        position: ``(n,)`` int64, 1 for a title's first token.
        zero: ``(n,)`` bool; zero information gain.
        end: ``(n,)`` bool; the EOS after a title, which a checkpoint without tuning hardly expects there.
        logprob: ``(n,)`` float64, nats, normalised as ``scored`` says, given the history and the title's tokens so far.
        scored: over what, and at which temperature.
        left_out: tokens that do not count: over children, those without a sibling.
    """

    row: NDArray[np.int64]
    position: NDArray[np.int64]
    zero: NDArray[np.bool_]
    end: NDArray[np.bool_]
    logprob: NDArray[np.float64]
    scored: Normalisation = _PLAIN
    left_out: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBias:
    """How a checkpoint treats zero-IG and other tokens; intervals by resampled rows, NaN of tokens that are not there.

    Attributes:
        scored: over what log-probabilities are normalised, and at which temperature.
        tokens: number of tokens of all targets that count in the loss.
        left_out: those that do not.
        zero_share: share of tokens with zero information gain.
        zero_logprob: their mean log-probability, nats.
        zero_logprob_before_end: the same, EOS left out.
        positive_logprob: mean log-probability of the other tokens.
        zero_loss_share: share of the summed cross-entropy that falls on zero-IG tokens.
    """

    scored: Normalisation
    tokens: int
    left_out: int
    zero_share: Interval
    zero_logprob: Interval
    zero_logprob_before_end: Interval
    positive_logprob: Interval
    zero_loss_share: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class AlphaEffect:
    """What decoding with alpha changes, against alpha 0, with seen items allowed; counts are of rows.

    Attributes:
        alpha: the one compared with 0.
        depth: length of the lists.
        rows: number of rows compared.
        same_list: rows with equal lists, order included.
        shared: mean share of items in both lists.
        entered: rows whose target enters the list.
        left: rows whose target leaves the list.
        up: rows whose target rises.
        down: rows whose target falls.
        ndcg_plain: NDCG@depth at alpha 0.
        ndcg_weighted: NDCG@depth at alpha.
        ndcg_difference: ``ndcg_weighted`` minus ``ndcg_plain``, on the same rows.
    """

    alpha: float
    depth: int
    rows: int
    same_list: int
    shared: float
    entered: int
    left: int
    up: int
    down: int
    ndcg_plain: Interval
    ndcg_weighted: Interval
    ndcg_difference: Interval


def score_targets(
    checkpoint: Checkpoint, artifact: Artifact, rows: EvaluationRows, scored: Normalisation = _PLAIN
) -> TargetTokens:
    """Log-probability of every token of every target that counts in a loss so normalised, by teacher forcing.

    Rows with a target outside the catalogue are left out.

    Raises:
        DataError: no row is left.
        EngineError: a prompt and its title exceed the model's positions.
    """
    trie = artifact.trie
    leaf = rows.target_leaf(artifact)
    known = np.flatnonzero(leaf != NONE).tolist()
    if not known:
        raise DataError("none of the rows has a target that the catalogue holds")
    edges = {row: trie.edges_to(NodeId(int(trie.leaf_node[leaf[row]]))) for row in known}
    context = context_tokens(checkpoint.model.config)
    prompts = {
        row: artifact.prompt(rows.histories[row], left_out=artifact.num_left_out(rows.histories[row], context))
        for row in known
    }
    sequences = {row: prompts[row] + trie.edge_token[edges[row]].tolist() for row in known}
    longest = max(map(len, sequences.values()))
    if longest > context:
        raise EngineError(f"a prompt and its title have {longest} tokens; the model takes {context}")
    found: dict[int, NDArray[np.float64]] = {}
    with progress(total=len(known), desc="scoring targets", unit="row") as bar:
        for batch in _batches(known, {row: len(tokens) for row, tokens in sequences.items()}):
            siblings = None
            if scored.normalise == "children":
                siblings = [_siblings(trie, np.array(edges[row])) for row in batch]
            given = _tail_logprobs(
                checkpoint,
                [sequences[row] for row in batch],
                [len(edges[row]) for row in batch],
                temperature=scored.temperature,
                siblings=siblings,
            )
            found |= dict(zip(batch, given, strict=True))
            bar.update(len(batch))
    every_edge = np.concatenate([edges[row] for row in known])
    lengths = np.array([len(edges[row]) for row in known])
    end = np.zeros(len(every_edge), dtype=bool)
    end[np.cumsum(lengths) - 1] = True
    counts = np.ones(len(every_edge), dtype=bool)
    if scored.normalise == "children":
        parents = trie.parents(every_edge + 1)
        counts = trie.row_start[parents + 1] - trie.row_start[parents] > 1
    if not counts.any():
        raise DataError("no target has a token with a sibling: normalised over children there is no loss")
    return TargetTokens(
        row=np.repeat(known, lengths)[counts],
        position=np.concatenate([np.arange(1, length + 1) for length in lengths])[counts],
        zero=np.asarray(artifact.gains.information_gain[every_edge] == 0)[counts],
        end=end[counts],
        logprob=np.concatenate([found[row] for row in known])[counts],
        scored=scored,
        left_out=int((~counts).sum()),
    )


def _siblings(trie: TokenTrie, edges: NDArray[np.int64]) -> list[NDArray[np.int32]]:
    """For each edge of a path, the tokens of its node's children, its own among them."""
    return [trie.edge_token[trie.row_start[at] : trie.row_start[at + 1]] for at in trie.parents(edges + 1).tolist()]


def token_bias(tokens: TargetTokens, resampling: Resampling) -> TokenBias:
    """Summarise zero-IG and other tokens."""
    row = np.unique(tokens.row, return_inverse=True)[1]
    kinds = (tokens.zero, ~tokens.zero, tokens.zero & ~tokens.end)
    counts = [np.bincount(row, weights=kind.astype(np.float64)) for kind in kinds]
    sums = [np.bincount(row, weights=np.where(kind, tokens.logprob, 0.0)) for kind in kinds]
    per_row = np.column_stack([*counts, *sums])
    whole, draws = per_row.mean(axis=0), resampling.means(per_row)

    def ratio(above: Sequence[int], below: Sequence[int]) -> Interval:
        with np.errstate(invalid="ignore", divide="ignore"):
            drawn = draws[:, above].sum(axis=1) / draws[:, below].sum(axis=1)
            value = whole[above].sum() / whole[below].sum()
        return Interval.of(float(value), drawn)

    return TokenBias(
        scored=tokens.scored,
        tokens=len(tokens.row),
        left_out=tokens.left_out,
        zero_share=ratio([0], [0, 1]),
        zero_logprob=ratio([3], [0]),
        zero_logprob_before_end=ratio([5], [2]),
        positive_logprob=ratio([4], [1]),
        zero_loss_share=ratio([3], [3, 4]),
    )


async def alpha_effect(
    engine: Engine, artifact: Artifact, rows: EvaluationRows, setting: DecodingSetting, resampling: Resampling
) -> AlphaEffect:
    """Decode every row under ``setting``, with its alpha and with 0, from the same model calls.

    Raises:
        EngineError: a row could not be decoded.
    """
    alpha, beams = setting.alpha, setting.beams
    settings = [replace(setting, alpha=0.0), setting]
    decoder = RowDecoder(engine, artifact, settings)
    lists = np.full((2, len(rows), beams), NONE, dtype=np.int64)
    for row, history in enumerate(progress(rows.histories, desc=f"alpha 0 and {alpha:g}", unit="row")):
        if rows.target[row] != NONE:
            for which, found in enumerate((await decoder.answer(history)).lists):
                lists[which, row, : len(found)] = artifact.leaf_of_item[list(found)]
    return compare_lists(lists[0], lists[1], rows.target_leaf(artifact), alpha=alpha, resampling=resampling)


def compare_lists(
    plain: NDArray[np.int64],
    weighted: NDArray[np.int64],
    target: NDArray[np.int64],
    *,
    alpha: float,
    resampling: Resampling,
) -> AlphaEffect:
    """Compare two ``(rows, depth)`` lists of leaves; rows with target -1 are left out."""
    known = target != NONE
    plain, weighted, target = plain[known], weighted[known], target[known]
    depth = plain.shape[1]
    before, after = target_ranks(plain, target), target_ranks(weighted, target)
    both = ((plain[:, :, None] == weighted[:, None, :]) & (plain[:, :, None] != NONE)).any(axis=2).sum(axis=1)
    listed = np.maximum((plain != NONE).sum(axis=1), 1)
    gains = np.column_stack([discounted_gains(rank, depth) for rank in (before, after)])
    gains = np.column_stack([gains, gains[:, 1] - gains[:, 0]])
    draws = resampling.means(gains)
    intervals = [Interval.of(float(gains[:, at].mean()), draws[:, at]) for at in range(3)]
    in_both = (before > 0) & (after > 0)
    return AlphaEffect(
        alpha=alpha,
        depth=depth,
        rows=len(target),
        same_list=int((plain == weighted).all(axis=1).sum()),
        shared=float((both / listed).mean()),
        entered=int(((before == 0) & (after > 0)).sum()),
        left=int(((before > 0) & (after == 0)).sum()),
        up=int((in_both & (after < before)).sum()),
        down=int((in_both & (after > before)).sum()),
        ndcg_plain=intervals[0],
        ndcg_weighted=intervals[1],
        ndcg_difference=intervals[2],
    )


def _batches(rows: Sequence[int], length: dict[int, int]) -> list[list[int]]:
    """Batches of rows of similar length, each at most ``_BATCH_TOKENS`` with padding."""
    batches: list[list[int]] = [[]]
    for row in sorted(rows, key=length.__getitem__):  # rising: the last row is the longest of its batch
        if batches[-1] and (len(batches[-1]) + 1) * length[row] > _BATCH_TOKENS:
            batches.append([])
        batches[-1].append(row)
    return batches


@torch.inference_mode()
def _tail_logprobs(
    checkpoint: Checkpoint,
    sequences: Sequence[Sequence[int]],
    tails: Sequence[int],
    *,
    temperature: float,
    siblings: Sequence[Sequence[NDArray[np.int32]]] | None,
) -> list[NDArray[np.float64]]:
    """Log-probabilities of each sequence's last ``tails[i]`` tokens; padding comes first, so all end together.

    Over the vocabulary; with ``siblings``, of each of these tokens over its node's children alone.
    """
    model, longest, kept = checkpoint.model, max(map(len, sequences)), max(tails)
    pad = [longest - len(tokens) for tokens in sequences]
    ids = torch.tensor([[0] * fill + list(tokens) for fill, tokens in zip(pad, sequences, strict=True)])
    mask = torch.arange(longest)[None] >= torch.tensor(pad)[:, None]
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    logits = model(
        input_ids=ids.to(model.device),
        attention_mask=mask.long().to(model.device),
        position_ids=positions.to(model.device),
        logits_to_keep=kept + 1,
        use_cache=False,
    ).logits[:, :-1]
    wanted = ids[:, longest - kept :].to(logits.device)
    scored = []
    for row, tail in enumerate(tails):  # row by row: the log-softmax of a whole batch would be a second copy
        own = logits[row, kept - tail :].float() / temperature
        logits_of_wanted = own.gather(1, wanted[row, kept - tail :, None])[:, 0]
        if siblings is None:
            total = torch.logsumexp(own, dim=-1)
        else:
            among = (torch.from_numpy(tokens.astype(np.int64)).to(own.device) for tokens in siblings[row])
            total = torch.stack([torch.logsumexp(own[at, tokens], dim=0) for at, tokens in enumerate(among)])
        scored.append((logits_of_wanted - total).double().cpu().numpy())
        require_finite(scored[-1])
    return scored
