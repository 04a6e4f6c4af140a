"""The IGD-Tuning loss: cross-entropy in which zero-IG tokens count less (arXiv 2506.13229).

``loss = sum(w * CE) / sum(w)`` over response tokens; ``w`` comes from `weights`. ``CE`` is over the vocabulary, or over
the children of each token's trie node, where tokens without a sibling have no part in the loss (`children`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from igd_core.tuning.bear import BearSettings
from igd_core.tuning.children import bear_weights, child_cross_entropy, child_logits

if TYPE_CHECKING:
    from collections.abc import Mapping

    from igd_core.tuning.children import Decisions


@dataclass(frozen=True, slots=True, kw_only=True)
class LossParts:
    """Sums over response tokens, float64 scalars without gradient; their ratios are the reported means.

    Attributes:
        zero_ig: cross-entropy of zero-IG tokens, nats.
        positive_ig: cross-entropy of the other tokens.
        zero_ig_tokens: number of zero-IG tokens.
        positive_ig_tokens: number of the others.
        weighted: cross-entropy times weight.
        weights: sum of the weights.
    """

    zero_ig: torch.Tensor
    positive_ig: torch.Tensor
    zero_ig_tokens: torch.Tensor
    positive_ig_tokens: torch.Tensor
    weighted: torch.Tensor
    weights: torch.Tensor

    @staticmethod
    def none(device: torch.device) -> LossParts:
        """Of no tokens."""
        return LossParts.of_sums(torch.zeros(6, dtype=torch.float64, device=device))

    @staticmethod
    def of_sums(sums: torch.Tensor) -> LossParts:
        """From what `sums` gave."""
        return LossParts(**dict(zip(LossParts.__slots__, sums, strict=True)))

    def sums(self) -> torch.Tensor:
        """All six, ``(6,)`` float64."""
        return torch.stack([getattr(self, name) for name in LossParts.__slots__])

    @staticmethod
    def of(cross_entropy: torch.Tensor, zero_ig: torch.Tensor, weights: torch.Tensor) -> LossParts:
        """From ``(m,)`` cross-entropies, ``(m,)`` bool flags and ``(m,)`` weights."""
        losses = cross_entropy.detach().double()
        return LossParts(
            zero_ig=losses[zero_ig].sum(),
            positive_ig=losses[~zero_ig].sum(),
            zero_ig_tokens=zero_ig.sum().double(),
            positive_ig_tokens=(~zero_ig).sum().double(),
            weighted=(losses * weights).sum(),
            weights=weights.double().sum(),
        )

    def __add__(self, other: LossParts) -> LossParts:
        return LossParts(
            zero_ig=self.zero_ig + other.zero_ig,
            positive_ig=self.positive_ig + other.positive_ig,
            zero_ig_tokens=self.zero_ig_tokens + other.zero_ig_tokens,
            positive_ig_tokens=self.positive_ig_tokens + other.positive_ig_tokens,
            weighted=self.weighted + other.weighted,
            weights=self.weights + other.weights,
        )

    def means(self) -> dict[str, float]:
        """``loss`` as tuned, ``plain_loss`` without weights, the mean of either kind (NaN if there is none), nats."""
        zero, positive = float(self.zero_ig), float(self.positive_ig)
        zero_tokens, positive_tokens = float(self.zero_ig_tokens), float(self.positive_ig_tokens)
        return {
            "loss": float(self.weighted) / float(self.weights),
            "plain_loss": (zero + positive) / (zero_tokens + positive_tokens),
            "zero_ig_loss": zero / zero_tokens if zero_tokens else float("nan"),
            "positive_ig_loss": positive / positive_tokens if positive_tokens else float("nan"),
        }


def igd_loss(
    cross_entropy: torch.Tensor, weights: torch.Tensor, total: torch.Tensor | int | None = None
) -> torch.Tensor:
    """``sum(w * CE) / total``, a scalar in nats.

    Args:
        cross_entropy: ``(m,)`` float32.
        weights: ``(m,)`` float32.
        total: sum of the weights of the WHOLE optimiser step, if this is one of its micro-batches: then their losses
            and gradients add up to those of one large batch. None for a batch of its own.
    """
    return (cross_entropy * weights).sum() / (weights.sum() if total is None else total)


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSettings:
    """How cross-entropies are computed.

    Attributes:
        temperature: divides the logits.
        bear: of the masked softmax alone.
        autocast: type of the arithmetic; None leaves it to the weights.
    """

    temperature: float = 1.0
    bear: BearSettings = field(default_factory=BearSettings)
    autocast: torch.dtype | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseLosses:
    """Of the targets of a batch.

    Attributes:
        cross_entropy: ``(m,)`` float32, nats.
        emphasis: ``(m,)`` float32, BEAR's weights, or None.
    """

    cross_entropy: torch.Tensor
    emphasis: torch.Tensor | None = None

    @staticmethod
    def of(output: tuple[torch.Tensor, torch.Tensor | None]) -> ResponseLosses:
        """From what a `ResponseModel` returns."""
        return ResponseLosses(cross_entropy=output[0], emphasis=output[1])

    def weighted(self, weights: torch.Tensor) -> torch.Tensor:
        """``weights`` with BEAR's emphasis, which leaves their sum as it is."""
        if self.emphasis is None:
            return weights
        emphasised = weights * self.emphasis
        return emphasised * (weights.sum() / emphasised.sum())


