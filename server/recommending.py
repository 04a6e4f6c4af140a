"""One recommendation: resolve, ask the model, fall back to popularity, and say what happened."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from igd_core.errors import EngineError, IGDError
from server.problems import DEADLINE_EXCEEDED, finding_of
from server.queries import resolve
from server.schemas import (
    BatchResult,
    ExplainedToken,
    RecommendationResponse,
    RecommendedItem,
    RequestWarning,
    Timings,
)

if TYPE_CHECKING:
    from igd_core.decoding.session import SessionStats
    from igd_core.recommender import Recommendation
    from igd_core.recommender import RecommendedItem as RankedItem
    from server.deployment import ServedCatalogue
    from server.metrics import Metrics
    from server.problems import Finding
    from server.schemas import RecommendationRequest
    from server.settings import Settings

_log = logging.getLogger("igd.server")


class RecommendationService:
    """Answers requests on the catalogue version it is given; holds no state of its own."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics

    async def answer(
        self, request: RecommendationRequest, served: ServedCatalogue, request_id: str
    ) -> RecommendationResponse:
        """Recommend.

        Raises:
            QueryError: a value that cannot be served; names the field.
            DeadlineExceeded: the deadline passed, and the request wants no fallback.
            EngineError: the engine cannot answer, and the request wants no fallback.
        """
        started = time.perf_counter()
        resolved = resolve(request, served.catalogue, self._settings)
        warnings = list(resolved.warnings)
        try:
            found = await served.recommender.recommend(resolved.query)
        except EngineError as error:
            if not request.fallback:
                raise
            warnings.append(self._fell_back(error, request_id))
            found = served.recommender.popular(resolved.query)
        self._metrics.observe_recommendation(found)
        return RecommendationResponse(
            request_id=request_id,
            catalogue=served.artifact.manifest.name,
            version=found.version,
            model=served.model_id,
            source=found.source,
            items=_items(found, served, explain=request.explain),
            warnings=warnings or None,
            timings=_timings(found.stats, time.perf_counter() - started),
        )

    async def answer_one_of_batch(
        self, request: RecommendationRequest, served: ServedCatalogue, request_id: str
    ) -> BatchResult:
        """Recommend; an error becomes this result's problem, not the batch's."""
        try:
            return BatchResult(status=200, recommendation=await self.answer(request, served, request_id))
        except IGDError as error:
            return refused_in_batch(finding_of(error), request_id)

    def _fell_back(self, error: EngineError, request_id: str) -> RequestWarning:
        finding = finding_of(error)
        reason = finding.kind.name
        self._metrics.observe_fallback(reason)
        _log.warning(
            "fallback", extra={"fields": {"request_id": request_id, "reason": reason, "detail": finding.detail}}
        )
        return RequestWarning(
            code="deadline-exceeded" if finding.kind is DEADLINE_EXCEEDED else "engine-unavailable",
            detail=finding.detail,
        )


def refused_in_batch(finding: Finding, request_id: str) -> BatchResult:
    """A problem as the answer to one request of a batch."""
    problem = finding.kind.problem(finding.detail, request_id, field=finding.field)
    return BatchResult(status=problem.status, problem=problem)


def _items(found: Recommendation, served: ServedCatalogue, *, explain: bool) -> list[RecommendedItem]:
    catalogue = served.catalogue
    return [
        RecommendedItem(
            item_id=catalogue.item_ids[item.item],
            title=catalogue.titles[item.item],
            rank=rank,
            score=item.score,
            duplicates=[catalogue.item_ids[other] for other in item.duplicates] or None,
            explanation=_explanation(item, served) if explain and item.tokens else None,
        )
        for rank, item in enumerate(found.items, start=1)
    ]


def _explanation(item: RankedItem, served: ServedCatalogue) -> list[ExplainedToken]:
    return [
        ExplainedToken(
            token=served.token_text(token.token_id),
            token_id=token.token_id,
            logprob=token.logprob,
            information_gain=token.information_gain,
            weight=token.weight,
            forced=token.forced,
        )
        for token in item.tokens
    ]


def _timings(stats: SessionStats, total_s: float) -> Timings:
    return Timings(
        total_ms=_milliseconds(total_s),
        queue_ms=_milliseconds(stats.queue_s),
        model_ms=_milliseconds(stats.model_s),
        rounds=stats.rounds,
        prompt_tokens=stats.prompt_tokens,
        cached_tokens=stats.cached_tokens,
        model_tokens=stats.model_tokens,
    )


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)
