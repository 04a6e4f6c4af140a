"""Loading a checkpoint for the embedded engine: safetensors only, no code from the checkpoint, no silent misfit."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from igd_core.engines.adapters import CONFIG_FILE, read_adapter_config
from igd_core.engines.packed_linear import pack_linears
from igd_core.errors import ModelError
from igd_core.tokenization import TitleTokenizer
from igd_core.tuned_prompt import read_tuned_prompts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PretrainedConfig, PreTrainedModel

    from igd_core.engines.adapters import Adapters
    from igd_core.tuned_prompt import TunedPrompt

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A causal language model in evaluation mode, its tokenizer, and the name it goes by.

    Attributes:
        model: the checkpoint itself.
        tokenizer: its tokenizer.
        model_id: its name.
        adapted: for each adapter, a copy of the model with the adapter's matrices added to the weights.
        prompts: what the model and its adapters were tuned on, where their folders say so.
    """

    model: PreTrainedModel
    tokenizer: TitleTokenizer
    model_id: str
    adapted: Mapping[str, PreTrainedModel] = field(default_factory=dict)
    prompts: Mapping[str, TunedPrompt] = field(default_factory=dict)

    def model_of(self, adapter: str | None) -> PreTrainedModel:
        """The model itself for None, or its copy with that adapter."""
        return self.model if adapter is None else self.adapted[adapter]


def load_checkpoint(
    name: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    packed: bool = True,
    adapters: Adapters | None = None,
) -> Checkpoint:
    """Load a local directory, or a model hub's ``owner/name``; once more for each adapter.

    Args:
        name: directory or hub id.
        device: ``auto`` takes CUDA where there is one.
        dtype: ``auto`` is bfloat16 on CUDA and float32 elsewhere, where bfloat16 is slower.
        packed: lay linear weights out for oneDNN where that applies (`packed_linear`); False leaves the model plain.
        adapters: LoRA adapters by name. Merged into a copy of the weights, one costs memory and no time.

    Raises:
        ModelError: not found, not safetensors, tensors that do not fit the architecture, an architecture that this
            engine would run wrongly, an adapter that does not fit, or a device that is not here.
    """
    directory = resolve_checkpoint(name)
    target = device_of(device)
    if dtype == "auto":
        dtype = "bfloat16" if target.type == "cuda" else "float32"
    if dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r}: one of auto, {', '.join(DTYPES)}")
    tokenizer = TitleTokenizer.from_directory(directory)
    prompts = read_tuned_prompts(directory, adapters or {})

    def prepared(loaded: PreTrainedModel) -> PreTrainedModel:
        return _prepared(loaded.to(target), packed=packed)  # type: ignore[arg-type]

    adapted = {
        adapter: prepared(with_adapter_merged(_load_model(directory, DTYPES[dtype]), adapter, path))
        for adapter, path in (adapters or {}).items()
    }
    model = prepared(_load_model(directory, DTYPES[dtype]))
    return Checkpoint(
        model=model,
        tokenizer=tokenizer,
        model_id=Path(name).name,
        adapted=adapted,
        prompts=prompts,
    )


def _prepared(model: PreTrainedModel, *, packed: bool) -> PreTrainedModel:
    model.requires_grad_(requires_grad=False)
    if model.device.type == "cpu":
        # transformers leaves weights mapped from the file. Pages of a file are the first that a system short of memory
        # drops, and the next request then waits for the disk: 10 s after an idle minute, measured here.
        for weights in model.parameters():
            weights.data = weights.data.clone()
    if packed:
        pack_linears(model)
    model.eval()
    return model


def with_adapter_merged(model: PreTrainedModel, name: str, directory: Path) -> PreTrainedModel:
    """The model with an adapter's matrices added to its weights; changes ``model``.

    Raises:
        ModelError: no adapter, not of this model, or peft is not installed.
    """
    read_adapter_config(directory)
    try:
        from peft import PeftModel
    except ImportError:
        raise ModelError("adapters need the package peft: pip install 'igd-recommender[train]'") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # peft warns of keys that it does not find, and goes on
            adapted: Any = PeftModel.from_pretrained(model, str(directory), adapter_name=name)
        merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, UserWarning, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"adapter {name!r} ({directory}) does not fit the model: {reason}") from None
    return merged


def device_of(name: str) -> torch.device:
    """A device by name; ``auto`` takes CUDA where there is one.

    Raises:
        ModelError: it is not here.
    """
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
    directory = Path(name)
    if directory.is_dir():
        if (directory / CONFIG_FILE).is_file() and not (directory / "config.json").is_file():
            base = read_adapter_config(directory).base or "BASE"
            raise ModelError(
                f"{directory} is a LoRA adapter, not a checkpoint: give its base as the model ({base}) and the adapter "
                f"beside it (igd recommend --adapter DIR, igd serve --adapters NAME=DIR), or merge the two"
            )
        return directory
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
