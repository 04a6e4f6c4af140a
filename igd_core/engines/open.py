"""Open an engine by name, as the command line and the server's settings do."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from igd_core.engines.identity import FolderDigests, runtime_of
from igd_core.engines.tuned_prompt import normalisations, read_tuned
from igd_core.errors import InputError, ModelError
from igd_core.search.identity import ModelIdentity

if TYPE_CHECKING:
    from collections.abc import Mapping

    from igd_core.catalogue.tokenization import TitleTokenizer
    from igd_core.engines.embedded.adapters import Adapters
    from igd_core.engines.forward_choice import ForwardChoice, PrecisionChoice
    from igd_core.engines.tuned_prompt import TunedPrompt
    from igd_core.engines.vllm.engine import VLLMEngine
    from igd_core.search.engine import Engine

EngineName = Literal["tree", "vllm"]
ENGINE_NAMES: tuple[str, ...] = get_args(EngineName)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """The checkpoint, the engine, and its settings.

    Attributes:
        model: directory or hub id of the checkpoint.
        engine: ``tree`` is the embedded engine, ``vllm`` is vLLM.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``...; for vLLM ``auto``: it uses the device it was installed for.
        dtype: ``auto``, ``float32``, ``bfloat16``, ``float16``.
        cache_bytes: the embedded engine's budget for key-value caches of past prompts.
        adapters: LoRA adapters by name.
        forward: how the embedded engine runs the model: ``auto``, ``own``, ``transformers``.
        precision: of the embedded engine's products where weights are float32 on the CPU: ``auto``, ``fp32``, ``bf16``.
        vllm: further fields of ``VLLMOptions``.
        name: of the model, for answers and metrics; None takes the directory's. Means nothing to vLLM.
    """

    model: str | Path
    engine: str = "tree"
    device: str = "auto"
    dtype: str = "auto"
    cache_bytes: int = 256 << 20
    adapters: Adapters = field(default_factory=dict)
    forward: ForwardChoice = "auto"
    precision: PrecisionChoice = "fp32"
    vllm: Mapping[str, Any] = field(default_factory=dict)
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenEngine:
    """A running engine and its checkpoint's tokenizer, which turns token ids into text for people.

    ``tuned``: what the model (under None) and each of its adapters were tuned on; None if they do not say.
    """

    engine: Engine
    tokenizer: TitleTokenizer
    tuned: Mapping[str | None, TunedPrompt | None] = field(default_factory=dict)


def open_engine(options: EngineOptions) -> OpenEngine:
    """Load the checkpoint and start the engine; takes seconds, so not on an event loop.

    Raises:
        InputError: no such engine, or an impossible setting.
        ModelError: the checkpoint or an adapter cannot be used, or the engine is not installed.
    """
    if options.engine not in ENGINE_NAMES:
        raise InputError(f"engine {options.engine!r}: one of {', '.join(ENGINE_NAMES)}")
    if options.engine == "vllm":
        return _open_vllm(options)
    return _open_tree(options)


def checkpoint_sha256(name: str | Path, adapter: Path | None = None) -> str:
    """Hash over names and contents of a checkpoint's json and safetensors files, and of its adapter's.

    Raises:
        ModelError: no such checkpoint.
    """
    from igd_core.engines.embedded.checkpoint import resolve_checkpoint

    with FolderDigests(resolve_checkpoint(name), *([] if adapter is None else [adapter])) as digests:
        return digests.together()


def open_beside(options: EngineOptions, beside: Engine, *, merged: Path | None = None) -> OpenEngine:
    """Start another model on the machine's share of an engine that is running; takes seconds.

    An embedded engine has room for any model, vLLM for adapters of the checkpoint that it was started with.

    Args:
        options: of the model.
        beside: the running engine; embedded ones take turns on one thread.
        merged: a LoRA adapter of the model itself, under which it answers.

    Raises:
        InputError, ModelError: as `open_engine`; and vLLM runs the one checkpoint that it was started with.
    """
    if options.engine == "vllm":
        return _open_vllm_adapter(options, beside, merged)
    return _open_tree(options, beside=beside, merged=merged)


def _open_tree(options: EngineOptions, *, beside: Engine | None = None, merged: Path | None = None) -> OpenEngine:
    from igd_core.engines.embedded.checkpoint import in_precision, load_checkpoint, resolve_checkpoint
    from igd_core.engines.embedded.engine import TreeEngine

    # Resolve links first: if a link moves while the model is being loaded, files of two checkpoints must not mix.
    directory = resolve_checkpoint(options.model).resolve()
    adapters = {name: path.resolve() for name, path in options.adapters.items()}
    merged = None if merged is None else merged.resolve()
    with FolderDigests(directory, *([] if merged is None else [merged]), *adapters.values()) as digests:
        loaded = load_checkpoint(
            directory,
            device=options.device,
            dtype=options.dtype,
            adapters=merged or adapters,
            forward=options.forward,
        )
        loaded = in_precision(loaded, options.precision)
        checkpoint = replace(loaded, model_id=options.name or Path(options.model).name, owned=True)
        tuned = read_tuned(directory if merged is None else merged, adapters)
        content, *content_of_adapters = digests.result()
    content_of_merged = "" if merged is None else content_of_adapters.pop(0)
    dtype = str(checkpoint.model.dtype).removeprefix("torch.")
    if checkpoint.precision.name == "bf16":
        dtype += " with bf16 products"
    identity = ModelIdentity(
        name=checkpoint.model_id,
        engine="tree",
        runtime=runtime_of("tree", dtype=dtype, device=checkpoint.model.device.type),
        precision=checkpoint.precision.name,
        checkpoint=content,
        adapters=dict(zip(adapters, content_of_adapters, strict=True)),
        merged=content_of_merged,
        normalisations=normalisations(tuned),
    )
    engine = TreeEngine(
        checkpoint, cache_bytes=options.cache_bytes, identity=identity, beside=cast("TreeEngine | None", beside)
    )
    return OpenEngine(engine=engine, tokenizer=checkpoint.tokenizer, tuned=tuned)


def _open_vllm_adapter(options: EngineOptions, beside: Engine, merged: Path | None) -> OpenEngine:
    if merged is None:
        raise ModelError("engine 'vllm' runs the one checkpoint that it was started with; adapters of it may join")
    from igd_core.engines.vllm.published import PublishedAdapter

    engine, directory = cast("VLLMEngine", beside), merged.resolve()
    adapter = PublishedAdapter(engine, directory, name=options.name or directory.name)
    return OpenEngine(engine=adapter, tokenizer=engine.tokenizer, tuned=read_tuned(directory, {}))


def _open_vllm(options: EngineOptions) -> OpenEngine:
    if options.device != "auto":
        raise InputError(f"device {options.device!r}: vLLM runs on what it was installed for; leave it at auto")
    if options.forward != "auto":
        raise InputError(f"forward {options.forward!r}: vLLM has its own; leave it at auto")
    if options.precision != "fp32":
        raise InputError(f"precision {options.precision!r}: is the embedded engine's; vLLM has dtype, as bfloat16")
    from igd_core.engines.embedded.checkpoint import resolve_checkpoint
    from igd_core.engines.vllm.engine import VLLMEngine
    from igd_core.engines.vllm.options import VLLMOptions

    engine = VLLMEngine.start(
        VLLMOptions(model=options.model, dtype=options.dtype, adapters=options.adapters, **options.vllm)
    )
    tuned = read_tuned(resolve_checkpoint(options.model), options.adapters)
    return OpenEngine(engine=engine, tokenizer=engine.tokenizer, tuned=tuned)