def response_logits(
    decoder: nn.Module, head: nn.Module, inputs: Mapping[str, Any], autocast: torch.dtype | None = None
) -> torch.Tensor:
    """Logits that the targets of a batch (`batches.collate`) are told from.

    Hidden states are gathered before the output layer, so logits exist for predicting positions only, and once for
    rows that share one: with 49,152 tokens in the vocabulary that layer alone is a third of SmolLM2-135M's work.

    Returns:
        ``(n,)`` float32 of the children of all places, of a batch with ``decisions``; else ``(p, vocabulary)``, of the
        distinct positions in ascending order.
    """
    decisions: Decisions | None = inputs.get("decisions")
    device = inputs["input_ids"].device
    with torch.autocast(device.type, dtype=autocast or torch.bfloat16, enabled=autocast is not None):
        hidden = decoder(
            input_ids=inputs["input_ids"],
            position_ids=inputs["position_ids"],
            attention_mask=inputs.get("attention_mask"),
            use_cache=False,
        ).last_hidden_state
        hidden = hidden.flatten(0, 1)
        if decisions is not None:
            return child_logits(hidden, head, decisions)
        logits: torch.Tensor = head(hidden[torch.unique(inputs["position"])])
        return logits


def response_losses(
    decoder: nn.Module, head: nn.Module, inputs: Mapping[str, Any], settings: LossSettings
) -> ResponseLosses:
    """Cross-entropy of every target of a batch: over the vocabulary, or over siblings alone.

    A batch with ``decisions`` computes logits of children and no others.
    """
    decisions: Decisions | None = inputs.get("decisions")
    logits = response_logits(decoder, head, inputs, settings.autocast)
    temperature, bear = settings.temperature, settings.bear
    if decisions is None:
        scaled = logits if temperature == 1 else logits / temperature
        index = torch.unique(inputs["position"], return_inverse=True)[1]
        return ResponseLosses(cross_entropy=cross_entropy_at(scaled, index, inputs["target"]))
    return ResponseLosses(
        cross_entropy=child_cross_entropy(logits, decisions, temperature=temperature),
        emphasis=bear_weights(logits, decisions, bear, temperature=temperature) if bear.weight else None,
    )


class ResponseModel(nn.Module):
    """A model as a function from a batch to the losses of its targets: what processes share, by DDP or FSDP2.

    Both act when the module that they wrap is called, and the model itself never is: its output layer is called, or its
    rows are read, at predicting positions alone.
    """

    def __init__(self, model: nn.Module, parts: tuple[nn.Module, nn.Module], settings: LossSettings) -> None:
        """``parts``: the decoder without its output layer, and that layer; both are within ``model``."""
        super().__init__()
        self.model = model
        self._parts = parts  # in a tuple, so that their weights are not there a second time
        self._settings = settings

    def forward(self, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See `ResponseLosses`; as a tuple, in which FSDP finds tensors."""
        losses = response_losses(*self._parts, inputs, self._settings)
        return losses.cross_entropy, losses.emphasis


def cross_entropy_at(logits: torch.Tensor, index: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """``-log softmax(logits[index])[target]``, ``(m,)`` float32, nats; several targets may share a row of logits.

    Args:
        logits: ``(n, vocabulary)``, any float type.
        index: ``(m,)`` int64 row of each target.
        target: ``(m,)`` int64.
    """
    result: torch.Tensor = _CrossEntropyAt.apply(logits, index, target)  # type: ignore[no-untyped-call]
    return result


class _CrossEntropyAt(torch.autograd.Function):
    """Cross-entropy with one buffer of the size of the logits for both directions.

    An indexed log-softmax makes four, and on a CPU the output layer waits for memory.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, index: torch.Tensor, target: torch.Tensor) -> torch.Tensor:  # noqa: ANN401 - torch gives it no type
        highest = logits.amax(dim=1, keepdim=True)
        exponentials = (logits - highest).float().exp_()
        total = exponentials.sum(dim=1)
        log_total = total.log() + highest.float().squeeze(1)
        ctx.save_for_backward(exponentials, total, index, target)
        ctx.dtype = logits.dtype
        return log_total[index] - logits[index, target].float()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # noqa: ANN401
        """Each row's softmax times the gradients of its targets, minus each gradient at its target."""
        (gradient,) = gradients
        gradient = gradient.float()
        exponentials, total, index, target = ctx.saved_tensors
        of_row = torch.zeros_like(total).index_add_(0, index, gradient)
        result = exponentials.mul_((of_row / total).unsqueeze(1))  # used up: torch refuses a second backward pass
        result.index_put_((index, target), -gradient, accumulate=True)
        return result.to(ctx.dtype), None, None
