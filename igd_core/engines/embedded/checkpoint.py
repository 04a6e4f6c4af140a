"""Load a checkpoint for the embedded engine: safetensors only, no code from it, every tensor accounted for."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from igd_core.catalogue.tokenization import TitleTokenizer
from igd_core.engines.embedded.adapters import CONFIG_FILE, lora_tensors, read_adapter_config
from igd_core.engines.embedded.forward import TransformersForward
from igd_core.engines.embedded.integrity import (
    load_weights,
    named,
    not_finite,
    read_config,
    tensors_not_finite,
)
from igd_core.engines.embedded.llama import LlamaForward, why_not_own
from igd_core.engines.embedded.packed_linear import PackedLinear, multiply_plainly, pack_linears
from igd_core.engines.embedded.pooled_llama import PooledLlama, why_not_pooled
from igd_core.engines.embedded.precision import Precision, settle_precision
from igd_core.engines.embedded.self_test import require_trees_as_plain_passes, why_unproved
from igd_core.engines.forward_choice import FORWARD_CHOICES, PRECISION_CHOICES
from igd_core.engines.tuned_prompt import read_tuned_prompts
from igd_core.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PretrainedConfig, PreTrainedModel

    from igd_core.engines.embedded.adapters import Adapters
    from igd_core.engines.embedded.forward import Forward
    from igd_core.engines.forward_choice import ForwardChoice, PrecisionChoice
    from igd_core.engines.tuned_prompt import TunedPrompt

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A causal language model in evaluation mode, its tokenizer, and the name it goes by.

    Attributes:
        model: the checkpoint without adapters.
        tokenizer: its tokenizer.
        model_id: its name.
        adapted: for each adapter, a copy of the model with the adapter merged into its weights.
        prompts: what the model and its adapters were tuned on, where their folders say so.
        forwards: how the model (under None) and each adapted copy are run; transformers' modules where it does not say.
        precision: in what the models multiply.
        owned: nobody but the engine that gets it uses the models: it releases them when it closes.
    """

    model: PreTrainedModel
    tokenizer: TitleTokenizer
    model_id: str
    adapted: Mapping[str, PreTrainedModel] = field(default_factory=dict)
    prompts: Mapping[str, TunedPrompt] = field(default_factory=dict)
    forwards: Mapping[str | None, Forward] = field(default_factory=dict)
    precision: Precision = field(default_factory=Precision)
    owned: bool = False

    def model_of(self, adapter: str | None) -> PreTrainedModel:
        """The model for an adapter; None is the checkpoint itself."""
        return self.model if adapter is None else self.adapted[adapter]

    def release(self) -> None:
        """Empty every weight, whoever still holds the models; nothing can be computed with them any more.

        A model is full of references in circles, and a server exempts what it started with from Python's collector.
        """
        for forward in self.forwards.values():
            forward.release()
        for model in (self.model, *self.adapted.values()):
            for weights in (*model.parameters(), *model.buffers()):
                weights.data = torch.empty(0, dtype=weights.dtype)
            for module in model.modules():
                if isinstance(module, PackedLinear):
                    module.release()

    def forward_of(self, adapter: str | None) -> Forward:
        """How the model for an adapter is run."""
        return self.forwards.get(adapter) or TransformersForward(self.model_of(adapter))


