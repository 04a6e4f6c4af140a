"""The engine for production: vLLM runs the model, the trie constrains it inside vLLM's worker, the search runs here.

Each node to expand is one vLLM request: its prompt is the recommendation's prompt, the node's path and the forced
chain, and it generates one token. The requests of a round share one engine step, with those of other recommendations,
and vLLM's prefix cache computes their common prompt once. docs/how-to/vllm.md has the recipe and its traps.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from igd_core.catalogue.tokenization import TitleTokenizer
from igd_core.engines.embedded.checkpoint import resolve_checkpoint
from igd_core.engines.embedded.integrity import check_folder
from igd_core.engines.fit import require_artifact_fits, require_prompt_fits
from igd_core.engines.identity import FolderDigests, runtime_of
from igd_core.engines.tuned_prompt import normalisations, read_tuned, read_tuned_prompts, warn_of_other_prompts
from igd_core.engines.vllm.device import attention_where_flashinfer_cannot_compile, require_device
from igd_core.engines.vllm.forced import ForcedLogprobs
from igd_core.engines.vllm.options import LoRARoom
from igd_core.engines.vllm.session import Prompt, VLLMSession
from igd_core.engines.vllm.shares import EngineShares
from igd_core.errors import ArtifactError, EngineClosed, EngineError, ModelError
from igd_core.search.engine import EngineStats
from igd_core.search.fairness import Turn
from igd_core.search.identity import ModelIdentity, require_adapter

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping, Sequence

    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM

    from igd_core.artifact import Artifact
    from igd_core.engines.embedded.adapters import Adapters
    from igd_core.engines.tuned_prompt import TunedPrompt
    from igd_core.engines.vllm.options import VLLMOptions
    from igd_core.search.normalisation import Normalisation
    from igd_core.search.session import Scoring

T = TypeVar("T")

_DEATH_WATCH_S = 0.2


@dataclass(slots=True, kw_only=True)
class _Version:
    """A version that the workers have loaded, and the sessions that run on it."""

    artifact: Artifact
    sessions: int = 0
    retired: bool = False


class VLLMEngine:
    """Runs a checkpoint in vLLM, for many sessions and several artifact versions at once. Belongs to one event loop."""

    def __init__(
        self,
        llm: AsyncLLM,
        *,
        identity: ModelIdentity,
        tokenizer: TitleTokenizer,
        kv_cache_bytes: int = 0,
        adapters: Adapters | None = None,
        prompts: Mapping[str, TunedPrompt] | None = None,
    ) -> None:
        """Wrap a running ``AsyncLLM``; `start` makes one."""
        self.identity = identity
        self.tokenizer = tokenizer
        self.forced = ForcedLogprobs()
        self.shares = EngineShares()
        self.llm: Any = llm
        self._limits = llm.model_config
        self._kv_cache_bytes = kv_cache_bytes
        self.room = LoRARoom()
        self._adapters = dict(adapters or {})
        self._numbers = {name: number for number, name in enumerate(self._adapters, start=1)}
        self._next_number = itertools.count(1 + len(self._adapters))
        self._published: set[str] = set()
        self._prompts = dict(prompts or {})
        self._folders: FolderDigests | None = None
        self._adapters_loaded = False
        self._versions: dict[str, _Version] = {}
        self._sessions: set[VLLMSession] = set()
        self._loading = asyncio.Lock()
        self._drops: set[asyncio.Task[None]] = set()
        self._opened = 0
        self._closed = False

    @staticmethod
    def start(options: VLLMOptions) -> VLLMEngine:
        """Load the checkpoint and start vLLM's processes: half a minute, so not on an event loop.

        Raises:
            InputError: an impossible setting.
            ModelError: the folder does not hold what its config.json speaks of; vLLM is not installed, finds no device,
                or cannot run the checkpoint with these settings.
        """
        options.check()
        # Resolve links first: if a link moves while the model is being loaded, files of two checkpoints must not mix.
        directory = resolve_checkpoint(options.model).resolve()
        adapters = {name: path.resolve() for name, path in options.adapters.items()}
        with FolderDigests(directory, *adapters.values()) as digests:
            return VLLMEngine._started(options, directory, adapters, digests)

    @staticmethod
    def _started(options: VLLMOptions, directory: Path, adapters: Adapters, digests: FolderDigests) -> VLLMEngine:
        tokenizer = TitleTokenizer.from_directory(directory)
        prompts = read_tuned_prompts(directory, adapters)
        tuned_for = normalisations(read_tuned(directory, adapters))
        check_folder(directory)  # vLLM silently drops tensors that it has no place for
        with options.environment():
            try:
                from vllm import AsyncEngineArgs
                from vllm.platforms import current_platform
                from vllm.v1.engine.async_llm import AsyncLLM
            except ImportError as error:
                raise ModelError(
                    "engine 'vllm' needs vLLM 0.32.0: pip install 'igd-recommender[vllm]' for CUDA, make setup-vllm "
                    f"for a CPU ({_last_line(error)})"
                ) from None
            require_device(current_platform)
            on_cpu = current_platform.is_cpu()
            args = options.engine_args(directory, on_cpu=on_cpu)
            if options.attention_backend is None and args["dtype"] != "float32":  # in fp32 vLLM takes Triton's
                args["attention_backend"] = attention_where_flashinfer_cannot_compile(current_platform)
            try:
                with options.environment(on_cpu=on_cpu):
                    llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**args))
            except (RuntimeError, ValueError, OSError, TimeoutError) as error:
                traceback.clear_frames(error.__traceback__)  # frames that hold vLLM's sockets
                raise ModelError(f"vLLM does not start with {options.model}: {_last_line(error)}") from error
        try:
            identity = _identity_of(llm, options, digests, tuned_for)
        except ModelError:
            llm.shutdown()
            raise
        engine = VLLMEngine(
            llm,
            identity=identity,
            tokenizer=tokenizer,
            kv_cache_bytes=args.get("kv_cache_memory_bytes", 0),
            adapters=adapters,
            prompts=prompts,
        )
        engine.room = options.lora_room()
        engine._folders = digests
        return engine

    @property
    def model_id(self) -> str:
        """Name of the checkpoint."""
        return self.identity.name

    @property
    def context_tokens(self) -> int:
        """Positions that vLLM was started for."""
        return int(self._limits.max_model_len)

    async def load(self, artifact: Artifact, *, prompts: Mapping[str, TunedPrompt] | None = None) -> None:
        """Load a version in every worker; running requests wait no longer than for mapping a file.

        Args:
            artifact: the version.
            prompts: what the models were tuned on that it is served with; this engine's own when None.

        Raises:
            ArtifactError: made for another tokenizer, or with token ids the model does not have.
            EngineError: the workers could not load it, or the engine is closed.
        """
        async with self._loading:
            self.check_open()
            held = self._versions.get(artifact.version)
            if held is not None:
                held.retired = False
                return
            self._check_fit(artifact)
            warn_of_other_prompts(self._prompts if prompts is None else prompts, artifact, self.tokenizer)
            await self._alive(self.llm.get_supported_tasks())  # asked once; later answers come from memory
            await self._load_adapters()
            with tempfile.TemporaryDirectory(prefix="igd-trie-") as scratch:
                path = Path(scratch) / "trie.safetensors"
                await asyncio.to_thread(_write_trie, artifact, path)
                await self._call_workers("load_catalogue", artifact.version, str(path))
            self._versions[artifact.version] = _Version(artifact=artifact)

    async def unload(self, version: str) -> None:
        """Unload a version; its sessions continue, and the workers keep it until the last of them closes."""
        held = self._versions.get(version)
        if held is not None:
            held.retired = True
            await self._drop_if_unused(version)

    async def open(self, version: str, prompt_ids: Sequence[int], scoring: Scoring) -> VLLMSession:
        """Start decoding one prompt.

        Raises:
            EngineError: the version is not loaded, there is no such adapter, the prompt is empty or too long, a
                setting is out of the range that the engine was started for, or the engine is closed.
        """
        self.check_open()
        require_adapter(scoring.adapter, self._adapters)
        held = self._versions.get(version)
        if held is None or held.retired:
            raise EngineError(f"catalogue version {version!r} is not loaded")
        vocab_size = int(self._limits.get_vocab_size())
        require_prompt_fits(prompt_ids, held.artifact, context_tokens=self.context_tokens, vocab_size=vocab_size)
        most = int(self._limits.max_logprobs) - 1
        if scoring.keep > most:
            raise EngineError(f"{scoring.keep} children a node are asked for; the engine was started for {most}")
        self._opened += 1
        held.sessions += 1
        prompt = Prompt(ids=list(prompt_ids), scoring=scoring, order=self._opened, turn=scoring.turn or Turn())
        self.shares.begin(prompt.turn, asyncio.get_running_loop().time())
        session = VLLMSession(self, held.artifact, prompt)
        self._sessions.add(session)
        return session

    def stats(self) -> EngineStats:
        """Requests in vLLM, sessions, versions, and the cache's size."""
        return EngineStats(
            waiting=0 if self._closed else int(self.llm.get_num_unfinished_requests()),
            sessions=len(self._sessions),
            versions=tuple(name for name, held in self._versions.items() if not held.retired),
            cache_bytes=self._kv_cache_bytes,
            healthy=self.healthy,
        )

    @property
    def healthy(self) -> bool:
        """Whether the engine is open and vLLM's processes are alive."""
        return not self._closed and not self.llm.errored

    async def forget_prompts(self) -> bool:
        """Empty the prefix cache, for measurements; False if a running request uses a part of it."""
        self.forced = ForcedLogprobs()
        return bool(await self._alive(self.llm.reset_prefix_cache()))

    async def close(self) -> None:
        """End waiting calls with EngineClosed, and stop vLLM's processes."""
        if self._closed:
            return
        self._closed = True
        for session in list(self._sessions):
            await session.abort()
        await asyncio.to_thread(self.llm.shutdown)
        self.llm = None
        gc.collect()  # vLLM shuts down again when it is collected, which fails at the interpreter's end

    def lora_request(self, adapter: str | None) -> LoRARequest | None:
        """The adapter in vLLM's form; for `VLLMSession`."""
        if adapter is None:
            return None
        from vllm.lora.request import LoRARequest

        return LoRARequest(
            lora_name=adapter, lora_int_id=self._numbers[adapter], lora_path=str(self._adapters[adapter])
        )

    async def add_adapter(self, key: str, directory: Path, *, name: str) -> None:
        """Load an adapter into a free place, unless it is there; requests go on meanwhile. For `PublishedAdapter`.

        Raises:
            ModelError: there is no free place, or vLLM cannot load it.
            EngineClosed: the engine was closed, or its process died.
        """
        async with self._loading:
            self.check_open()
            if key in self._adapters:
                return
            if len(self._published) >= self.room.places:
                raise ModelError(
                    f"adapter {name!r}: all {self.room.places} places for published adapters are taken; a swap needs "
                    "one more than are served (--vllm published_adapters)"
                )
            self._adapters[key], self._numbers[key] = directory, next(self._next_number)
            self._published.add(key)
            try:
                await self._add_to_workers(key, name)
            except BaseException:
                await self._forget_adapter(key)
                raise

    async def remove_adapter(self, key: str) -> None:
        """Abort what runs on an adapter, and take it out of vLLM. For `PublishedAdapter`."""
        async with self._loading:
            if key not in self._published:
                return
            for session in [each for each in self._sessions if each.adapter == key]:
                await session.abort()
            await self._forget_adapter(key)

    async def _forget_adapter(self, key: str) -> None:
        number = self._numbers.pop(key)
        del self._adapters[key]
        if self.healthy:
            with contextlib.suppress(EngineClosed):
                await self._alive(self.llm.remove_lora(number))
        self._published.discard(key)  # only now is its place free

    def release(self, session: VLLMSession) -> None:
        """Count a session as ended; for `VLLMSession`."""
        self._sessions.remove(session)
        version = session.artifact.version
        self._versions[version].sessions -= 1
        if self._versions[version].retired:
            drop = asyncio.ensure_future(self._drop_if_unused(version))  # who closes a session need not wait for this
            self._drops.add(drop)
            drop.add_done_callback(self._drops.discard)

    def check_open(self) -> None:
        """Raise if the engine cannot work any more.

        Raises:
            EngineClosed: the engine was closed, or its process died.
        """
        if self._closed:
            raise EngineClosed("the engine is closed")
        if self.llm.errored:
            raise EngineClosed("vLLM's engine process has died")

    async def _load_adapters(self) -> None:
        """Load adapters before a request names one: a bad adapter must not fail a request, or a whole step."""
        if self._adapters_loaded:
            return
        for name in self._adapters.keys() - self._published:
            await self._add_to_workers(name, name)
        if self._folders is not None:
            self._folders.require_unchanged()  # vLLM has read the adapters only now
        self._adapters_loaded = True

    async def _add_to_workers(self, adapter: str, name: str) -> None:
        try:
            await self._alive(self.llm.add_lora(self.lora_request(adapter)))
        except EngineError:
            raise
        except Exception as error:  # vLLM passes a worker's error on as a bare Exception
            raise ModelError(f"adapter {name!r}: vLLM cannot load it: {_last_line(error)}") from error

    def _check_fit(self, artifact: Artifact) -> None:
        vocab_size = int(self._limits.get_vocab_size())
        require_artifact_fits(artifact, self.tokenizer, vocab_size)
        widest = int(np.diff(artifact.trie.row_start).max())
        if widest >= vocab_size:
            raise ArtifactError(f"a node has all {vocab_size} tokens as children; the worker needs one that is none")

    async def _drop_if_unused(self, version: str) -> None:
        async with self._loading:
            held = self._versions.get(version)
            if held is not None and held.retired and not held.sessions:
                del self._versions[version]
                if self.healthy:
                    await self._call_workers("unload_catalogue", version)

    async def _call_workers(self, method: str, *args: str) -> None:
        try:
            await self._alive(self.llm.collective_rpc(method, args=args))
        except EngineError:
            raise
        except Exception as error:  # vLLM passes a worker's error on as a bare Exception
            raise EngineError(f"vLLM's workers failed at {method}: {_last_line(error)}") from error

    async def _alive(self, call: Coroutine[Any, Any, T]) -> T:
        """Await a call that vLLM would leave waiting for ever if its process died.

        Raises:
            EngineClosed: it died.
        """
        task = asyncio.ensure_future(call)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=_DEATH_WATCH_S)
                if self.llm.errored and not task.done():
                    raise EngineClosed("vLLM's engine process has died")
            return task.result()
        finally:
            task.cancel()


def _identity_of(
    llm: AsyncLLM, options: VLLMOptions, digests: FolderDigests, tuned_for: Mapping[str | None, Normalisation]
) -> ModelIdentity:
    from vllm.platforms import current_platform

    content, *tuned = digests.result()
    dtype = str(llm.model_config.dtype).removeprefix("torch.")
    return ModelIdentity(
        name=Path(options.model).name,
        engine="vllm",
        runtime=runtime_of("vllm", dtype=dtype, device=str(current_platform.device_type)),
        checkpoint=content,
        adapters=dict(zip(options.adapters, tuned, strict=True)),
        normalisations=tuned_for,
    )


def _write_trie(artifact: Artifact, path: Path) -> None:
    from igd_core.engines.vllm.worker import write_trie
    from igd_core.search.scores import TrieWeights

    write_trie(TrieWeights.of(artifact), path)


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip() and "errors.pydantic.dev" not in line]
    return lines[-1].strip() if lines else type(error).__name__
