"""Engines by name, as the command line and the server's settings give it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from igd_core.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from igd_core.engines.base import Engine
    from igd_core.tokenization import TitleTokenizer

EngineName = Literal["tree"]
ENGINE_NAMES: tuple[str, ...] = get_args(EngineName)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Which checkpoint, on which engine, and how.

    Attributes:
        model: directory or hub id of the checkpoint.
        engine: ``tree`` is the embedded transformers engine.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``...
        dtype: ``auto``, ``float32``, ``bfloat16``, ``float16``.
        cache_bytes: budget for key-value caches of past prompts.
    """

    model: str | Path
    engine: str = "tree"
    device: str = "auto"
    dtype: str = "auto"
    cache_bytes: int = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenEngine:
    """A running engine and the tokenizer of its checkpoint, which turns token ids into text for people."""

    engine: Engine
    tokenizer: TitleTokenizer


def open_engine(options: EngineOptions) -> OpenEngine:
    """Load the checkpoint and start the engine; takes seconds, so not on an event loop.

    Raises:
        InputError: no such engine.
        ModelError: the checkpoint cannot be used.
    """
    if options.engine not in ENGINE_NAMES:
        raise InputError(f"engine {options.engine!r}: one of {', '.join(ENGINE_NAMES)}")
    from igd_core.engines.checkpoint import load_checkpoint
    from igd_core.engines.tree import TreeEngine

    checkpoint = load_checkpoint(options.model, device=options.device, dtype=options.dtype)
    return OpenEngine(engine=TreeEngine(checkpoint, cache_bytes=options.cache_bytes), tokenizer=checkpoint.tokenizer)
