"""Tiny checkpoints as folders, to load and to damage."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from factories import EOS
from safetensors import safe_open

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from transformers import PretrainedConfig, PreTrainedModel


TINY: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}
"""The shape of a tiny Llama, and of its relatives."""


def random_model(config: PretrainedConfig, *, seed: int = 7, spread: float = 0.3) -> PreTrainedModel:
    """Weights large enough for attention to look somewhere, so that a wrong mask or position shows."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
        for weight in model.parameters():
            if weight.dim() > 1:
                torch.nn.init.normal_(weight.data, std=spread)
    return model


def write_checkpoint(directory: Path, model: PreTrainedModel, definition: dict[str, Any]) -> Path:
    """A folder that `load_checkpoint` reads."""
    model.save_pretrained(directory)
    (directory / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": EOS}), encoding="utf-8")
    return directory


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def edit_tensors(directory: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change what the folder's one safetensors file holds."""
    path = directory / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = safetensors.torch.load_file(path)
    edit(tensors)
    safetensors.torch.save_file({name: each.contiguous() for name, each in tensors.items()}, path, metadata)
