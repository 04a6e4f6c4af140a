"""Store, admission and engine, observed from outside: they themselves know of no spans, the store of no metrics."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, TypeVar

from igd_core.errors import StoreUnavailable
from igd_server.recommend.admission import Admission

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
    from pathlib import Path

    from igd_core.artifact import Artifact
    from igd_core.ids import NodeId
    from igd_core.search.engine import Engine, EngineStats
    from igd_core.search.fairness import Turn
    from igd_core.search.identity import ModelIdentity
    from igd_core.search.session import ChildScores, Scoring, Session, SessionStats
    from igd_core.store.base import Store, StoredVersion
    from igd_core.store.events import Event
    from igd_core.store.pointers import PointerMove
    from igd_core.store.trials import Trial, Verdict
    from igd_server.observe.metrics import Metrics, Outcome
    from igd_server.observe.tracing import Tracing

T = TypeVar("T")


class ObservedStore:
    """A store whose every call is counted, timed and traced by its method's name."""

    def __init__(self, store: Store, *, metrics: Metrics, tracing: Tracing) -> None:
        self._store = store
        self._metrics = metrics
        self._tracing = tracing

    async def _observed(self, operation: str, call: Awaitable[T]) -> T:
        started = time.perf_counter()
        outcome: Outcome = "ok"
        try:
            with self._tracing.span(f"igd.store.{operation}"):
                return await call
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except StoreUnavailable:
            outcome = "unavailable"
            raise
        except Exception:
            outcome = "refused"
            raise
        finally:
            self._metrics.observe_store(operation, outcome, time.perf_counter() - started)

    async def add(self, directory: Path, *, catalogue: str | None = None) -> str:
        """As the store's."""
        return await self._observed("add", self._store.add(directory, catalogue=catalogue))

    async def activate(self, catalogue: str, version: str) -> None:
        """As the store's."""
        await self._observed("activate", self._store.activate(catalogue, version))

    async def roll_back(self, catalogue: str, version: str | None = None) -> PointerMove:
        """As the store's."""
        return await self._observed("roll_back", self._store.roll_back(catalogue, version))

    async def current(self, catalogue: str) -> str | None:
        """As the store's."""
        return await self._observed("current", self._store.current(catalogue))

    async def previous(self, catalogue: str) -> str | None:
        """As the store's."""
        return await self._observed("previous", self._store.previous(catalogue))

    async def catalogues(self) -> Sequence[str]:
        """As the store's."""
        return await self._observed("catalogues", self._store.catalogues())

    async def versions(self, catalogue: str) -> Sequence[StoredVersion]:
        """As the store's."""
        return await self._observed("versions", self._store.versions(catalogue))

    async def fetch(self, catalogue: str, version: str, parent: Path) -> Path:
        """As the store's."""
        return await self._observed("fetch", self._store.fetch(catalogue, version, parent))

    async def hold(self, catalogue: str, version: str, holder: str, ttl_s: float) -> None:
        """As the store's."""
        await self._observed("hold", self._store.hold(catalogue, version, holder, ttl_s))

    async def trial(self, catalogue: str, version: str) -> Trial:
        """As the store's."""
        return await self._observed("trial", self._store.trial(catalogue, version))

    async def begin_trial(self, catalogue: str, version: str, holder: str, ttl_s: float) -> Trial:
        """As the store's."""
        return await self._observed("begin_trial", self._store.begin_trial(catalogue, version, holder, ttl_s))

    async def end_trial(self, catalogue: str, version: str, holder: str, verdict: Verdict, detail: str = "") -> Trial:
        """As the store's."""
        return await self._observed("end_trial", self._store.end_trial(catalogue, version, holder, verdict, detail))

    async def allow(self, catalogue: str, version: str) -> None:
        """As the store's."""
        await self._observed("allow", self._store.allow(catalogue, version))

    async def prune(self, catalogue: str, *, keep: int) -> Sequence[str]:
        """As the store's."""
        return await self._observed("prune", self._store.prune(catalogue, keep=keep))

    def changes(self) -> AsyncIterator[str]:
        """As the store's; a subscription is no call, and not observed."""
        return self._store.changes()

    async def append(self, user_id: str, events: Sequence[Event]) -> int:
        """As the store's."""
        return await self._observed("append", self._store.append(user_id, events))

    async def history(self, user_id: str) -> Sequence[Event]:
        """As the store's."""
        return await self._observed("history", self._store.history(user_id))

    async def forget(self, user_id: str) -> bool:
        """As the store's."""
        return await self._observed("forget", self._store.forget(user_id))

    async def get(self, key: str) -> bytes | None:
        """As the store's."""
        return await self._observed("get", self._store.get(key))

    async def put(self, key: str, value: bytes, ttl_s: float) -> None:
        """As the store's."""
        await self._observed("put", self._store.put(key, value, ttl_s))

    async def put_all(self, values: Mapping[str, bytes], ttl_s: float) -> None:
        """As the store's."""
        await self._observed("put_all", self._store.put_all(values, ttl_s))

    async def ping(self) -> None:
        """As the store's."""
        await self._observed("ping", self._store.ping())

    async def close(self) -> None:
        """As the store's."""
        await self._store.close()


