"""The model to tune: a whole checkpoint, an adapter on one, or a small Llama from scratch."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from igd_core.catalogue.tokenization import TitleTokenizer
from igd_core.engines.embedded.adapters import WEIGHTS_FILE, read_adapter_config
from igd_core.engines.embedded.checkpoint import device_of, load_checkpoint, resolve_checkpoint
from igd_core.engines.embedded.integrity import load_weights, named, read_config, tensors_not_finite
from igd_core.errors import InputError, ModelError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn
    from transformers import PreTrainedModel

    from igd_core.engines.tuned_prompt import TunedPrompt
    from igd_core.tuning.settings import LoraSettings, TuningSettings

ADAPTER = "adapter"
MODEL = "model"
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    """The model to tune, and how to write it.

    Attributes:
        model: a transformers model, or peft's wrapper of one.
        tokenizer: of the checkpoint, or of the directory that a from-scratch model takes its tokenizer from.
        tokenizer_dir: the directory of the tokenizer's files.
        name: the checkpoint's name, written into an adapter; empty for a from-scratch model.
        prompt: the prompts it is tuned on, written beside the weights.
    """

    model: PreTrainedModel
    tokenizer: TitleTokenizer
    tokenizer_dir: Path
    name: str
    prompt: TunedPrompt | None = None

    @property
    def is_adapter(self) -> bool:
        """Whether only an adapter is trained and written."""
        return hasattr(self.model, "peft_config")

    @property
    def plain(self) -> PreTrainedModel:
        """The transformers model itself; an adapter is inside its layers."""
        model: Any = self.model
        plain: PreTrainedModel = model.get_base_model() if self.is_adapter else model
        return plain

    def parts(self) -> tuple[nn.Module, nn.Module]:
        """The decoder without its output layer, and the output layer.

        Raises:
            ModelError: the architecture does something else between the two, which training would skip.
        """
        decoder, head = self.plain.get_decoder(), self.plain.get_output_embeddings()
        if head is None or decoder is None or decoder is self.plain:
            raise ModelError(f"architecture {self.plain.config.model_type!r}: has no separate output layer")
        probe = torch.tensor([[0, 1, 2]], device=self.plain.device)
        was_training = self.model.training
        self.model.eval()
        with torch.no_grad():
            apart = head(decoder(input_ids=probe, use_cache=False).last_hidden_state)
            whole = self.plain(input_ids=probe, use_cache=False).logits
        self.model.train(was_training)
        if not torch.isfinite(whole).all():
            names = tensors_not_finite(self.plain)
            told = f"; not finite: {named(names)}" if names else ""
            raise ModelError(f"{self.name or 'the model'}: its logits are not finite{told}")
        if not torch.allclose(apart.float(), whole.float(), atol=1e-3, rtol=1e-3):
            raise ModelError(
                f"architecture {self.plain.config.model_type!r}: changes its logits after the output layer"
            )
        return decoder, head

    @property
    def blocks(self) -> frozenset[str]:
        """Class names of the decoder's repeated blocks, which transformers says must stay whole."""
        return frozenset(self.plain._no_split_modules or ())

    def write(self, directory: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
        """Save what was trained as safetensors: a checkpoint with its tokenizer, or an adapter alone.

        ``weights`` is the model's ``state_dict``, where its own holds parts.
        """
        if self.is_adapter:
            # False: "auto" would ask a model hub whether the vocabulary grew.
            self.model.save_pretrained(str(directory), save_embedding_layers=False, state_dict=weights)
            (directory / "README.md").unlink(missing_ok=True)  # peft's empty form of a model card
        else:
            self.model.save_pretrained(str(directory), state_dict=weights)
            copy_tokenizer(self.tokenizer_dir, directory)
        if self.prompt is not None:
            self.prompt.write(directory)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy a checkpoint's tokenizer files unchanged: artifacts match a tokenizer by hash."""
    for name in _TOKENIZER_FILES:
        if (source / name).is_file() and not (target / name).exists():
            shutil.copyfile(source / name, target / name)


def load_backbone(
    name: str | None,
    settings: TuningSettings,
    *,
    tokenizer_dir: Path | None,
    device: str,
    adapter: Path | None = None,
) -> Backbone:
    """Load or create the model, and mark the parameters to train.

    Seed torch first: initial weights and adapters are random, unless ``adapter`` is one to continue from.

    Raises:
        InputError: neither or both of a checkpoint and ``from_config``; or an adapter that does not fit the settings.
        ModelError: the checkpoint, the adapter, the device, or 4 bits without CUDA.
    """
    if adapter is not None and settings.lora is None:
        raise InputError(f"adapter: {adapter} to go on from, and nothing says that an adapter is tuned (--lora-rank)")
    if settings.from_config is not None:
        if tokenizer_dir is None:
            raise InputError("tokenizer: a model from scratch needs the directory of the artifact's tokenizer")
        return _from_scratch(settings, tokenizer_dir, device)
    if name is None:
        raise InputError("model: a checkpoint is needed, or from_config for a model from scratch")
    directory = directory_of_tokenizer = resolve_checkpoint(name)
    if settings.four_bit:
        model, tokenizer = _load_four_bit(directory, settings, device), TitleTokenizer.from_directory(directory)
    else:
        # Trained parameters stay fp32 under autocast; frozen weights may be bf16.
        frozen_bf16 = settings.lora is not None and settings.precision == "bf16"
        loaded = load_checkpoint(directory, device=device, dtype="bfloat16" if frozen_bf16 else "float32", packed=False)
        model, tokenizer = loaded.model, loaded.tokenizer
        _require_plain_weights(model, directory)
    if tokenizer_dir is not None:
        extended = TitleTokenizer.from_directory(tokenizer_dir)
        if extended.fingerprint != tokenizer.fingerprint:
            _make_room(model, tokenizer, extended, settings)
            directory_of_tokenizer, tokenizer = tokenizer_dir, extended
    short = directory.name
    if settings.lora is None:
        model.requires_grad_(requires_grad=True)
    else:
        model = _with_adapter(model, settings.lora, short)
        if adapter is not None:
            _go_on_from(model, adapter, settings.lora)
    return Backbone(model=model, tokenizer=tokenizer, tokenizer_dir=directory_of_tokenizer, name=short)


def _make_room(
    model: PreTrainedModel, tokenizer: TitleTokenizer, extended: TitleTokenizer, settings: TuningSettings
) -> None:
    """Add embedding rows for tokens added to the tokenizer, drawn around the mean of the others.

    Raises:
        InputError: another tokenizer, or tuning an adapter, which would leave the new rows untrained.
    """
    if not extended.extends(tokenizer):
        raise InputError("tokenizer: is not the checkpoint's with tokens added (igd build --extend-tokenizer)")
    added = extended.vocab_size - tokenizer.vocab_size
    if settings.lora is not None:
        raise InputError(
            f"tokenizer: {added:,} tokens more than the checkpoint's, and an adapter does not train the embedding: "
            "tune the whole model (no --lora-rank)"
        )
    embedding: Any = model.get_input_embeddings()
    if extended.vocab_size > len(embedding.weight):  # many embeddings are padded, and have room
        model.resize_token_embeddings(extended.vocab_size)


def _from_scratch(settings: TuningSettings, tokenizer_dir: Path, device: str) -> Backbone:
    from transformers import AutoModelForCausalLM, LlamaConfig

    tokenizer = TitleTokenizer.from_directory(tokenizer_dir)
    shape: dict[str, Any] = {"max_position_embeddings": 1024, "tie_word_embeddings": True}
    shape |= settings.from_config or {}
    try:
        config = LlamaConfig(
            vocab_size=tokenizer.vocab_size,
            eos_token_id=tokenizer.eos_id,
            pad_token_id=tokenizer.eos_id,
            bos_token_id=tokenizer.bos_ids[0] if tokenizer.bos_ids else None,
            **shape,
        )
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    except (ValueError, TypeError, RuntimeError, AssertionError, ZeroDivisionError) as error:
        raise InputError(f"from_config: {str(error).splitlines()[0]}") from None
    if settings.max_tokens > config.max_position_embeddings:
        raise InputError(
            f"max_tokens: {settings.max_tokens}; the model has {config.max_position_embeddings} positions "
            "(max_position_embeddings)"
        )
    return Backbone(model=model.to(device_of(device)), tokenizer=tokenizer, tokenizer_dir=tokenizer_dir, name="")


def _load_four_bit(directory: Path, settings: TuningSettings, device: str) -> PreTrainedModel:
    target = device_of(device)
    if target.type != "cuda":
        raise ModelError(f"four_bit: weights in 4 bits need CUDA, the device is {target.type}")
    try:
        import bitsandbytes  # noqa: F401 - transformers asks for it later, with a longer message
    except ImportError:
        raise ModelError("four_bit: package 'bitsandbytes' is not installed") from None
    from peft import prepare_model_for_kbit_training
    from transformers import BitsAndBytesConfig

    model = load_weights(
        directory,
        read_config(directory),
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        ),
        device_map={"": target.index or 0},
        dtype=torch.bfloat16,
        attn_implementation="sdpa",
    )
    return prepare_model_for_kbit_training(  # type: ignore[no-any-return, no-untyped-call]
        model,
        use_gradient_checkpointing=settings.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )


