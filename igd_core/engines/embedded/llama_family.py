"""Which models the project's own forwards compute (Llama, Mistral without a window, Qwen2, Qwen3), and their norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn
    from transformers import PreTrainedModel

_ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
# One set of frequencies for all positions. Others (dynamic, longrope) rotate by how long a text has become.
_FIXED_ROTATIONS = ("default", "linear", "llama3", "yarn")


def why_not_llama(model: PreTrainedModel) -> str:
    """What keeps a model from being computed as a Llama is; empty if nothing does."""
    whole: Any = model
    if type(model).__name__ not in _ARCHITECTURES or not type(model).__module__.startswith("transformers."):
        return f"architecture {model.config.model_type!r}"
    if model.config.hidden_act not in ("silu", "swish"):
        return f"hidden_act {model.config.hidden_act!r}"
    rotation = getattr(whole.model.rotary_emb, "rope_type", None)
    return "" if rotation in _FIXED_ROTATIONS else f"rope_type {rotation!r}"


def linears_of(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module]]:
    """The modules that multiply by a weight, with their names."""
    return ((name, each) for name, each in model.named_modules() if name.endswith(("_proj", "lm_head")))


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """Root mean square normalisation in float32; ``weight`` is ``(width,)`` float32."""

    weight: torch.Tensor
    epsilon: float

    @classmethod
    def of(cls, module: nn.Module) -> Norm:
        """With the weight of one of transformers' modules, which is not copied if it is float32."""
        norm: Any = module
        return cls(weight=norm.weight.detach().float(), epsilon=float(norm.variance_epsilon))

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """``(..., width)`` float32 to the same."""
        return torch.rms_norm(inputs, self.weight.shape, self.weight, self.epsilon)
