"""LoRA adapters: several tunings of one checkpoint, each a directory in PEFT's format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from igd_core.errors import InputError, ModelError

Adapters: TypeAlias = Mapping[str, Path]

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """What loading an adapter depends on.

    Attributes:
        rank: of its matrices, the largest where they differ.
        alpha: the product of its matrices is scaled by ``alpha / rank``.
        base: directory or hub id of the checkpoint it was tuned from, as its maker wrote it; may be empty.
        plain: whether it is LoRA alone: no trained biases, whole modules or magnitudes.
        modules: last names of the modules that it changes: ``q_proj``, ``lm_head``...
    """

    rank: int
    alpha: float
    base: str
    plain: bool
    modules: frozenset[str]


def parse_adapters(text: str) -> dict[str, Path]:
    """Parse ``NAME=DIR,NAME=DIR``; an empty text has no adapters.

    Raises:
        InputError: not of this form, or a name is given twice.
    """
    adapters: dict[str, Path] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, equals, directory = (part.strip() for part in entry.partition("="))
        if not (name and equals and directory):
            raise InputError(f"adapters: {entry!r} is not NAME=DIR")
        if name in adapters:
            raise InputError(f"adapters: {name!r} is named twice")
        adapters[name] = Path(directory)
    return adapters


def read_adapter_config(directory: Path) -> AdapterConfig:
    """Check that ``directory`` holds a LoRA adapter, and read what loading it depends on.

    Raises:
        ModelError: no adapter, one of another kind, or without safetensors.
    """
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise ModelError(f"adapter {directory}: no {CONFIG_FILE} there")
    if not (directory / WEIGHTS_FILE).is_file():
        raise ModelError(f"adapter {directory}: no {WEIGHTS_FILE} there (weights in a pickle are not read)")
    try:
        fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        ranks = [int(fields["r"]), *map(int, (fields.get("rank_pattern") or {}).values())]
        alpha = float(fields.get("lora_alpha", 8))  # peft's default
        kind = fields.get("peft_type")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: not an adapter's configuration ({type(error).__name__}: {error})") from None
    if kind != "LORA":
        raise ModelError(f"{path}: peft_type {kind!r}; only LORA adapters can be served")
    others = (fields.get("modules_to_save"), fields.get("use_dora"), fields.get("bias", "none") != "none")
    return AdapterConfig(
        rank=max(ranks),
        alpha=alpha,
        base=fields.get("base_model_name_or_path") or "",
        plain=not any(others),
        modules=frozenset(name.partition(".lora_")[0].rpartition(".")[2] for name in lora_tensors(directory)),
    )


def lora_tensors(directory: Path) -> set[str]:
    """Names of an adapter's LoRA matrices.

    Raises:
        ModelError: it cannot be read, or has none.
    """
    from safetensors import SafetensorError, safe_open

    weights = directory / WEIGHTS_FILE
    try:
        with safe_open(weights, framework="numpy") as tensors:
            names = {name for name in tensors.keys() if ".lora_" in name}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{weights}: {error}") from None
    if not names:
        raise ModelError(f"{weights}: holds no LoRA matrices")
    return names
