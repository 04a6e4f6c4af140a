"""A LoRA adapter that joins a running vLLM, and leaves it: an engine of its own to whoever serves a version with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from igd_core.engines.embedded.adapters import read_adapter_config
from igd_core.engines.identity import FolderDigests
from igd_core.engines.tuned_prompt import normalisations, read_tuned, read_tuned_prompts
from igd_core.errors import EngineClosed
from igd_core.search.identity import ModelIdentity, require_adapter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from igd_core.artifact import Artifact
    from igd_core.engines.vllm.engine import VLLMEngine
    from igd_core.engines.vllm.session import VLLMSession
    from igd_core.search.engine import EngineStats
    from igd_core.search.session import Scoring


class PublishedAdapter:
    """The model of a `VLLMEngine` under one more adapter. Belongs to the engine's event loop; it does not own it.

    The adapter takes one of the places that vLLM was started with, from the first `load` to `close`.
    """

    def __init__(self, engine: VLLMEngine, directory: Path, *, name: str) -> None:
        """Read and hash the adapter's files: blocking. vLLM reads them at the first `load`.

        Raises:
            ModelError: no adapter, or one that this vLLM cannot run.
        """
        engine.room.check(name, read_adapter_config(directory))
        with FolderDigests(directory) as digests:
            (content,) = digests.result()
        self._digests = digests
        self._engine = engine
        self._directory = directory
        self._key = f"published {content}"  # vLLM and our own caches find prompts by it: content, and no number
        self._prompts = read_tuned_prompts(directory, {})
        self._closed = False
        base = engine.identity
        self.identity = ModelIdentity(
            name=name,
            engine=base.engine,
            runtime=base.runtime,
            checkpoint=base.checkpoint,
            merged=content,
            normalisations=normalisations(read_tuned(directory, {})),
        )

    @property
    def model_id(self) -> str:
        """Name of the adapter, as it was published."""
        return self.identity.name

    @property
    def context_tokens(self) -> int:
        """Positions that vLLM was started for."""
        return self._engine.context_tokens

    async def load(self, artifact: Artifact) -> None:
        """Have vLLM load the adapter, unless it has, and a version.

        Raises:
            ModelError: vLLM cannot load the adapter, or has no place for it.
            ArtifactError, EngineError: as `VLLMEngine.load`.
        """
        self._check_open()
        await self._engine.add_adapter(self._key, self._directory, name=self.model_id)
        self._digests.require_unchanged()
        await self._engine.load(artifact, prompts=self._prompts)

    async def unload(self, version: str) -> None:
        """Unload a version; its sessions continue."""
        await self._engine.unload(version)

    async def open(self, version: str, prompt_ids: Sequence[int], scoring: Scoring) -> VLLMSession:
        """Start decoding one prompt.

        Raises:
            EngineError: as `VLLMEngine.open`; or the request names an adapter.
        """
        self._check_open()
        require_adapter(scoring.adapter, {})
        return await self._engine.open(version, prompt_ids, replace(scoring, adapter=self._key))

    def stats(self) -> EngineStats:
        """The engine's, without what it counts itself: sessions, versions, and its cache."""
        return replace(self._engine.stats(), sessions=0, versions=(), cache_bytes=0)

    async def close(self) -> None:
        """Take the adapter out of vLLM; sessions on it end, and vLLM goes on."""
        if not self._closed:
            self._closed = True
            await self._engine.remove_adapter(self._key)

    def _check_open(self) -> None:
        if self._closed:
            raise EngineClosed(f"the adapter {self.model_id!r} has left the engine")
