"""Check that a checkpoint's folder holds the model that its `config.json` describes; for every engine.

transformers fills missing tensors with random numbers, drops unknown ones, and only logs it.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from igd_core.engines.embedded.packed_linear import PackedLinear
from igd_core.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from transformers import PretrainedConfig, PreTrainedModel

_SHOWN = 3
_USUAL = frozenset({"F64", "F32", "F16", "BF16"})
_MAX_REASON_CHARS = 400
_COUNTS = (
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_size",
    "intermediate_size",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
)
# Tables that older releases of transformers saved with the weights, and newer ones compute.
_TABLES = re.compile(r"(^|\.)(inv_freq|masked_bias|position_ids|embed_positions\.weights)$")
_MASKS = re.compile(r"(^|\.)(attn|attention|self_attn|crossattention)\.bias$")
_WHOLE_NUMBERS = ("I", "U", "BOOL", "F8", "F4")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """The header of a tensor in a safetensors file: ``dtype`` as the file names it (``F32``, ``I8``)."""

    path: Path
    shape: tuple[int, ...]
    dtype: str


def read_config(directory: Path) -> PretrainedConfig:
    """Read and check a checkpoint's configuration, without the weights.

    Raises:
        ModelError: no configuration, no known architecture, or an impossible field; names the field.
    """
    from transformers import AutoConfig

    raw = _raw_config(directory)
    for name, fields in (("", raw), ("text_config.", raw.get("text_config"))):
        if isinstance(fields, dict):
            _check_counts(directory, name, fields)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:  # noqa: BLE001 - a field of the wrong kind may raise anything
        raise ModelError(f"{directory}: {_reason(error, raw)}") from None
    _check_quantization(directory, config)
    return config


def load_weights(directory: Path, config: PretrainedConfig, **how: object) -> PreTrainedModel:
    """Load the causal language model of a folder; every tensor of the file and of the model must match.

    Args:
        directory: the checkpoint's.
        config: of `read_config`.
        how: further arguments of ``from_pretrained``; ``device_map="meta"`` reads no tensor.

    Raises:
        ModelError: not safetensors, damaged, tensors that are missing, left over or of another shape, a library that
            its quantisation needs; or whatever else keeps transformers from loading it. One line.
    """
    from transformers import AutoModelForCausalLM

    try:
        with _quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                directory,
                config=config,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # reported below, where the tensor can be named
                output_loading_info=True,
                **how,
            )
    except Exception as error:  # noqa: BLE001 - as above; and libraries that are not installed raise ImportError
        raise ModelError(f"{directory}: {_reason(error, _raw_config(directory))}") from None
    model, report = loaded
    _refuse_misfit(directory, model, report)
    return model  # type: ignore[no-any-return]


def check_folder(directory: Path) -> None:
    """Check a folder without keeping its weights, for an engine that loads them itself.

    The engine checks quantised weights, and architectures that transformers does not know.

    Raises:
        ModelError: as `read_config` and `load_weights`; or a weight is not finite.
    """
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if names := _not_finite_in(directory):
        raise not_finite(directory, names)
    if _raw_config(directory).get("model_type") not in CONFIG_MAPPING:
        return
    config = read_config(directory)
    if getattr(config, "quantization_config", None) is None and type(config) in AutoModelForCausalLM._model_mapping:
        load_weights(directory, config, device_map={"": "meta"})


def not_finite(told: Path, names: Sequence[str], dtype: str = "") -> ModelError:
    """The error that refuses weights which are no numbers, in ``dtype`` if they may be in another."""
    return ModelError(f"{told}: weights that are not finite{dtype and f' in {dtype}'}: {named(names)}")


def _not_finite_in(directory: Path) -> list[str]:
    """Names of a model's tensors with NaN or infinities, of those in a usual data type; reads one at a time."""
    found = []
    for path in sorted(directory.glob("model*.safetensors")):  # others, as an adapter's, are not the model's
        try:
            with safe_open(path, framework="pt") as tensors:
                usual = [name for name in tensors.keys() if tensors.get_slice(name).get_dtype() in _USUAL]  # noqa: SIM118
                found += [name for name in usual if not _is_finite(tensors.get_tensor(name))]
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path}: {error}") from None
    return sorted(found)


def tensors_not_finite(model: PreTrainedModel) -> list[str]:
    """Names of parameters and buffers with NaN or infinities; a pass over all of them."""
    packed = ((f"{name}.weight", each.weight) for name, each in model.named_modules() if isinstance(each, PackedLinear))
    everything = (*model.named_parameters(), *model.named_buffers(), *packed)
    return sorted(name for name, each in everything if each.is_floating_point() and not _is_finite(each))


def _is_finite(values: torch.Tensor) -> bool:
    """By the smallest and the largest, which are NaN where any value is: 25 times as fast as asking each value."""
    ends = torch.stack(torch.aminmax(values)) if values.numel() else values
    return bool(torch.isfinite(ends).all())


