"""vLLM's options: what an operator may set, and the arguments that vLLM gets."""

from __future__ import annotations

import json
import os
import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from igd_core.engines.embedded.adapters import read_adapter_config
from igd_core.errors import InputError, ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from igd_core.engines.embedded.adapters import AdapterConfig, Adapters

GIB = 1 << 30
_DTYPES = ("auto", "float32", "bfloat16", "float16")
_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # those that vLLM reserves room for
_NOT_UNDER_LORA = frozenset({"lm_head", "embed_tokens"})
_UNDER_LORA = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"})
_PUBLISHED_RANK = 16

# Fields of `VLLMOptions` that an operator may set in one JSON object; the rest comes from settings of all engines.
_TUNABLE: dict[str, tuple[type, ...]] = {
    "max_model_len": (int,),
    "block_size": (int,),
    "kv_cache_bytes": (int,),
    "gpu_memory": (float, int),
    "max_num_seqs": (int,),
    "max_num_batched_tokens": (int,),
    "tensor_parallel": (int,),
    "compiled": (bool,),
    "runner": (str,),
    "attention_backend": (str,),
    "cpu_cores": (str,),
    "published_adapters": (int,),
    "max_lora_rank": (int,),
}


def parse_tuning(text: str) -> dict[str, Any]:
    """Parse and check fields of `VLLMOptions` from a JSON object such as ``{"max_model_len": 2048}``.

    Raises:
        InputError: not such an object, an unknown field, one of the wrong type, or an impossible value.
    """
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise InputError(f"vllm: not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise InputError(f'vllm: {text!r} is no JSON object such as {{"max_model_len": 2048}}')
    for name, value in fields.items():
        if name not in _TUNABLE:
            raise InputError(f"vllm: {name!r} is no option; there are {', '.join(_TUNABLE)}")
        if type(value) not in _TUNABLE[name]:
            raise InputError(f"vllm.{name}: {json.dumps(value)} is not of type {_TUNABLE[name][0].__name__}")
    VLLMOptions(model="", **fields).check()
    return fields


@dataclass(frozen=True, slots=True, kw_only=True)
class LoRARoom:
    """What vLLM was started with for adapters that join later.

    Attributes:
        places: how many at once.
        rank: the widest.
        modules: last names of the modules that they may change.
    """

    places: int = 0
    rank: int = 0
    modules: frozenset[str] = frozenset()

    def check(self, name: str, config: AdapterConfig) -> None:
        """Refuse an adapter that this vLLM cannot run.

        Raises:
            ModelError: says why.
        """
        if not self.places:
            raise ModelError(
                f"adapter {name!r}: this vLLM was started without places for published adapters; "
                "give --vllm '{\"published_adapters\": 2}'"
            )
        _check_adapter(name, config)
        if config.rank > self.rank:
            raise ModelError(
                f"adapter {name!r}: a rank of {config.rank}; vLLM was started with max_lora_rank {self.rank}"
            )
        if others := config.modules - self.modules:
            raise ModelError(
                f"adapter {name!r}: it changes {', '.join(sorted(others))}; vLLM was started for adapters of "
                f"{', '.join(sorted(self.modules))}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class VLLMOptions:
    """Options of a vLLM engine; None means the default for the machine.

    Attributes:
        model: directory or hub id of the checkpoint.
        dtype: ``auto`` is bfloat16 on a GPU, float32 on a CPU.
        max_model_len: longest prompt and path together, in tokens; None takes the checkpoint's. It bounds the memory
            that one request may need, so set it where the checkpoint allows far more than prompts use.
        block_size: tokens that share one place in the key-value cache. Only whole blocks are reused, so every request
            computes up to a block of its prompt again: 32 on a CPU (the least its attention runs), 16 on a GPU.
        kv_cache_bytes: key-value cache. None is 1 GiB on a CPU, and on a GPU what ``gpu_memory`` leaves.
        gpu_memory: share of the GPU that vLLM may fill, weights included.
        max_num_seqs: requests that one engine step takes; a recommendation makes up to ``beams`` at once.
        max_num_batched_tokens: tokens that one engine step takes: more is throughput, less is latency for the others.
        max_beams: widest search; vLLM must be told how many log-probabilities a request may ask for.
        tensor_parallel: GPUs (on a CPU: NUMA nodes) that share one model.
        compiled: compile the model at start. None does so on a GPU only, where it is what vLLM is tuned for.
        adapters: LoRA adapters that sessions may name; all stay loaded.
        runner: vLLM's model runner; ``v2`` is for CUDA alone.
        attention_backend: vLLM's name of one, such as ``FLASH_ATTN`` or ``TRITON_ATTN``; None: vLLM chooses.
        cpu_cores: cores for the worker's threads, such as ``0-7``; None binds to all but one.
        published_adapters: places for adapters that join and leave while vLLM runs.
        max_lora_rank: the widest of them; None is 16, or the widest of ``adapters`` if that is more.
    """

    model: str | Path
    dtype: str = "auto"
    max_model_len: int | None = None
    block_size: int | None = None
    kv_cache_bytes: int | None = None
    gpu_memory: float = 0.9
    max_num_seqs: int = 128
    max_num_batched_tokens: int | None = None
    max_beams: int = 200
    tensor_parallel: int = 1
    compiled: bool | None = None
    adapters: Adapters = field(default_factory=dict)
    runner: Literal["v1", "v2"] = "v1"
    attention_backend: str | None = None
    cpu_cores: str | None = None
    published_adapters: int = 0
    max_lora_rank: int | None = None

    def check(self) -> None:
        """Refuse options with which vLLM could not start.

        Raises:
            InputError: names the setting and the value.
        """
        if self.dtype not in _DTYPES:
            raise InputError(f"dtype {self.dtype!r}: one of {', '.join(_DTYPES)}")
        if self.runner not in ("v1", "v2"):
            raise InputError(f"runner {self.runner!r}: one of v1, v2")
        if self.attention_backend is not None and not re.fullmatch(r"[A-Z][A-Z0-9_]*", self.attention_backend):
            raise InputError(f"attention_backend {self.attention_backend!r}: a name such as FLASH_ATTN is needed")
        if not 0.0 < self.gpu_memory <= 1.0:
            raise InputError(f"gpu_memory {self.gpu_memory}: a share in (0, 1] is needed")
        counts = ("max_num_seqs", "max_beams", "tensor_parallel", "max_model_len", "block_size", "kv_cache_bytes")
        if not 0 <= self.published_adapters <= 64:
            raise InputError(f"published_adapters {self.published_adapters}: 0 to 64 are possible")
        if self.max_lora_rank is not None and self.max_lora_rank > _LORA_RANKS[-1]:
            raise InputError(f"max_lora_rank {self.max_lora_rank}: vLLM runs up to {_LORA_RANKS[-1]}")
        for name in (*counts, "max_num_batched_tokens", "max_lora_rank"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} {value}: at least 1 is needed")

    def engine_args(self, directory: Path, *, on_cpu: bool) -> dict[str, Any]:
        """Keyword arguments of ``vllm.AsyncEngineArgs``; ``directory`` is the checkpoint's.

        Raises:
            ModelError: an adapter that vLLM cannot run.
        """
        processor = f"igd_core.engines.vllm.processors:TrieProcessor{self.runner.upper()}"
        optional: dict[str, Any] = {
            "max_model_len": self.max_model_len,
            "attention_backend": self.attention_backend,
            "kv_cache_memory_bytes": self.kv_cache_bytes or (GIB if on_cpu else None),
            # 1,024 tokens are 2 s of a 135M model on two cores: a longer step would delay every other request.
            "max_num_batched_tokens": self.max_num_batched_tokens or (1024 if on_cpu else None),
        }
        return {
            "model": str(directory),
            "skip_tokenizer_init": True,  # prompts and answers are token ids
            "dtype": self.dtype if self.dtype != "auto" else "float32" if on_cpu else "bfloat16",
            "block_size": self.block_size or (32 if on_cpu else 16),
            "enable_prefix_caching": True,
            "gpu_memory_utilization": self.gpu_memory,
            "max_num_seqs": self.max_num_seqs,
            "max_logprobs": 2 * self.max_beams + 1,  # 2K children, and the rest of the probability
            "logprobs_mode": "processed_logprobs",
            "logits_processors": [processor],
            "worker_extension_cls": "igd_core.engines.vllm.worker.CatalogueWorker",
            "scheduler_cls": "igd_core.engines.vllm.scheduler.RoundScheduler",
            "async_scheduling": False,  # it hides the planning of the next token, and these requests have only one
            "scheduling_policy": "priority",  # by share and deadline: `EngineShares`
            "tensor_parallel_size": self.tensor_parallel,
            "enforce_eager": on_cpu if self.compiled is None else not self.compiled,
            "trust_remote_code": False,
            "generation_config": "vllm",  # not the checkpoint's sampling defaults
            **{name: value for name, value in optional.items() if value is not None},
            **self._lora_args(on_cpu=on_cpu),
        }

    def lora_room(self) -> LoRARoom:
        """Room for published adapters.

        Raises:
            ModelError: an adapter that vLLM cannot run.
        """
        if not self.published_adapters:
            return LoRARoom()
        return LoRARoom(places=self.published_adapters, rank=self._lora_rank(), modules=self._lora_modules())

    def _lora_args(self, *, on_cpu: bool) -> dict[str, Any]:
        if not self.adapters and not self.published_adapters:
            return {}
        return {
            "enable_lora": True,
            # vLLM's CPU kernels use index -1, the last place, for a request without an adapter. So that place stays
            # empty, or such a request would get the adapter in it whenever a request with an adapter shares its step.
            # vLLM gives an adapter the first free place, so with one more than adapters the last one is never given.
            "max_loras": len(self.adapters) + self.published_adapters + on_cpu,
            "max_lora_rank": self._lora_rank(),
            # Name the modules, so that vLLM leaves the output layer alone: with LoRA around it, a step with prompt
            # log-probabilities ends the worker, whoever asked.
            "lora_target_modules": sorted(self._lora_modules()),
        }

    def _lora_configs(self) -> list[AdapterConfig]:
        configs = {name: read_adapter_config(directory) for name, directory in self.adapters.items()}
        for name, config in configs.items():
            _check_adapter(name, config)
        return list(configs.values())

    def _lora_modules(self) -> frozenset[str]:
        published = _UNDER_LORA if self.published_adapters else frozenset[str]()
        return published.union(*(config.modules for config in self._lora_configs()))

    def _lora_rank(self) -> int:
        """The widest rank, of those that vLLM reserves room for."""
        published = (self.max_lora_rank or _PUBLISHED_RANK) if self.published_adapters else 0
        widest = max([published, *(config.rank for config in self._lora_configs())])
        room = next((rank for rank in _LORA_RANKS if rank >= widest), None)
        if room is None:
            raise ModelError(f"adapters: a rank of {widest}; vLLM runs up to {_LORA_RANKS[-1]}")
        return room

    @contextmanager
    def environment(self, *, on_cpu: bool = False) -> Iterator[None]:
        """Set what vLLM reads from the environment only, while it starts; what is set already stays."""
        wanted = {
            "VLLM_USE_V2_MODEL_RUNNER": "1" if self.runner == "v2" else "0",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS": "1",  # workers leave at SIGTERM only, which comes after this
            # A forked process would keep the server's sockets open past its end, and every lock in its state at the
            # fork.
            "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
            "VLLM_LOGGING_LEVEL": "WARNING",
            "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # standard output is for results
        }
        if not on_cpu and self.dtype == "float32":
            # Its attention there is Triton's, whose fp32 products are TF32's by default: 1e-3 off.
            wanted["TRITON_F32_DEFAULT"] = "ieee"
        if self.cpu_cores is not None:
            wanted["VLLM_CPU_OMP_THREADS_BIND"] = self.cpu_cores
        if on_cpu:
            # oneDNN keeps 1,024 kernels, one for each batch size and matrix: 300 MB, and memory that grows for hours.
            wanted["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = "256"
        if on_cpu and not self.compiled:
            # Even eager vLLM compiles one small function of its sampler, and the first request waits 19 s for it.
            wanted["TORCHDYNAMO_DISABLE"] = "1"
        added = {name: value for name, value in wanted.items() if name not in os.environ}
        os.environ.update(added)
        try:
            yield
        finally:
            for name in added:
                os.environ.pop(name, None)


def _check_adapter(name: str, config: AdapterConfig) -> None:
    if not config.plain:
        raise ModelError(
            f"adapter {name!r}: it trains more than LoRA matrices, which vLLM does not run; merge it into the "
            "checkpoint, or serve it with engine tree"
        )
    if barred := config.modules & _NOT_UNDER_LORA:
        raise ModelError(
            f"adapter {name!r}: it changes {', '.join(sorted(barred))}, which vLLM cannot run with the "
            "log-probabilities of prompts; merge it into the checkpoint, or serve it with engine tree"
        )
