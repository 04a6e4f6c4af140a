"""What answers showed to users, on record where an operator wants it: `igd export` writes it out."""

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING, Protocol

from igd_core.store.impressions import Impression, impressions_in
from igd_server.recommend.records import RecordLimits, RecordWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from igd_server.recommend.answers import Answer
    from igd_server.recommend.background import Background
    from igd_server.recommend.store_guard import StoreGuard
    from igd_server.settings import Settings

_SAID_EVERY_S = 60.0

_log = logging.getLogger("igd.server")


class ImpressionMetrics(Protocol):
    """Counters for impressions."""

    def observe_impressions(self, outcome: str, number: int) -> None:
        """Count answers: ``recorded`` or ``lost``."""
        ...


class Impressions:
    """Records of answers by user; none without a user, and none unless the setting says so."""

    def __init__(
        self,
        store: StoreGuard,
        background: Background,
        settings: Settings,
        *,
        metrics: ImpressionMetrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``clock`` gives seconds since 1970."""
        self._wanted = settings.impressions
        self._metrics = metrics
        self._clock = clock
        self._lost = 0
        self._said_at = -_SAID_EVERY_S
        limits = RecordLimits(keep=settings.impressions_per_user, ttl_s=settings.impressions_ttl_days * 86_400)
        self._writer = RecordWriter(store, background, "impressions", limits, self)

    def note(self, answer: Answer, *, variant: str) -> None:
        """Put an answer on record, behind it."""
        user_id = answer.asked.request.user_id
        if not self._wanted or user_id is None:
            return
        asked, at, ranked = answer.asked, self._clock(), answer.ranking.items

        def record() -> bytes:
            shown = json.loads(ranked)
            return Impression(
                request_id=asked.request_id,
                timestamp_ms=int(at * 1000),
                catalogue=asked.served.name,
                version=asked.resolved.version,
                variant=variant,
                source=answer.source,
                item_ids=tuple(item["item_id"] for item in shown),
                scores=tuple(item["score"] for item in shown),
            ).packed()

        self._writer.add(user_id, record)

    async def of(self, user_id: str) -> Sequence[Impression]:
        """What is on record of a user, oldest first."""
        return impressions_in(await self._writer.of(user_id))

    async def forget(self, user_id: str) -> None:
        """Put nothing more on record that was shown before."""
        await self._writer.forget(user_id)

    def wrote(self, records: int) -> None:
        """Count answers on record."""
        self._metrics.observe_impressions("recorded", records)

    def lost(self, records: int, cause: str) -> None:
        """Count answers that are not on record, and log them at most once a minute."""
        self._metrics.observe_impressions("lost", records)
        self._lost += records
        now = time.monotonic()
        if now - self._said_at >= _SAID_EVERY_S:
            _log.warning("impressions_lost", extra={"fields": {"answers": self._lost, "cause": cause}})
            self._said_at, self._lost = now, 0