def _require_plain_weights(model: PreTrainedModel, directory: Path) -> None:
    """Refuse quantised weights; remove the mark that a conversion from GGUF leaves on plain weights."""
    mark = getattr(model.config, "quantization_config", None)
    if mark is None:
        return
    method = mark.get("quant_method") if isinstance(mark, dict) else getattr(mark, "quant_method", None)
    if str(getattr(method, "value", method)) != "gguf" or not all(w.is_floating_point() for w in model.parameters()):
        raise ModelError(f"{directory}: its weights are quantised ({method}); tuning needs plain ones, or --four-bit")
    del model.config.quantization_config
    for name in ("is_quantized", "hf_quantizer", "quantization_method"):
        if hasattr(model, name):
            setattr(model, name, False if name == "is_quantized" else None)


def _with_adapter(model: PreTrainedModel, lora: LoraSettings, name: str) -> PreTrainedModel:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise InputError("lora: package 'peft' is not installed: pip install 'igd-recommender[train]'") from None
    layers = int(model.config.get_text_config().num_hidden_layers)
    if lora.layers > layers:
        raise InputError(f"lora layers: {lora.layers}; the model has {layers}")
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=_linear_names(model) if lora.targets == ("all-linear",) else list(lora.targets),
        task_type="CAUSAL_LM",
        layers_to_transform=list(range(layers - lora.layers, layers)) if lora.layers else None,
    )
    try:
        adapted: Any = get_peft_model(model, config)
    except ValueError as error:
        raise InputError(f"lora targets: {str(error).splitlines()[0]}") from None
    # The name, not this machine's path: the adapter is meant to be shared.
    adapted.peft_config["default"].base_model_name_or_path = name
    return adapted  # type: ignore[no-any-return]