def load_checkpoint(
    name: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    packed: bool = True,
    adapters: Adapters | Path | None = None,
    forward: ForwardChoice = "auto",
) -> Checkpoint:
    """Load a local directory or a model hub's ``owner/name``, and a copy for each adapter.

    Args:
        name: directory or hub id.
        device: ``auto`` takes CUDA if there is one.
        dtype: of all weights and all arithmetic. ``auto`` is bfloat16 on CUDA and float32 elsewhere: on a CPU the own
            forward is for float32, and `in_precision` lowers its products alone.
        packed: lay linear weights out for oneDNN where that helps (`packed_linear`); False leaves the model as it is.
        adapters: LoRA adapters by name. Each is merged into a copy of the weights: it costs memory and no time. A
            path is of one adapter that is merged into the model itself, of which there is then no other copy.
        forward: ``own`` and ``transformers`` as they are called; ``auto`` is the own one where it is proved right now
            that it computes what transformers' modules do.

    Raises:
        ModelError: not found, not safetensors, tensors that do not fit the architecture or are not finite, an
            architecture that this engine would run wrongly, an adapter that does not fit, a device that is not here, or
            ``own`` where it cannot be.
    """
    directory = resolve_checkpoint(name)
    target = device_of(device)
    if dtype == "auto":
        dtype = "bfloat16" if target.type == "cuda" else "float32"
    if dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r}: one of auto, {', '.join(DTYPES)}")
    if forward not in FORWARD_CHOICES:
        raise ModelError(f"forward {forward!r}: one of {', '.join(FORWARD_CHOICES)}")
    tokenizer = TitleTokenizer.from_directory(directory)
    merged = adapters if isinstance(adapters, Path) else None
    named_adapters = {} if adapters is None or isinstance(adapters, Path) else adapters
    prompts = read_tuned_prompts(merged or directory, named_adapters)

    def prepared(loaded: PreTrainedModel, told: Path) -> PreTrainedModel:
        model: PreTrainedModel = loaded.to(target)  # type: ignore[arg-type]
        if names := sorted({*tensors_not_finite(model)} & {name for name, _ in model.named_parameters()}):
            raise not_finite(told, names, dtype)
        return _prepared(model, packed=packed)

    config = read_config(directory)
    _refuse_unsupported(config)
    context_tokens(config)
    adapted = {
        adapter: prepared(with_adapter_merged(_load_model(directory, config, DTYPES[dtype]), adapter, path), path)
        for adapter, path in named_adapters.items()
    }
    plain = _load_model(directory, config, DTYPES[dtype])
    model = prepared(plain if merged is None else with_adapter_merged(plain, merged.name, merged), merged or directory)
    everything: list[tuple[str | None, PreTrainedModel]] = [(None, model), *adapted.items()]
    return Checkpoint(
        model=model,
        tokenizer=tokenizer,
        model_id=Path(name).name,
        adapted=adapted,
        prompts=prompts,
        forwards={adapter: proved_forward(each, forward) for adapter, each in everything},
    )


def copied_checkpoint(model: PreTrainedModel, tokenizer: TitleTokenizer, *, name: str) -> Checkpoint:
    """A copy of a model that is being tuned, as it is now, made ready for an engine that owns it.

    Raises:
        ModelError: an architecture that this engine would run wrongly.
    """
    _refuse_unsupported(model.config)
    copied = _prepared(copy.deepcopy(model), packed=True)
    return Checkpoint(
        model=copied, tokenizer=tokenizer, model_id=name, forwards={None: proved_forward(copied, "auto")}, owned=True
    )


def in_precision(checkpoint: Checkpoint, choice: PrecisionChoice) -> Checkpoint:
    """The checkpoint, whose models multiply in a precision from now on (`settle_precision`); changes them.

    Raises:
        ModelError: ``bf16`` where it cannot be, or where it finds other next tokens than fp32.
    """
    if choice not in PRECISION_CHOICES:
        raise ModelError(f"precision {choice!r}: one of {', '.join(PRECISION_CHOICES)}")
    ways = {
        adapter: (checkpoint.model_of(adapter), checkpoint.forward_of(adapter))
        for adapter in (None, *checkpoint.adapted)
    }
    return replace(checkpoint, precision=settle_precision(choice, ways, checkpoint.tokenizer))


def proved_forward(model: PreTrainedModel, choice: ForwardChoice) -> Forward:
    """The way a model is run that was asked for, after a test of it on the model.

    Raises:
        ModelError: the own forward was asked for and cannot be, or transformers' modules do not compute over a tree
            what they compute otherwise.
    """
    why = ""
    if choice != "transformers":
        on_gpu = model.device.type == "cuda"
        why = why_not_pooled(model) if on_gpu else why_not_own(model)
        if not why:
            own: Forward = PooledLlama(model) if on_gpu else LlamaForward(model)
            why = why_unproved(model, own)
            if not why:
                return own
            own.release()
        if choice == "own":
            raise ModelError(f"forward 'own': {why}; 'auto' runs this model by transformers' modules")
    require_trees_as_plain_passes(model)
    return TransformersForward(model, why=why)


