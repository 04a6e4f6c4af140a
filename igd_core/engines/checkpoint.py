"""Loading a checkpoint for the embedded engine: safetensors only, no code from the checkpoint, no silent misfit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from igd_core.engines.packed_linear import pack_linears
from igd_core.errors import ModelError
from igd_core.tokenization import TitleTokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A causal language model in evaluation mode, its tokenizer, and the name it goes by."""

    model: PreTrainedModel
    tokenizer: TitleTokenizer
    model_id: str


def load_checkpoint(name: str | Path, *, device: str = "auto", dtype: str = "auto", packed: bool = True) -> Checkpoint:
    """Load a local directory, or a model hub's ``owner/name``.

    Args:
        name: directory or hub id.
        device: ``auto`` takes CUDA where there is one.
        dtype: ``auto`` is bfloat16 on CUDA and float32 elsewhere, where bfloat16 is slower.
        packed: lay linear weights out for oneDNN where that applies (`packed_linear`); False leaves the model plain.

    Raises:
        ModelError: not found, not safetensors, tensors that do not fit the architecture, an architecture that this
            engine would run wrongly, or a device that is not here.
    """
    directory = resolve_checkpoint(name)
    target = _device(device)
    if dtype == "auto":
        dtype = "bfloat16" if target.type == "cuda" else "float32"
    if dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r}: one of auto, {', '.join(DTYPES)}")
    tokenizer = TitleTokenizer.from_directory(directory)
    model = _load_model(directory, DTYPES[dtype]).to(target)  # type: ignore[arg-type]
    model.requires_grad_(requires_grad=False)
    if target.type == "cpu":
        # transformers leaves weights mapped from the file. Pages of a file are the first that a system short of memory
        # drops, and the next request then waits for the disk: 10 s after an idle minute, measured here.
        for weights in model.parameters():
            weights.data = weights.data.clone()
    if packed:
        pack_linears(model)
    return Checkpoint(model=model.eval(), tokenizer=tokenizer, model_id=Path(name).name)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        raise ModelError(f"device {name!r}: {str(error).splitlines()[0]}") from None
    return device


def resolve_checkpoint(name: str | Path) -> Path:
    """Local directory of a checkpoint; a hub id is downloaded once, without pickles.

    Raises:
        ModelError: neither a directory nor a repository that can be fetched.
    """
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(name), allow_patterns=["*.json", "*.safetensors", "*.model"]))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"model {str(name)!r}: no such directory, and not fetched from a hub ({reason})") from None


def _load_model(directory: Path, dtype: torch.dtype) -> PreTrainedModel:
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        _refuse_unsupported(config)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory,
            config=config,
            dtype=dtype,
            attn_implementation="sdpa",
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # reported below, where the tensor can be named
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ModelError(f"{directory}: {str(error).splitlines()[0]}") from None
    model, report = loaded
    _refuse_misfit(directory, report)
    return model  # type: ignore[no-any-return]


def _refuse_misfit(directory: Path, report: dict[str, Any]) -> None:
    """What a checkpoint lacks, transformers fills with random numbers."""
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(f"{directory}: {len(missing)} tensors of the architecture are missing, {missing[0]} first")
    misshapen = sorted(name for name, *_ in report["mismatched_keys"])
    if misshapen:
        raise ModelError(
            f"{directory}: {len(misshapen)} tensors have another shape than in config.json, {misshapen[0]} first"
        )


def _refuse_unsupported(config: PretrainedConfig) -> None:
    """A tree of tokens needs plain causal attention: its mask replaces the model's own."""
    text = config.get_text_config()
    if config.is_encoder_decoder:
        raise ModelError(f"architecture {config.model_type!r}: encoder-decoder models are not supported")
    layer_types = set(getattr(text, "layer_types", None) or ["full_attention"])
    if layer_types != {"full_attention"}:
        other = ", ".join(sorted(layer_types - {"full_attention"}))
        raise ModelError(f"architecture {config.model_type!r}: layers of type {other} are not supported")
    window = getattr(text, "sliding_window", None)
    if window is not None and getattr(text, "use_sliding_window", True):
        raise ModelError(f"architecture {config.model_type!r}: sliding-window attention ({window}) is not supported")
