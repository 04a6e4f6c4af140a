"""Flags that say which checkpoint runs on what, the same for every command that asks a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from igd_core.checked_settings import CheckedSettings, Directory, Flag
from igd_core.engines.forward_choice import ForwardChoice, PrecisionChoice
from igd_core.engines.open import EngineName, EngineOptions
from igd_core.errors import InputError


def vllm_options(value: object) -> object:
    """``{"max_model_len": 2048}`` as text, or as a file has it; checked."""
    from igd_core.engines.vllm.options import parse_tuning

    try:
        return parse_tuning(value if isinstance(value, str) else json.dumps(value))
    except InputError as error:
        raise ValueError(str(error).removeprefix("vllm: ")) from None


VLLMTuning = Annotated[Mapping[str, Any], BeforeValidator(vllm_options), Flag(metavar="JSON")]

Concurrency = Annotated[int, Field(ge=1, le=4096)]
"""Recommendations at once."""


class EngineFlags(CheckedSettings):
    """Which checkpoint, on which engine, and how."""

    model: Annotated[str, Flag(metavar="DIR")] | None = Field(
        default=None, description="checkpoint: a directory or a hub id"
    )
    engine: EngineName = Field(default="tree", description="what runs it: the embedded engine, or vLLM")
    vllm: VLLMTuning = Field(
        default={}, description='how vLLM is started, as {"max_model_len": 2048}: docs/how-to/vllm.md'
    )
    device: str = Field(default="auto", description="auto, cpu, cuda")
    dtype: str = Field(default="auto", description="auto, float32, bfloat16, float16")
    forward: ForwardChoice = Field(
        default="auto",
        description="how the embedded engine runs the model: its own forward, transformers' modules, or (auto) the own "
        "one where it is proved equal",
    )
    precision: PrecisionChoice = Field(
        default="fp32",
        description="of the embedded engine's products on a CPU: bf16 is faster where the processor has instructions "
        "for it; auto decides on this machine",
    )
    adapter: Directory | None = Field(default=None, description="LoRA adapter of the model, in PEFT's format")

    def engine_options(self) -> EngineOptions:
        """The same for `igd_core.engines.open`, without the adapter.

        Raises:
            InputError: no model, or options of vLLM with another engine.
        """
        if self.model is None:
            raise InputError("model: is needed")
        if self.vllm and self.engine != "vllm":
            raise InputError(f"vllm: given, with engine {self.engine!r}")
        return EngineOptions(
            model=self.model,
            engine=self.engine,
            device=self.device,
            dtype=self.dtype,
            forward=self.forward,
            precision=self.precision,
            vllm=self.vllm,
        )
