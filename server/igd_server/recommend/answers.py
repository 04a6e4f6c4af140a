"""Answers as bytes: the ranked items are encoded once, the rest for each request.

`igd_server.api.schemas.RecommendationResponse` documents the result; it is written straight from the ranked items,
without a pydantic model in between.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from igd_core.search.session import SessionStats
from igd_core.timestamps import iso_of
from igd_server.recommend.attribution import marks_of
from igd_server.recommend.cache import Ranking
from igd_server.recommend.precomputed import age_s_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from igd_core.search.recommender import RankedItem
    from igd_core.store.precomputed import PrecomputedList
    from igd_server.api.schemas import AnswerSource
    from igd_server.catalogues.served import ServedCatalogue
    from igd_server.recommend.resolve import Asked

_JSON: TypeAdapter[Any] = TypeAdapter(Any)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer to one request, with its items already encoded.

    Attributes:
        asked: the request.
        source: who ranked.
        ranking: the items.
        cached: whether it was computed for another request.
        stats: what this request cost in the model.
        waited_s: seconds waited for a slot.
        precomputed: the list that the items are from, if they were ranked in advance.
    """

    asked: Asked
    source: AnswerSource
    ranking: Ranking
    cached: bool = False
    stats: SessionStats = field(default_factory=SessionStats)
    waited_s: float = 0.0
    precomputed: PrecomputedList | None = None

    def facts(self) -> dict[str, str | bool]:
        """Fields for the log line."""
        asked = self.asked
        facts: dict[str, str | bool] = {
            "source": self.source,
            "version": asked.resolved.version,
            "catalogue": asked.served.name,
            "cached": self.cached,
        }
        return facts if asked.variant is None else {**facts, "variant": asked.variant.name}

    def json(self) -> bytes:
        """The response's body; its timings end at this call."""
        asked, resolved = self.asked, self.asked.resolved
        head: dict[str, Any] = {
            "request_id": asked.request_id,
            "catalogue": asked.served.name,
            "version": resolved.version,
            "model": asked.served.model_id,
            "model_fingerprint": resolved.model,
            "precision": asked.served.model.precision or None,
            "variant": None if asked.variant is None else asked.variant.name,
            "source": self.source,
            "precomputed": None if self.precomputed is None else _precomputed(self.precomputed),
            **(self._scored() if self.source == "model" else {}),
            "cached": self.cached,
        }
        tail = {"warnings": asked.warnings or None, "timings": self._timings()}
        return b'%b,"items":%b,%b' % (_encoded(head)[:-1], self.ranking.items, _encoded(tail)[1:])

    def _scored(self) -> dict[str, Any]:
        """What a score is of: over what the model's part is normalised, and how much of an item scorer is in it."""
        resolved = self.asked.resolved
        if self.asked.served.recommender.scorer is None:
            return {"normalise": resolved.normalise}
        mixture = resolved.mixture if resolved.gamma else None
        return {"normalise": resolved.normalise, "gamma": resolved.gamma, "mixture": mixture}

    def _timings(self) -> dict[str, float]:
        stats = self.stats
        return {
            "total_ms": _milliseconds(asyncio.get_running_loop().time() - self.asked.started),
            "queue_ms": _milliseconds(self.waited_s + stats.queue_s),
            "model_ms": _milliseconds(stats.model_s),
            "rounds": stats.rounds,
            "prompt_tokens": stats.prompt_tokens,
            "cached_tokens": stats.cached_tokens,
            "model_tokens": stats.model_tokens,
        }


def ranking_of(items: Sequence[RankedItem], served: ServedCatalogue) -> Ranking:
    """Encode ranked items, with their ids, titles, and tokens if they have them."""
    catalogue = served.catalogue
    ids = [[catalogue.item_ids[row] for row in (item.item, *item.duplicates)] for item in items]
    sent = [
        _present(
            {
                "item_id": item_id,
                "title": catalogue.titles[item.item],
                "rank": rank,
                "score": item.score,
                "probability": item.probability,
                "duplicates": duplicates or None,
                "explanation": _explanation(item, served) if item.tokens else None,
            }
        )
        for rank, (item, (item_id, *duplicates)) in enumerate(zip(items, ids, strict=True), start=1)
    ]
    return Ranking(
        items=_JSON.dump_json(sent),
        rows=tuple(int(row) for item in items for row in (item.item, *item.duplicates)),
        marks=marks_of([item_id for each in ids for item_id in each]),
    )


def _precomputed(made: PrecomputedList) -> dict[str, Any]:
    return {
        "made_at": iso_of(made.made_at_ms),
        "age_s": age_s_of(made),
        "version": made.version,
        "model_fingerprint": made.model_fingerprint,
    }


def _explanation(item: RankedItem, served: ServedCatalogue) -> list[dict[str, Any]]:
    texts = served.token_texts(served.catalogue.texts[item.item], [token.token_id for token in item.tokens])
    return [
        _present(
            {
                "token": text,
                "token_id": token.token_id,
                "logprob": token.logprob,
                "information_gain": token.information_gain,
                "weight": token.weight,
                "forced": token.forced,
                "prior_logprob": token.prior_logprob,
                "score": None if token.prior_logprob is None else token.score,
            }
        )
        for text, token in zip(texts, item.tokens, strict=True)
    ]


def _encoded(part: dict[str, Any]) -> bytes:
    return _JSON.dump_json(_present(part), exclude_none=True)


def _present(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields that have a value; the others are absent from an answer."""
    return {name: value for name, value in fields.items() if value is not None}


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)
