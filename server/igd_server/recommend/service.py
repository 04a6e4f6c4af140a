"""Answers one recommendation: variant and history, then the cache, the model or what stands in, counters and logs."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from igd_core.catalogue.conditions import num_values
from igd_core.errors import DeadlineExceeded, EngineError, IGDError, ModelFault, StoreError
from igd_core.search.cost import ORDINARY_BEAMS
from igd_core.search.fairness import NOBODY, Turn
from igd_core.search.identity import require_adapter
from igd_core.search.recommender import MANY_VALUES
from igd_server.api.problems import finding_of
from igd_server.api.schemas import RequestWarning
from igd_server.recommend.admission import Overloaded
from igd_server.recommend.answers import Answer, ranking_of
from igd_server.recommend.cache import name_of
from igd_server.recommend.resolve import Asked, resolve, timeout_s_of, variant_of
from igd_server.recommend.single_flight import SingleFlight

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    from igd_server.api.schemas import RecommendationRequest, WarningCode
    from igd_server.catalogues.served import ServedCatalogue
    from igd_server.observe.metrics import Metrics
    from igd_server.recommend.attribution import Attribution
    from igd_server.recommend.cache import ResultCache
    from igd_server.recommend.histories import Histories
    from igd_server.recommend.impressions import Impressions
    from igd_server.recommend.links import Links
    from igd_server.recommend.precomputed import PrecomputedLists
    from igd_server.settings import Settings

ServedOf: TypeAlias = "Callable[[str | None], ServedCatalogue]"
"""Gives a catalogue by name; the default one for None."""

# Time kept for an answer without the model, which must also reach the client before the deadline: at three times the
# capacity, requests that waited until the very deadline were answered 18 ms late (tests/bench/calm.py, p99).
_ANSWERING_S = 0.05
_ANSWERING_SHARE = 0.1

_log = logging.getLogger("igd.server")


class Catalogues(Protocol):
    """Provides catalogues."""

    def lease(self, name: str | None = None) -> AbstractContextManager[ServedCatalogue]:
        """A catalogue, by default the default one; it stays in the engine until the block ends."""
        ...


class Slots(Protocol):
    """Provides slots in the model."""

    def slot(self, timeout_s: float, turn: Turn | None = None) -> AbstractAsyncContextManager[float]:
        """A slot; yields the seconds waited for it."""
        ...

    def join(self, turn: Turn, caller: str, deadline: float) -> None:
        """Another caller waits for the same."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceParts:
    """What the service needs."""

    catalogues: Catalogues
    histories: Histories
    results: ResultCache
    attribution: Attribution
    impressions: Impressions
    links: Links
    precomputed: PrecomputedLists
    slots: Slots
    metrics: Metrics


