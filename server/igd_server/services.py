"""The services behind users' requests: histories, cached answers, recommendations, attribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from igd_core.errors import InputError
from igd_server.recommend.attribution import Attribution
from igd_server.recommend.background import Background
from igd_server.recommend.cache import ResultCache
from igd_server.recommend.histories import Histories
from igd_server.recommend.impressions import Impressions
from igd_server.recommend.kinds import EventKinds
from igd_server.recommend.links import Links
from igd_server.recommend.people import People
from igd_server.recommend.precomputed import PrecomputedLists
from igd_server.recommend.service import RecommendationService, ServiceParts
from igd_server.recommend.store_guard import StoreGuard

if TYPE_CHECKING:
    from igd_server.observe.metrics import Metrics
    from igd_server.recommend.service import Catalogues, Slots
    from igd_server.recommend.store_guard import GuardedStore
    from igd_server.settings import Settings

_MAX_WAITING_JOBS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestServices:
    """The services of one process; ``close`` them before the store."""

    histories: Histories
    attribution: Attribution
    kinds: EventKinds
    people: People
    recommendations: RecommendationService
    background: Background

    @classmethod
    def join(
        cls, settings: Settings, *, catalogues: Catalogues, store: GuardedStore, slots: Slots, metrics: Metrics
    ) -> Self:
        """Make the services from parts that others own.

        Raises:
            InputError: a variant that this server cannot serve.
        """
        _check_variants(settings)
        guard = StoreGuard(
            store, timeout_s=settings.store_timeout_ms / 1000, on_giving_up=metrics.observe_store_given_up
        )
        background = Background(max_waiting=_MAX_WAITING_JOBS)
        kinds = EventKinds.of(settings)
        histories = Histories(guard, kinds=kinds)
        links = Links(guard, background, ttl_s=max(settings.attribution_ttl_s, settings.result_ttl_s))
        impressions = Impressions(guard, background, settings, metrics=metrics)
        results = ResultCache(guard, background, ttl_s=settings.result_ttl_s, max_local=settings.local_results)
        attribution = Attribution(
            guard,
            background,
            ttl_s=settings.attribution_ttl_s,
            metrics=metrics,
            variants=bool(settings.variants),
            links=links,
        )
        parts = ServiceParts(
            catalogues=catalogues,
            histories=histories,
            results=results,
            attribution=attribution,
            impressions=impressions,
            links=links,
            precomputed=PrecomputedLists(guard, wanted=settings.precomputed),
            slots=slots,
            metrics=metrics,
        )
        return cls(
            histories=histories,
            attribution=attribution,
            kinds=kinds,
            people=People(store=guard, results=results, attribution=attribution, impressions=impressions, links=links),
            recommendations=RecommendationService(settings, parts),
            background=background,
        )

    async def close(self, timeout_s: float = 2.0) -> None:
        """Write what is still unwritten, for at most ``timeout_s`` seconds."""
        await self.background.close(timeout_s)


def _check_variants(settings: Settings) -> None:
    for variant in settings.variants:
        adapters = [name for name, _ in settings.adapters]
        if variant.adapter is not None and variant.adapter not in adapters:
            raise InputError(
                f"variants: {variant.name!r} names the adapter {variant.adapter!r}; "
                f"this server has: {', '.join(adapters) or 'none'}"
            )
        if settings.catalogues and variant.catalogue is not None and variant.catalogue not in settings.catalogues:
            raise InputError(
                f"variants: {variant.name!r} names the catalogue {variant.catalogue!r}; "
                f"this server has: {', '.join(settings.catalogues)}"
            )
