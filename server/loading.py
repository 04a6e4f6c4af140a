"""Opening what the settings name: the model behind an engine. Blocking; the server does it on a thread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from igd_core.engines.base import Engine
    from server.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedModel:
    """An engine with its checkpoint; ``token_text`` is what one token id reads as."""

    engine: Engine
    token_text: Callable[[int], str]


def open_model(settings: Settings) -> OpenedModel:
    """Load the checkpoint and start the engine.

    Raises:
        ModelError: the checkpoint cannot be loaded, or not on this device.
    """
    from transformers.utils import logging as transformers_logging

    from igd_core.engines.checkpoint import load_checkpoint
    from igd_core.engines.tree import TreeEngine

    transformers_logging.disable_progress_bar()  # a bar is no line of JSON
    checkpoint = load_checkpoint(settings.model, device=settings.device, dtype=settings.dtype)
    engine = TreeEngine(checkpoint, cache_bytes=settings.cache_bytes)
    return OpenedModel(engine=engine, token_text=checkpoint.tokenizer.token_text)