class RecommendationService:
    """Answers recommendation requests."""

    def __init__(self, settings: Settings, parts: ServiceParts) -> None:
        self._settings = settings
        self._parts = parts
        self._faulty: set[tuple[str, str | None]] = set()  # models and adapters of which a fault has been logged
        # A deadline or a refusal ends the work for one request; the next one begins it again.
        self._work_by_key: SingleFlight[Answer] = SingleFlight(personal=(Overloaded, DeadlineExceeded))
        self._turns: dict[str, Turn] = {}  # of the work under each key, while it waits for or uses the model

    @contextlib.contextmanager
    def leases(self) -> Iterator[ServedOf]:
        """Catalogues for requests: within the block a name always means the same version, which stays in the engine."""
        with contextlib.ExitStack() as leases:
            yield functools.cache(lambda name: leases.enter_context(self._parts.catalogues.lease(name)))

    def weight(self, request: RecommendationRequest, served_of: ServedOf) -> int:
        """How many ordinary requests this one counts as, by its beams or its catalogue's: 1 for up to 10."""
        try:
            recommender = served_of(request.catalogue).recommender
            asked = recommender.artifact.manifest.beams if request.beams is None else request.beams
            beams = max(asked, request.k)
            return 1 if beams <= ORDINARY_BEAMS else recommender.costs.weight_of(beams)
        except IGDError:  # the answer will be this error
            return 1

    async def answer(
        self, request: RecommendationRequest, request_id: str, served_of: ServedOf, *, caller: str = NOBODY
    ) -> Answer:
        """Answer a request; ``caller`` is whose share of the model it uses.

        Raises:
            QueryError: a value that cannot be used; names the field.
            Overloaded: the server has too much to do.
            DeadlineExceeded: the deadline passed, and the request wants no fallback.
            EngineError: the engine cannot answer, and the request wants no fallback; or nothing is served yet.
            StoreError: the history cannot be read, and the request wants no fallback.
        """
        asked = self._taken_on(request, request_id, served_of, caller)
        await self._resolve(asked)
        answer = await self._rank(asked)
        self._observe(answer)
        return answer

    def _taken_on(self, request: RecommendationRequest, request_id: str, served_of: ServedOf, caller: str) -> Asked:
        settings = self._settings
        variant = variant_of(request, settings.variants)
        timeout_s = timeout_s_of(request, settings)
        now = _now()
        return Asked(
            request=request,
            request_id=request_id,
            caller=caller,
            variant=variant,
            served=served_of(request.catalogue or (None if variant is None else variant.catalogue)),
            timeout_s=timeout_s,
            started=now,
            deadline=now + timeout_s - min(_ANSWERING_S, timeout_s * _ANSWERING_SHARE),
            store_by=now + min(timeout_s, settings.store_timeout_ms / 1000),
        )

    async def _resolve(self, asked: Asked) -> None:
        stored = await self._stored_history(asked)
        if num_values(asked.request.filter) > MANY_VALUES:
            await asyncio.to_thread(resolve, asked, self._settings, stored=stored)
        else:
            resolve(asked, self._settings, stored=stored)

    async def _rank(self, asked: Asked) -> Answer:
        """Rank with the model; without its answer take the list made in advance, or without a history, popularity."""
        if asked.resolved.shown:
            try:
                return await self._asked_before_or_now(asked)
            except EngineError as error:
                if not asked.request.fallback:
                    raise
                code: WarningCode = "deadline-exceeded" if isinstance(error, DeadlineExceeded) else "engine-unavailable"
                self._fall_back(asked, code, error)
                if (answer := await self._made_in_advance(asked)) is not None:
                    return answer
        popular = await asked.served.recommender.popularity(asked.resolved)
        return Answer(asked=asked, source="popularity", ranking=ranking_of(popular.items, asked.served))

    async def _made_in_advance(self, asked: Asked) -> Answer | None:
        """The user's precomputed list, if it is there in time."""
        ends = asked.started + asked.timeout_s
        found = await self._parts.precomputed.answer(asked, by=(min(_now(), ends) + ends) / 2)
        if found is None:
            return None
        made, listed = found
        ranking = ranking_of(listed.items, asked.served)
        return Answer(asked=asked, source="precomputed", ranking=ranking, precomputed=made)

    def _observe(self, answer: Answer) -> None:
        """Count the answer, and note what it showed to whom."""
        asked, served, metrics = answer.asked, answer.asked.served, self._parts.metrics
        variant = "" if asked.variant is None else asked.variant.name
        metrics.observe_answer(answer.source, variant=variant, catalogue=served.name)
        untuned = served.untuned.get(asked.resolved.adapter) if answer.source == "model" else None
        if untuned is not None:
            metrics.observe_untuned(variant=variant, catalogue=served.name)
            asked.warnings.append(RequestWarning(code="model-untuned", detail=untuned))
        metrics.observe_items(served, answer.ranking.rows)
        user_id = asked.request.user_id
        self._parts.attribution.remember(
            asked.request_id, variant=variant, catalogue=served.name, marks=answer.ranking.marks, user_id=user_id
        )
        self._parts.impressions.note(answer, variant=variant)
        if user_id is not None and asked.key is not None and answer.source == "model" and self._parts.results.keeps:
            self._parts.links.note(user_id, name_of(asked.key))

    async def _stored_history(self, asked: Asked) -> list[str] | None:
        """The user's item ids; None if the request itself gives the history."""
        request = asked.request
        if request.user_id is None or "history" in request.model_fields_set:
            return None
        try:
            return await self._parts.histories.item_ids(request.user_id, by=asked.store_by)
        except StoreError as error:
            if not request.fallback:
                raise
            self._fall_back(asked, "history-unavailable", error)
            return []

    async def _asked_before_or_now(self, asked: Asked) -> Answer:
        observe = self._parts.metrics.observe_cache
        require_adapter(asked.resolved.adapter, asked.served.model.adapters)
        key = asked.key = asked.resolved.key()
        kept = self._parts.results.local(key)
        if kept is not None:
            observe("local")
            return Answer(asked=asked, source="model", ranking=kept, cached=True)
        try:
            async with asyncio.timeout_at(asked.deadline) as limit:
                if (turn := self._turns.get(key)) is not None:
                    self._parts.slots.join(turn, asked.caller, asked.deadline)
                answer = await self._work_by_key.join(key, lambda: self._work(key, asked))
        except TimeoutError:
            if not limit.expired():
                raise
            raise DeadlineExceeded(f"no answer within {asked.timeout_s:g} s") from None
        if answer.asked is not asked:
            observe("joined")
            return Answer(asked=asked, source="model", ranking=answer.ranking, cached=True)
        observe("store" if answer.cached else "miss")
        return answer

    async def _work(self, key: str, asked: Asked) -> Answer:
        """Ask the store, then the model, for ``asked`` and all who join; this may outlive ``asked`` and its lease.

        Whoever still waits has a lease of the same version.
        """
        parts, served, resolved = self._parts, asked.served, asked.resolved
        kept = await parts.results.stored(key, by=asked.store_by)
        if kept is not None:
            return Answer(asked=asked, source="model", ranking=kept, cached=True)
        cost = served.recommender.cost(resolved)
        parts.metrics.observe_cost(cost)
        turn = self._turns[key] = Turn(callers=(asked.caller,), deadline=asked.deadline, cost=cost)
        try:
            async with parts.slots.slot(asked.deadline - _now(), turn) as waited_s:
                with served.watch.answer():
                    found = await served.recommender.answer(resolved, turn=turn)
        except ModelFault as fault:
            self._note(fault, model=served.model_id, adapter=resolved.adapter)
            raise
        finally:
            if self._turns.get(key) is turn:
                del self._turns[key]
        if found.stats.rounds:
            parts.metrics.observe_decoding(found.stats)
        ranking = ranking_of(found.items, served)
        parts.results.keep(key, ranking)
        return Answer(asked=asked, source="model", ranking=ranking, stats=found.stats, waited_s=waited_s)

    def _note(self, fault: ModelFault, *, model: str, adapter: str | None) -> None:
        """Count a fault of the model; log the first one of each model and adapter."""
        self._parts.metrics.observe_model_fault(model=model, adapter=adapter or "")
        if (model, adapter) not in self._faulty:
            self._faulty.add((model, adapter))
            fields = {"model": model, "adapter": adapter, "detail": str(fault)}
            _log.error("model_fault", extra={"fields": fields})

    def _fall_back(self, asked: Asked, code: WarningCode, error: IGDError) -> None:
        detail = finding_of(error).detail
        self._parts.metrics.observe_fallback(code)
        _log.warning(
            "fallback", extra={"fields": {"request_id": asked.request_id, "reason": code, "detail": str(error)}}
        )
        asked.warnings.append(RequestWarning(code=code, detail=detail))


def _now() -> float:
    return asyncio.get_running_loop().time()