def _prepared(model: PreTrainedModel, *, packed: bool) -> PreTrainedModel:
    model.requires_grad_(requires_grad=False)
    if model.device.type == "cpu":
        # transformers leaves weights mapped from the file. Pages of a file are the first that a system short of memory
        # drops, and the next request then waits for the disk: 10 s after an idle minute, measured here.
        for weights in model.parameters():
            weights.data = weights.data.clone()
    if packed:
        pack_linears(model)
        multiply_plainly(model)
    model.eval()
    return model


def with_adapter_merged(model: PreTrainedModel, name: str, directory: Path) -> PreTrainedModel:
    """The model with an adapter's matrices added to its weights; changes ``model``.

    Raises:
        ModelError: no adapter, not of this model, or peft is not installed.
    """
    read_adapter_config(directory)
    try:
        from peft import PeftModel, get_peft_model_state_dict
    except ImportError:
        raise ModelError("adapters need the package peft: pip install 'igd-recommender[train]'") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # peft warns of keys that it does not find, and goes on
            adapted: Any = PeftModel.from_pretrained(model, str(directory), adapter_name=name)
        # False: "auto" would ask a model hub whether the vocabulary grew.
        placed = get_peft_model_state_dict(adapted, adapter_name=name, save_embedding_layers=False)
        surplus = lora_tensors(directory) - set(placed)
        if surplus:
            raise ValueError(f"the model has no place for {named(sorted(surplus))}")  # noqa: TRY301 - as peft's own
        merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, UserWarning, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"adapter {name!r} ({directory}) does not fit the model: {reason}") from None
    return merged


def device_of(name: str) -> torch.device:
    """A device by name; ``auto`` takes CUDA if there is one.

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


def _load_model(directory: Path, config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    architecture = AutoModelForCausalLM._model_mapping.get(type(config), None)
    attention = "sdpa" if getattr(architecture, "_supports_sdpa", True) else "eager"
    model = load_weights(directory, config, dtype=dtype, attn_implementation=attention)
    model.eval()
    return model


def _refuse_unsupported(config: PretrainedConfig) -> None:
    """Refuse attention other than plain causal: a tree of tokens replaces the model's own mask."""
    text = config.get_text_config()
    if config.is_encoder_decoder:
        raise ModelError(f"architecture {config.model_type!r}: encoder-decoder models are not supported")
    layer_types = set(getattr(text, "layer_types", None) or ["full_attention"])
    if "local" in (getattr(text, "attention_layers", None) or ()):  # GPT-Neo's name for windows
        layer_types.add("local")
    if layer_types != {"full_attention"}:
        other = ", ".join(sorted(layer_types - {"full_attention"}))
        raise ModelError(f"architecture {config.model_type!r}: layers of type {other} are not supported")
    window = getattr(text, "sliding_window", None)
    if window is not None and getattr(text, "use_sliding_window", True):
        raise ModelError(f"architecture {config.model_type!r}: sliding-window attention ({window}) is not supported")


def context_tokens(config: PretrainedConfig) -> int:
    """The most positions of a prompt and a path together.

    With longrope, the positions up to which one set of factors applies: longer texts rotate all keys otherwise, so
    cached keys of shorter ones could not be used.

    Raises:
        ModelError: the configuration names none.
    """
    text = config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:
        raise ModelError(
            f"architecture {config.model_type!r}: config.json has no max_position_embeddings ({positions!r})"
        )
    rope = getattr(text, "rope_parameters", None) or {}
    parts = [each for each in (rope, *rope.values()) if isinstance(each, dict)]
    bounds = [each.get("original_max_position_embeddings") for each in parts if each.get("rope_type") == "longrope"]
    return min([positions, *(int(bound) for bound in bounds if bound)])
