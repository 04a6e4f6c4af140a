"""Answers as they go over the wire: the ranked items are encoded once, the rest of an answer for each request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from igd_server.api.schemas import AnswerHead, AnswerTail, ExplainedToken, RecommendedItem, Timings
from igd_server.recommend.cache import Ranking

if TYPE_CHECKING:
    from collections.abc import Sequence

    from igd_core.search.recommender import RecommendedItem as RankedItem
    from igd_core.search.session import SessionStats
    from igd_server.catalogues.served import ServedCatalogue

_ITEMS = TypeAdapter(list[RecommendedItem])
_ITEM_IDS = TypeAdapter(list[str])


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One `igd_server.api.schemas.RecommendationResponse`, with its items encoded already."""

    head: AnswerHead
    ranking: Ranking
    tail: AnswerTail

    def facts(self) -> dict[str, str | bool]:
        """For the log."""
        head = self.head
        facts: dict[str, str | bool] = {
            "source": head.source,
            "version": head.version,
            "catalogue": head.catalogue,
            "cached": head.cached,
        }
        return facts if head.variant is None else {**facts, "variant": head.variant}

    def json(self) -> bytes:
        """The response's body."""
        head = self.head.model_dump_json(exclude_none=True).encode()
        tail = self.tail.model_dump_json(exclude_none=True).encode()
        return b'%b,"items":%b,%b' % (head[:-1], self.ranking.items, tail[1:])


def ranking_of(items: Sequence[RankedItem], served: ServedCatalogue, *, explain: bool) -> Ranking:
    """Ranked items by id and title; with ``explain``, every token of those that the model ranked."""
    catalogue = served.catalogue
    sent = [
        RecommendedItem(
            item_id=catalogue.item_ids[item.item],
            title=catalogue.titles[item.item],
            rank=rank,
            score=item.score,
            duplicates=[catalogue.item_ids[other] for other in item.duplicates] or None,
            explanation=_explanation(item, served) if explain and item.tokens else None,
        )
        for rank, item in enumerate(items, start=1)
    ]
    item_ids = [item_id for item in sent for item_id in (item.item_id, *(item.duplicates or ()))]
    return Ranking(items=_ITEMS.dump_json(sent, exclude_none=True), item_ids=_ITEM_IDS.dump_json(item_ids))


def timings_of(stats: SessionStats, *, total_s: float, waited_s: float) -> Timings:
    """What an answer cost: ``waited_s`` for a place in the model, the rest in it."""
    return Timings(
        total_ms=_milliseconds(total_s),
        queue_ms=_milliseconds(waited_s + stats.queue_s),
        model_ms=_milliseconds(stats.model_s),
        rounds=stats.rounds,
        prompt_tokens=stats.prompt_tokens,
        cached_tokens=stats.cached_tokens,
        model_tokens=stats.model_tokens,
    )


def _explanation(item: RankedItem, served: ServedCatalogue) -> list[ExplainedToken]:
    texts = served.token_texts(served.catalogue.texts[item.item], [token.token_id for token in item.tokens])
    return [
        ExplainedToken(
            token=text,
            token_id=token.token_id,
            logprob=token.logprob,
            information_gain=token.information_gain,
            weight=token.weight,
            forced=token.forced,
        )
        for text, token in zip(texts, item.tokens, strict=True)
    ]


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)
