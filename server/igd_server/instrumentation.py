"""Store and engine, observed from outside: they themselves know of no spans, the store of no metrics."""

from __future__ import annotations

import asyncio
import inspect
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from igd_core.errors import StoreUnavailable
from igd_core.store.base import Store

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from igd_core.ids import NodeId
    from igd_core.search.engine import Engine
    from igd_core.search.session import ChildScores, Scoring, Session
    from igd_server.observe.metrics import Metrics, Outcome
    from igd_server.observe.tracing import Tracing

_OPERATIONS = [name for name, _ in inspect.getmembers(Store, inspect.iscoroutinefunction) if name != "close"]


def observed_store(store: Store, *, metrics: Metrics, tracing: Tracing) -> Store:
    """The store, whose every call is counted, timed and traced by its method's name; a subscription is no call."""

    def observed(operation: str) -> Callable[..., Awaitable[Any]]:
        async def call(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - as the store's method
            started = time.perf_counter()
            outcome: Outcome = "ok"
            try:
                with tracing.span(f"igd.store.{operation}"):
                    return await getattr(store, operation)(*arguments, **options)
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
                metrics.observe_store(operation, outcome, time.perf_counter() - started)

        return call

    calls = {operation: observed(operation) for operation in _OPERATIONS}
    return cast("Store", SimpleNamespace(**calls, changes=store.changes, users=store.users, close=store.close))


class _Wrapped:
    """What is not defined here is the wrapped object's."""

    def __init__(self, wrapped: object, tracing: Tracing) -> None:
        self._wrapped = wrapped
        self._tracing = tracing

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - as the wrapped object's
        return getattr(self._wrapped, name)


class _TracedEngine(_Wrapped):
    async def open(self, version: str, prompt_ids: Sequence[int], scoring: Scoring) -> Session:
        session = await cast("Engine", self._wrapped).open(version, prompt_ids, scoring)
        return cast("Session", _TracedSession(session, self._tracing))


class _TracedSession(_Wrapped):
    async def expand(self, nodes: Sequence[NodeId]) -> Mapping[NodeId, ChildScores]:
        session = cast("Session", self._wrapped)
        before = session.stats
        queue_s, model_s, tokens = before.queue_s, before.model_s, before.model_tokens
        with self._tracing.span("igd.round") as span:
            scores = await session.expand(nodes)
            after = session.stats
            span.set_attributes(
                {
                    "igd.nodes": len(nodes),
                    "igd.tokens": after.model_tokens - tokens,
                    "igd.queue_ms": round((after.queue_s - queue_s) * 1000, 3),
                    "igd.model_ms": round((after.model_s - model_s) * 1000, 3),
                }
            )
            return scores


def traced_engine(engine: Engine, tracing: Tracing) -> Engine:
    """The engine, with a span for each round of each session."""
    return cast("Engine", _TracedEngine(engine, tracing))
