"""A dry run's settings: what a recipe does, in seconds on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from igd_core.tuning.settings import TuningSettings

TINY_SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def dry_settings(settings: TuningSettings) -> TuningSettings:
    """The same loss, rows and batches on a tiny random Llama: one epoch of at most one step."""
    return settings.replaced(
        from_config=TINY_SHAPE,
        lora=None,
        four_bit=False,
        gradient_checkpointing=False,
        precision="fp32",
        epochs=1,
        train_rows=settings.batch,
        valid_rows=min(settings.valid_rows or settings.batch, settings.batch),
    )
