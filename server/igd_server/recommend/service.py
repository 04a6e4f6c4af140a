"""One recommendation: whose history, which variant; from the cache, the model or popularity; and what happened."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

from igd_core.catalogue.conditions import num_values
from igd_core.errors import DeadlineExceeded, EngineError, IGDError, ModelFault, StoreError
from igd_core.search.cost import ORDINARY_BEAMS
from igd_core.search.fairness import NOBODY, Turn
from igd_core.search.recommender import MANY_VALUES
from igd_core.search.session import SessionStats
from igd_server.api.problems import finding_of
from igd_server.api.schemas import AnswerHead, AnswerTail, RequestWarning
from igd_server.recommend.admission import Overloaded
from igd_server.recommend.answers import Answer, ranking_of, timings_of
from igd_server.recommend.cache import Question, Ranking
from igd_server.recommend.faults import ModelFaults
from igd_server.recommend.resolve import resolve, shortened_history, timeout_s_of, variant_of
from igd_server.recommend.single_flight import Flights

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    from igd_core.search.recommender import Query
    from igd_server.api.schemas import AnswerSource, RecommendationRequest, WarningCode
    from igd_server.catalogues.served import ServedCatalogue
    from igd_server.observe.metrics import Metrics
    from igd_server.recommend.attribution import Attribution
    from igd_server.recommend.cache import ResultCache
    from igd_server.recommend.histories import Histories
    from igd_server.settings import Settings
    from igd_server.variants import Variant

ServedOf: TypeAlias = "Callable[[str | None], ServedCatalogue]"
"""A catalogue by name; the default one for None."""

# Kept of a request's time for an answer without the model, which must reach the client before the deadline too: at
# three times the capacity, answers given up at the very deadline were 18 ms late (tests/bench/calm.py, p99).
_ANSWERING_S = 0.05
_ANSWERING_SHARE = 0.1

_log = logging.getLogger("igd.server")


class Catalogues(Protocol):
    """Where requests get a catalogue from."""

    def lease(self, name: str | None = None) -> AbstractContextManager[ServedCatalogue]:
        """A catalogue, the default one without a name, kept in the engine until the block ends."""
        ...


class Slots(Protocol):
    """Where requests wait for the model."""

    def slot(self, timeout_s: float, turn: Turn | None = None) -> AbstractAsyncContextManager[float]:
        """A place in the model; gives the seconds that were waited for it."""
        ...

    def join(self, turn: Turn, caller: str, deadline: float) -> None:
        """Somebody waits for the same."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceParts:
    """What recommendations are made with."""

    catalogues: Catalogues
    histories: Histories
    results: ResultCache
    attribution: Attribution
    slots: Slots
    metrics: Metrics


@dataclass(slots=True, kw_only=True)
class _Asked:
    """One request on its way; ``deadline`` and ``store_by`` are times of the event loop."""

    request: RecommendationRequest
    request_id: str
    caller: str
    variant: Variant | None
    served: ServedCatalogue
    timeout_s: float
    started: float
    deadline: float
    store_by: float
    warnings: list[RequestWarning] = field(default_factory=list)

    @property
    def adapter(self) -> str | None:
        """Of the model, if the variant names one."""
        return None if self.variant is None else self.variant.adapter


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ranked:
    """Ranked items, who ranked them, and what that cost this request."""

    source: AnswerSource
    ranking: Ranking
    cached: bool = False
    stats: SessionStats = field(default_factory=SessionStats)
    waited_s: float = 0.0


