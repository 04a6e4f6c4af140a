"""What an engine must offer: `Engine`, which loads artifact versions and opens sessions (`igd_core.search.session`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from igd_core.artifact import Artifact
    from igd_core.search.identity import ModelIdentity
    from igd_core.search.session import Scoring, Session


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """The present state of an engine.

    Attributes:
        waiting: model calls queued.
        sessions: sessions open.
        versions: artifact versions loaded.
        cache_bytes: bytes of prompt key-value cache kept for reuse.
        healthy: whether the engine can answer.
        forward: how the model is run, where an engine has several ways: ``own`` or ``transformers``.
        why_forward: why it is not ``own``, or why ``own`` runs no CUDA graphs on a GPU; else empty.
        precision: of its products, where an engine can choose: ``fp32`` or ``bf16``.
        precision_told: how bf16 compared with fp32 when the model was loaded, or why it is not bf16.
        passes: passes of the model so far, where the engine runs them itself.
        pass_sessions: sessions that they computed something for, summed; over ``passes`` it is their mean.
        pass_tokens: tokens fed in them.
        passes_split: passes for several sessions that failed, and were run for each by itself.
    """

    waiting: int = 0
    sessions: int = 0
    versions: tuple[str, ...] = field(default=())
    cache_bytes: int = 0
    healthy: bool = True
    forward: str = ""
    why_forward: str = ""
    precision: str = ""
    precision_told: str = ""
    passes: int = 0
    pass_sessions: int = 0
    pass_tokens: int = 0
    passes_split: int = 0


class Engine(Protocol):
    """Runs a checkpoint for many sessions and several artifact versions at once."""

    @property
    def model_id(self) -> str:
        """Name of the checkpoint, for answers and metrics."""
        ...

    @property
    def identity(self) -> ModelIdentity:
        """What its answers depend on; engines with different identities must not share answers."""
        ...

    @property
    def context_tokens(self) -> int:
        """Tokens that a prompt and a path may take together."""
        ...

    async def load(self, artifact: Artifact) -> None:
        """Make a version usable; loading it again does nothing.

        Raises:
            ArtifactError: made for another tokenizer, or with token ids outside the model's vocabulary.
        """
        ...

    async def unload(self, version: str) -> None:
        """Unload a version; sessions that run on it continue."""
        ...

    async def open(self, version: str, prompt_ids: Sequence[int], scoring: Scoring) -> Session:
        """Start decoding one prompt under a loaded version.

        Raises:
            EngineError: the version is not loaded, there is no such adapter, the prompt and the version's longest path
                exceed the context, or the engine is closed.
        """
        ...

    def stats(self) -> EngineStats:
        """The present state; cheap enough for every scrape."""
        ...

    async def close(self) -> None:
        """Stop the engine; waiting calls raise EngineClosed."""
        ...
