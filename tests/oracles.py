"""What the product must equal, computed slowly and obviously: nothing here uses its trie, tables or search.

The information gain stands a second time here, by enumeration; the dict trie of `igd_core.bench.reference` is the
witness that weighs log-probabilities.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

import torch
from transformers import LogitsProcessor

from igd_core.bench.reference import build_dict_trie, weights_at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from transformers import PreTrainedModel

    from igd_core.bench.reference import TrieProcessor

Path: TypeAlias = tuple[int, ...]


def paths_below(paths: Iterable[Path], prefix: Path) -> list[Path]:
    """The distinct paths that begin with ``prefix``, sorted."""
    return sorted({path for path in paths if path[: len(prefix)] == prefix})


def next_tokens(paths: Iterable[Path], prefix: Path) -> list[int]:
    """The tokens that may follow ``prefix``, ascending; none after a whole path."""
    return sorted({path[len(prefix)] for path in paths if len(path) > len(prefix) and path[: len(prefix)] == prefix})


def entropy(paths: Sequence[Path], prior: Sequence[float], prefix: Path) -> float:
    """H(prefix) in nats (arXiv 2506.13229): items of one path are one outcome, p is normalised over everything."""
    terms = []
    for path in paths_below(paths, prefix):
        mass = math.fsum(share for own, share in zip(paths, prior, strict=True) if own == path)
        terms.append(-mass * math.log(mass) if mass > 0 else 0.0)
    return math.fsum(terms)


def sibling_gains(paths: Sequence[Path], prior: Sequence[float], prefix: Path) -> dict[int, float]:
    """g of each next token: ``(IG - min) / (max - min + 1e-7)`` over the siblings."""
    whole = entropy(paths, prior, prefix)
    gains = {token: whole - entropy(paths, prior, (*prefix, token)) for token in next_tokens(paths, prefix)}
    lowest, highest = min(gains.values()), max(gains.values())
    return {token: (gain - lowest) / (highest - lowest + 1e-7) for token, gain in gains.items()}


def admitted_items(num_items: int, allowed: Iterable[int] | None, barred: Iterable[int]) -> set[int]:
    """Item rows that a filter lets through."""
    return (set(range(num_items)) if allowed is None else set(allowed)) - set(barred)


def beam_search(
    scores_after: Callable[[Path], Mapping[int, float]], beams: int, length_penalty: float
) -> list[tuple[float, Path]]:
    """The reference's step-synchronous search (transformers, ``early_stopping=False``), nothing skipped.

    Args:
        scores_after: weighted log-probability of each token that may follow a prefix; empty after a whole path.
        beams: K.
        length_penalty: a finished path's score is its sum over ``length ** length_penalty``.
    """
    live: list[tuple[float, Path]] = [(0.0, ())]
    finished: list[tuple[float, Path]] = []
    while live:
        candidates = [(total + s, (*path, token)) for total, path in live for token, s in scores_after(path).items()]
        candidates = sorted(candidates, key=lambda candidate: -candidate[0])[: 2 * beams]
        divisor = len(candidates[0][1]) ** length_penalty
        finished += [(total / divisor, path) for total, path in candidates[:beams] if not scores_after(path)]
        finished = sorted(finished, key=lambda done: -done[0])[:beams]
        live = [(total, path) for total, path in candidates if scores_after(path)][:beams]
        if len(finished) == beams and live and live[0][0] / divisor <= finished[-1][0]:
            break
    return finished


def exhaustive_scores(
    model: PreTrainedModel, prompt: Sequence[int], paths: Sequence[Path], prior: Sequence[float], alpha: float
) -> dict[Path, float]:
    """Weighted log-probability of every distinct path: one forward pass each, log-softmax over the full vocabulary."""
    root = build_dict_trie(paths, prior)
    return {path: sum(path_scores(model, prompt, path, weights_on(root, path, alpha))) for path in set(paths)}


@torch.inference_mode()
def path_probabilities(
    model: PreTrainedModel, prompt: Sequence[int], paths: Sequence[Path], temperature: float = 1.0
) -> dict[Path, float]:
    """Probability of every distinct path, each token's normalised over those that may stand there: float64 loops."""
    found = {}
    for path in sorted(set(paths)):
        logits = model(input_ids=torch.tensor([[*prompt, *path]]), use_cache=False).logits[0, len(prompt) - 1 : -1]
        found[path] = 1.0
        for at, token in enumerate(path):
            odds = {each: float(logits[at, each].double()) / temperature for each in next_tokens(paths, path[:at])}
            highest = max(odds.values())
            found[path] *= math.exp(odds[token] - highest) / math.fsum(math.exp(v - highest) for v in odds.values())
    return found


class MixedProcessor(LogitsProcessor):
    """As `TrieProcessor`, with what a scorer gives whole paths mixed in, by sums over paths."""

    def __init__(
        self, plain: TrieProcessor, prompt_length: int, of_path: Mapping[Path, float], gamma: float, mixture: str
    ) -> None:
        self._plain = plain
        self._prompt_length = prompt_length
        self._of_path = of_path
        self._gamma = gamma
        self._mixture = mixture
        self._model: dict[Path, float] = {(): 0.0}

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        constrained: torch.Tensor = self._plain(input_ids, scores)
        for row, ids in enumerate(input_ids.tolist()):
            prefix = tuple(ids[self._prompt_length :])
            if prefix not in self._model:
                continue  # a beam that has ended, or never lived
            for token in constrained[row].isfinite().nonzero().flatten().tolist():
                constrained[row, token] = self._step(prefix, token, float(constrained[row, token]))
        return constrained

    def _step(self, prefix: Path, token: int, score: float) -> float:
        path = (*prefix, token)
        self._model[path] = self._model[prefix] + score
        if self._mixture == "log-linear":
            share = self._mass(path) / self._mass(prefix)
            return (1 - self._gamma) * score + self._gamma * math.log(share)
        return math.log(self._mixed(path)) - math.log(self._mixed(prefix))

    def _mixed(self, path: Path) -> float:
        return (1 - self._gamma) * math.exp(self._model[path]) + self._gamma * self._mass(path)

    def _mass(self, prefix: Path) -> float:
        return math.fsum(share for path, share in self._of_path.items() if path[: len(prefix)] == prefix)


def weights_on(root: object, path: Path, alpha: float) -> list[float]:
    """``1 - alpha * g`` of each token of a path, from the dict trie."""
    weights, node = [], root
    for token in path:
        weights.append(weights_at(node, alpha)[token])  # type: ignore[arg-type]
        node = node.children[token]  # type: ignore[attr-defined]
    return weights


@torch.inference_mode()
def path_scores(
    model: PreTrainedModel, prompt: Sequence[int], path: Path, weights: Sequence[float], temperature: float = 1.0
) -> list[float]:
    """Weighted log-probability of each token of one path, from one plain forward pass without a cache."""
    ids = torch.tensor([[*prompt, *path]], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    logprobs = torch.log_softmax(logits.double() / temperature, dim=-1)
    return [float(logprobs[at, token]) * weight for at, (token, weight) in enumerate(zip(path, weights, strict=True))]