def _go_on_from(model: PreTrainedModel, directory: Path, lora: LoraSettings) -> None:
    """Load an earlier adapter's weights; its shape must be that of ``lora``."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    config = read_adapter_config(directory)
    for what, theirs, ours in (("rank", config.rank, lora.rank), ("alpha", config.alpha, lora.alpha)):
        if theirs != ours:
            raise InputError(f"adapter: {directory} has {what} {theirs:g}, the settings have {ours:g} (--lora-{what})")
    weights = load_file(directory / WEIGHTS_FILE)
    wanted: dict[str, torch.Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    shapes, wanted_shapes = ({name: w.shape for name, w in each.items()} for each in (weights, wanted))
    if shapes != wanted_shapes:
        name = min(name for name in {**shapes, **wanted_shapes} if shapes.get(name) != wanted_shapes.get(name))
        raise InputError(
            f"adapter: {directory} changes other modules than the settings name, or another model: {name} "
            "(--lora-targets, --lora-layers)"
        )
    set_peft_model_state_dict(model, weights)


def _linear_names(model: PreTrainedModel) -> list[str]:
    """Last names of the decoder's linear layers, which ``all-linear`` stands for."""
    head = model.get_output_embeddings()
    return sorted(
        {
            name.rsplit(".", 1)[-1]
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and module is not head
        }
    )