class TracedAdmission(Admission):
    """Admission with a span for each wait."""

    def __init__(self, max_running: int, max_waiting: int, *, metrics: Metrics, tracing: Tracing) -> None:
        super().__init__(max_running, max_waiting, metrics=metrics)
        self._tracing = tracing

    async def enter(self, timeout_s: float, turn: Turn) -> str:
        """As admission's."""
        with self._tracing.span("igd.queue"):
            return await super().enter(timeout_s, turn)


class TracedEngine:
    """An engine with a span for each round of each session."""

    def __init__(self, engine: Engine, tracing: Tracing) -> None:
        self._engine = engine
        self._tracing = tracing

    @property
    def model_id(self) -> str:
        """As the engine's."""
        return self._engine.model_id

    @property
    def identity(self) -> ModelIdentity:
        """As the engine's."""
        return self._engine.identity

    @property
    def context_tokens(self) -> int:
        """As the engine's."""
        return self._engine.context_tokens

    async def load(self, artifact: Artifact) -> None:
        """As the engine's."""
        await self._engine.load(artifact)

    async def unload(self, version: str) -> None:
        """As the engine's."""
        await self._engine.unload(version)

    async def open(self, version: str, prompt_ids: Sequence[int], scoring: Scoring) -> TracedSession:
        """As the engine's."""
        return TracedSession(await self._engine.open(version, prompt_ids, scoring), self._tracing)

    def stats(self) -> EngineStats:
        """As the engine's."""
        return self._engine.stats()

    async def close(self) -> None:
        """As the engine's."""
        await self._engine.close()


class TracedSession:
    """A session with a span for each round."""

    def __init__(self, session: Session, tracing: Tracing) -> None:
        self._session = session
        self._tracing = tracing

    @property
    def stats(self) -> SessionStats:
        """As the session's."""
        return self._session.stats

    async def expand(self, nodes: Sequence[NodeId]) -> Mapping[NodeId, ChildScores]:
        """As the session's."""
        stats = self._session.stats
        queue_s, model_s, tokens = stats.queue_s, stats.model_s, stats.model_tokens
        with self._tracing.span("igd.round") as span:
            scores = await self._session.expand(nodes)
            after = self._session.stats
            span.set_attributes(
                {
                    "igd.nodes": len(nodes),
                    "igd.tokens": after.model_tokens - tokens,
                    "igd.queue_ms": round((after.queue_s - queue_s) * 1000, 3),
                    "igd.model_ms": round((after.model_s - model_s) * 1000, 3),
                }
            )
            return scores

    async def close(self) -> None:
        """As the session's."""
        await self._session.close()