class RecommendationService:
    """Answers requests."""

    def __init__(self, settings: Settings, parts: ServiceParts) -> None:
        self._settings = settings
        self._parts = parts
        self._faults = ModelFaults(parts.metrics)
        # What one request's own deadline ended, another's may still be long enough for.
        self._flights: Flights[_Ranked] = Flights(personal=(Overloaded, DeadlineExceeded))
        self._turns: dict[str, Turn] = {}  # of the work under each key, while the model is asked

    @contextlib.contextmanager
    def leases(self) -> Iterator[ServedOf]:
        """Catalogues for requests: within the block a name always means the same version, which stays in the engine."""
        with contextlib.ExitStack() as leases:
            yield functools.cache(lambda name: leases.enter_context(self._parts.catalogues.lease(name)))

    def weight(self, request: RecommendationRequest, served_of: ServedOf) -> int:
        """How many ordinary requests this one counts as, by the beams that it asks for: 1 for up to 10 of them."""
        beams = max(request.beams, request.k)
        if beams <= ORDINARY_BEAMS:
            return 1
        try:
            return served_of(request.catalogue).recommender.costs.weight_of(beams)
        except IGDError:  # which the answer will be
            return 1

    async def answer(
        self, request: RecommendationRequest, request_id: str, served_of: ServedOf, *, caller: str = NOBODY
    ) -> Answer:
        """Recommend; ``caller`` is whose share of the model it is taken from.

        Raises:
            QueryError: a value that cannot be served; names the field.
            Overloaded: too many wait for the model.
            DeadlineExceeded: the deadline passed, and the request wants no fallback.
            EngineError: the engine cannot answer, and the request wants no fallback; or nothing is served yet.
            StoreError: the history cannot be read, and the request wants no fallback.
        """
        asked = self._taken_on(request, request_id, served_of, caller)
        ranked = await self._rank(asked)
        variant, served = "" if asked.variant is None else asked.variant.name, asked.served
        self._parts.metrics.observe_answer(ranked.source, variant=variant, catalogue=served.name)
        untuned = served.untuned.get(asked.adapter) if ranked.source == "model" else None
        if untuned is not None:
            self._parts.metrics.observe_untuned(variant=variant, catalogue=served.name)
            asked.warnings.append(RequestWarning(code="model-untuned", detail=untuned))
        self._parts.metrics.observe_items(served, ranked.ranking.item_ids)
        self._parts.attribution.remember(
            request_id, variant=variant, catalogue=served.name, item_ids=ranked.ranking.item_ids
        )
        return Answer(
            head=AnswerHead(
                request_id=request_id,
                catalogue=served.name,
                version=served.version,
                model=served.model_id,
                model_fingerprint=served.model.fingerprints.get(asked.adapter),
                variant=variant or None,
                source=ranked.source,
                cached=ranked.cached,
            ),
            ranking=ranked.ranking,
            tail=AnswerTail(
                warnings=asked.warnings or None,
                timings=timings_of(ranked.stats, total_s=_now() - asked.started, waited_s=ranked.waited_s),
            ),
        )

    def _taken_on(self, request: RecommendationRequest, request_id: str, served_of: ServedOf, caller: str) -> _Asked:
        settings = self._settings
        variant = variant_of(request, settings.variants)
        timeout_s = timeout_s_of(request, settings)
        now = _now()
        return _Asked(
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

    async def _rank(self, asked: _Asked) -> _Ranked:
        """With the model where there is a history, or by popularity."""
        request, served = asked.request, asked.served
        stored = await self._stored_history(asked)
        resolving = functools.partial(
            resolve,
            request,
            served.catalogue,
            self._settings,
            stored=stored,
            variant=asked.variant,
            attributes=served.recommender.attributes,
        )
        many = num_values(request.filter) > MANY_VALUES
        resolved = await asyncio.to_thread(resolving) if many else resolving()
        asked.warnings += resolved.warnings
        query = resolved.query
        left_out = self._left_out(query, asked)
        if left_out < len(served.artifact.manifest.template.window(query.history)):
            try:
                question = Question(
                    query=query,
                    artifact=served.artifact,
                    model=served.model.fingerprint(asked.adapter),
                    explain=request.explain,
                    left_out=left_out,
                )
                return await self._asked_before_or_now(question, asked)
            except EngineError as error:
                if not request.fallback:
                    raise
                code: WarningCode = "deadline-exceeded" if isinstance(error, DeadlineExceeded) else "engine-unavailable"
                self._fall_back(asked, code, error)
        popular = await served.recommender.popularity(query)
        return _Ranked(source="popularity", ranking=ranking_of(popular.items, served, explain=False))

    def _left_out(self, query: Query, asked: _Asked) -> int:
        """How many items of the history's window do not fit into the model's context; it is told."""
        recommender = asked.served.recommender
        left_out = recommender.left_out(query.history)
        if left_out:
            asked.warnings.append(shortened_history(left_out, recommender.engine.context_tokens))
        return left_out

    async def _stored_history(self, asked: _Asked) -> list[str] | None:
        """The user's item ids; None where the request itself says what history is meant."""
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

    async def _asked_before_or_now(self, question: Question, asked: _Asked) -> _Ranked:
        observe = self._parts.metrics.observe_cache
        key = question.key()
        kept = self._parts.results.local(key)
        if kept is not None:
            observe("local")
            return _Ranked(source="model", ranking=kept, cached=True)
        try:
            async with asyncio.timeout_at(asked.deadline) as limit:
                if (turn := self._turns.get(key)) is not None:
                    self._parts.slots.join(turn, asked.caller, asked.deadline)
                landed = await self._flights.join(key, lambda: self._work(key, question, asked))
        except TimeoutError:
            if not limit.expired():
                raise
            raise DeadlineExceeded(f"no answer within {asked.timeout_s:g} s") from None
        if landed.joined:
            observe("joined")
            return _Ranked(source="model", ranking=landed.value.ranking, cached=True)
        observe("store" if landed.value.cached else "miss")
        return landed.value

    async def _work(self, key: str, question: Question, asked: _Asked) -> _Ranked:
        """Ask the store and then the model, for ``asked`` and whoever joins; both may outlive it, its lease does not.

        Nor need it: whoever still waits for this has a lease of the same version.
        """
        parts, served = self._parts, asked.served
        kept = await parts.results.stored(key, by=asked.store_by)
        if kept is not None:
            return _Ranked(source="model", ranking=kept, cached=True)
        cost = served.recommender.cost(question.query)
        parts.metrics.observe_cost(cost)
        turn = self._turns[key] = Turn(callers=(asked.caller,), deadline=asked.deadline, cost=cost)
        try:
            async with parts.slots.slot(asked.deadline - _now(), turn) as waited_s:
                with served.watch.answer():
                    found = await served.recommender.recommend(question.query, adapter=asked.adapter, turn=turn)
        except ModelFault as fault:
            self._faults.note(fault, model=served.model_id, adapter=asked.adapter)
            raise
        finally:
            if self._turns.get(key) is turn:
                del self._turns[key]
        if found.stats.rounds:
            parts.metrics.observe_decoding(found.stats)
        ranking = ranking_of(found.items, served, explain=question.explain)
        parts.results.keep(key, ranking)
        return _Ranked(source="model", ranking=ranking, stats=found.stats, waited_s=waited_s)

    def _fall_back(self, asked: _Asked, code: WarningCode, error: IGDError) -> None:
        detail = finding_of(error).detail
        self._parts.metrics.observe_fallback(code)
        _log.warning(
            "fallback", extra={"fields": {"request_id": asked.request_id, "reason": code, "detail": str(error)}}
        )
        asked.warnings.append(RequestWarning(code=code, detail=detail))


def _now() -> float:
    return asyncio.get_running_loop().time()
