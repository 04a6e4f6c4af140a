"""The reference: transformers' ``generate`` with a Python trie, walked from the root at each step.

Decoding is measured against it and tested with it, so it shares no code with the package's trie, gains and search. It
is slow and obvious on purpose.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from transformers import LogitsProcessor

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Sequence

    from transformers import PreTrainedModel

    from igd_core.search.normalisation import Normalise


@dataclass(slots=True)
class DictNode:
    """A trie node as nested dicts: children by token, items that end here, entropy left (nats), whether it is open."""

    children: dict[int, DictNode] = field(default_factory=dict)
    items: list[int] = field(default_factory=list)
    entropy: float = 0.0
    is_open: bool = True


def admit(node: DictNode, items: Container[int]) -> None:
    """Close every node with none of ``items`` at it or below, which prunes the search; weights do not change."""
    for child in node.children.values():
        admit(child, items)
    node.is_open = any(item in items for item in node.items) or any(each.is_open for each in node.children.values())


def build_dict_trie(paths: Sequence[Sequence[int]], prior: Sequence[float]) -> DictNode:
    """Insert every path, then sum ``-p ln p`` over the distinct paths below each node.

    Items of one path are one outcome.
    """
    root = DictNode()
    for item, path in enumerate(paths):
        node = root
        for token in path:
            node = node.children.setdefault(token, DictNode())
        node.items.append(item)
    _fill_entropy(root, prior)
    return root


def _fill_entropy(node: DictNode, prior: Sequence[float]) -> None:
    own = sum(prior[item] for item in node.items)
    node.entropy = -own * math.log(own) if own > 0 else 0.0
    for child in node.children.values():
        _fill_entropy(child, prior)
        node.entropy += child.entropy


def weights_at(node: DictNode, alpha: float, forced_weight: float = 1.0) -> dict[int, float]:
    """``1 - alpha * g`` of each child token, g normalised among siblings (arXiv 2506.13229); or ``forced_weight``."""
    if len(node.children) == 1:
        return dict.fromkeys(node.children, forced_weight)
    gains = {token: node.entropy - child.entropy for token, child in node.children.items()}
    lowest, highest = min(gains.values()), max(gains.values())
    return {token: 1.0 - alpha * (gain - lowest) / (highest - lowest + 1e-7) for token, gain in gains.items()}


class TrieProcessor(LogitsProcessor):
    """Weighted log-probabilities of the trie's children; -inf elsewhere.

    Beam search hands a processor the log-softmax over the full vocabulary, so this multiplies in place of the model's
    values. Normalised over children, it takes each child's share among its siblings: what the log-softmax has taken off
    all of them cancels out.
    """

    def __init__(self, root: DictNode, prompt_length: int, settings: ReferenceSettings) -> None:
        self._root = root
        self._prompt_length = prompt_length
        self._settings = settings

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """``input_ids`` (rows, length) int64, ``scores`` (rows, vocab) float32; returns a new (rows, vocab)."""
        constrained = torch.full_like(scores, -math.inf)
        for row, ids in enumerate(input_ids[:, self._prompt_length :].tolist()):
            node: DictNode | None = self._root
            for token in ids:
                node = node.children.get(token) if node else None
            if node is None or not node.children:
                continue  # a beam that has ended, or never began
            logprobs = {token: float(scores[row, token]) for token in node.children}
            if self._settings.normalise == "children":
                logprobs = shares(logprobs, self._settings.temperature)
            for token, weight in weights_at(node, self._settings.alpha, self._settings.forced_weight).items():
                if node.children[token].is_open:
                    constrained[row, token] = logprobs[token] * weight
        return constrained


def shares(logits: dict[int, float], temperature: float) -> dict[int, float]:
    """Log of each token's share among those given, in float64: ``log(exp(l / T) / sum(exp(l / T)))``."""
    highest = max(logits.values())
    odds = {token: math.exp((value - highest) / temperature) for token, value in logits.items()}
    total = math.fsum(odds.values())
    return {token: (logits[token] - highest) / temperature - math.log(total) for token in logits}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceResult:
    """Ranked paths: tokens (EOS included), score, and the number of forward passes."""

    paths: list[tuple[int, ...]]
    scores: list[float]
    model_calls: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceSettings:
    """Beam width, rebalancing, length penalty, what forced tokens count, and the token that ends a path.

    ``temperature`` applies only where scores are normalised over children.
    """

    beams: int = 10
    alpha: float = 0.2
    length_penalty: float = 0.0
    forced_weight: float = 1.0
    normalise: Normalise = "vocabulary"
    temperature: float = 1.0
    max_new_tokens: int = 72
    eos_id: int = 2


def reference_generate(
    model: PreTrainedModel,
    root: DictNode,
    prompt: Iterable[int],
    settings: ReferenceSettings,
    *,
    processor: LogitsProcessor | None = None,
) -> ReferenceResult:
    """Beam search by transformers' own ``generate``; with a ``processor`` in the place of the trie's own."""
    ids = torch.tensor([list(prompt)], device=model.device)
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    hook = model.register_forward_pre_hook(count)
    try:
        output = model.generate(  # type: ignore[operator]
            ids,
            attention_mask=torch.ones_like(ids),
            num_beams=settings.beams,
            num_return_sequences=settings.beams,
            max_new_tokens=settings.max_new_tokens,
            length_penalty=settings.length_penalty,
            do_sample=False,
            eos_token_id=settings.eos_id,
            pad_token_id=settings.eos_id,
            logits_processor=[processor or TrieProcessor(root, ids.shape[1], settings)],
            output_scores=True,
            return_dict_in_generate=True,
        )
    finally:
        hook.remove()
    paths = []
    for row in output.sequences[:, ids.shape[1] :].tolist():
        end = row.index(settings.eos_id) + 1 if settings.eos_id in row else len(row)
        paths.append(tuple(row[:end]))
    return ReferenceResult(paths=paths, scores=output.sequences_scores.tolist(), model_calls=calls)
