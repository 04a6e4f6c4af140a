"""LoRA adapters for tests, made by peft itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def save_adapter(
    directory: Path, checkpoint_dir: Path, *, seed: int, rank: int = 4, targets: str | Sequence[str] = "all-linear"
) -> Path:
    """A random adapter of a checkpoint, strong enough to change what it ranks first."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint_dir)
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=targets if isinstance(targets, str) else list(targets),
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        get_peft_model(model, config).save_pretrained(str(directory))
    return directory