def named(names: Sequence[str]) -> str:
    """The first few of many names."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _raw_config(directory: Path) -> dict[str, Any]:
    """``config.json`` unparsed; empty if it cannot be read, which transformers reports better."""
    try:
        raw = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return raw if isinstance(raw, dict) else {}


def _check_counts(directory: Path, prefix: str, fields: Mapping[str, Any]) -> None:
    """Check numbers that transformers accepts unchecked, and fails on much later."""
    for name in _COUNTS:
        value = fields.get(name)
        if type(value) is int and value < 1:
            raise ModelError(f"{directory}: config.json: {prefix}{name} is {value}; at least 1 is needed")
    heads, shared = fields.get("num_attention_heads"), fields.get("num_key_value_heads")
    if type(heads) is int and type(shared) is int and heads % shared:
        raise ModelError(
            f"{directory}: config.json: {prefix}num_attention_heads ({heads}) is no multiple of num_key_value_heads "
            f"({shared})"
        )


def _check_quantization(directory: Path, config: PretrainedConfig) -> None:
    """Refuse a quantisation method that transformers does not know: it would ignore it with a warning."""
    mark = getattr(config, "quantization_config", None)
    if mark is None:
        return
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    fields = mark if isinstance(mark, dict) else mark.to_dict()
    method = fields.get("quant_method")
    name = str(getattr(method, "value", method))
    if name not in {*AUTO_QUANTIZATION_CONFIG_MAPPING, "gguf", "bitsandbytes"}:
        raise ModelError(
            f"{directory}: config.json: quantization_config.quant_method is {name!r}; this release of transformers "
            "does not know it"
        )


def _refuse_misfit(directory: Path, model: PreTrainedModel, report: Mapping[str, Any]) -> None:
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(f"{directory}: {len(missing)} tensors of the architecture are missing, {missing[0]} first")
    misshapen = sorted(name for name, *_ in report["mismatched_keys"])
    if misshapen:
        raise ModelError(
            f"{directory}: {len(misshapen)} tensors have another shape than in config.json, {misshapen[0]} first"
        )
    stored = _stored_tensors(directory)
    surplus = sorted(name for name in report["unexpected_keys"] if not _is_table(name, stored))
    if surplus:
        raise ModelError(
            f"{directory}: architecture {model.config.model_type!r} has no place for {len(surplus)} tensors of the "
            f"file: {named(surplus)}"
        )
    if getattr(model.config, "quantization_config", None) is None:
        coded = sorted(
            name for name, each in stored.items() if name.endswith(".weight") and each.dtype.startswith(_WHOLE_NUMBERS)
        )
        if coded:
            raise ModelError(
                f"{directory}: {coded[0]} is stored as {stored[coded[0]].dtype}, as quantised weights are, and "
                "config.json has no quantization_config"
            )
    _refuse_two_heads(directory, model, stored)


def _refuse_two_heads(directory: Path, model: PreTrainedModel, stored: Mapping[str, StoredTensor]) -> None:
    """Refuse separate embeddings and output layer where config.json says they are one: engines differ in their use."""
    head, inputs = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or not getattr(model.config.get_text_config(), "tie_word_embeddings", False):
        return
    names = {id(each): name for name, each in model.named_modules()}
    # A file may leave out the prefix that the base model has in the whole one.
    found = [
        key
        for name in (names[id(inputs)], names[id(head)])
        for key in (f"{name}.weight", f"{name.removeprefix(f'{model.base_model_prefix}.')}.weight")
        if key in stored
    ]
    if len(set(found)) < 2:
        return
    source, tied = found[0], found[-1]
    if not torch.equal(_tensor(stored[source].path, source), _tensor(stored[tied].path, tied)):
        raise ModelError(
            f"{directory}: config.json ties {tied} to {source} (tie_word_embeddings), and the file holds both, with "
            "other numbers"
        )


def _stored_tensors(directory: Path) -> dict[str, StoredTensor]:
    """Headers of all tensors in the folder's safetensors files."""
    stored = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                head = file.get_slice(name)
                stored[name] = StoredTensor(path=path, shape=tuple(head.get_shape()), dtype=head.get_dtype())
    return stored


def _tensor(path: Path, name: str) -> torch.Tensor:
    with safe_open(path, framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
        return tensor


def _is_table(name: str, stored: Mapping[str, StoredTensor]) -> bool:
    """Whether the model computes a tensor itself: a table of rotations or positions, or a causal mask."""
    if _TABLES.search(name):
        return True
    if not _MASKS.search(name):
        return False
    shapes = [each.shape for key, each in stored.items() if name.endswith(key) or key.endswith(name)]
    return all(len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3] for shape in shapes)


def _reason(error: Exception, raw: Mapping[str, Any]) -> str:
    """What went wrong, in one line that names the field if there is one."""
    if isinstance(error, (OSError, SafetensorError)) or not raw:
        return _one_line(error)
    blamed = _blamed(error, raw)
    return f"config.json: {blamed}" if blamed else _one_line(error)


def _blamed(error: Exception, raw: Mapping[str, Any]) -> str | None:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if type(error).__name__.startswith("StrictDataclass") and len(lines) > 1:
        return re.sub(r"^\w+Error: ", "", lines[1])
    fields = list(_fields(raw))
    if isinstance(error, KeyError) and error.args:
        name = next((name for name, value in fields if value == error.args[0]), None)
        if name is not None:
            return f"{name} is {error.args[0]!r}, which this release of transformers does not know"
    if isinstance(error, (TypeError, ValueError, AttributeError, AssertionError, ArithmeticError)):
        name, value = next(((n, v) for n, v in fields if isinstance(v, str) and _is_number(v)), (None, None))
        if name is not None:
            return f"{name} is the text {value!r}; a number is needed"
    return None


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[0] if lines else ""
    if said.endswith(":") and len(lines) > 1:
        said = f"{said} {lines[1]}"
    if not isinstance(error, (OSError, ValueError, ImportError, SafetensorError)):
        said = f"{type(error).__name__}: {said}" if said else type(error).__name__
    return said[:_MAX_REASON_CHARS]


def _fields(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _fields(value, f"{prefix}{name}.")
        elif name != "transformers_version":
            yield f"{prefix}{name}", value


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text.strip()) is not None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' log and progress bar: what it would log is raised here."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
