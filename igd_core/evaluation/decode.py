"""Decode one row under many decoding settings, with one prompt and one shared session."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from igd_core.errors import InputError
from igd_core.evaluation.shared_session import SearchPlan, SharedSession, shared_normalisation, widest_node
from igd_core.search.beam import require_whole
from igd_core.search.filters import ItemFilter, first_admitted
from igd_core.search.prior import HistoryPriors
from igd_core.search.query import Query, ResolvedQuery
from igd_core.search.session import Scoring

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from igd_core.artifact import Artifact
    from igd_core.evaluation.methods import DecodingSetting, Seen
    from igd_core.ids import ItemIndex
    from igd_core.search.beam import Hypothesis
    from igd_core.search.engine import Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class RowAnswer:
    """The lists of one row, and what they cost.

    Attributes:
        lists: for each setting, items best first, one a title, at most ``beams`` of them.
        rounds: calls of the model.
        model_tokens: tokens that went through the model.
        left_out: how many items of the history's window the model's context has no room for.
        popularity: whether popularity answered because no item of the history could be shown.
    """

    lists: tuple[tuple[ItemIndex, ...], ...]
    rounds: int
    model_tokens: int
    left_out: int = 0
    popularity: bool = False


class RowDecoder:
    """Decodes rows under a list of settings, on an engine that has the artifact loaded."""

    def __init__(
        self, engine: Engine, artifact: Artifact, settings: Sequence[DecodingSetting], *, adapter: str | None = None
    ) -> None:
        """Prepare for many rows.

        Args:
            engine: has loaded the artifact.
            artifact: holds an item scorer, if a setting mixes one in.
            settings: of the searches.
            adapter: the name of one of the engine's adapters; None for the model itself.

        Raises:
            InputError: a setting mixes in an item scorer, and the artifact holds none.
        """
        self._priors = _priors(artifact, settings)
        self._engine = engine
        self._artifact = artifact
        self._settings = list(settings)
        self._adapter = adapter
        self._keep = widest_node(artifact)
        self._popular = artifact.popular_leaves()

    async def answer(self, history: Sequence[ItemIndex]) -> RowAnswer:
        """Decode one history. As in the server, popularity answers an empty history, and one of which nothing fits.

        Raises:
            EngineError: the model failed, or its scores are not usable.
        """
        artifact = self._artifact
        queries: dict[Seen, ResolvedQuery] = {
            "allowed": self._resolved(history, exclude_seen=False),
            "excluded": self._resolved(history, exclude_seen=True),
        }
        filters = {seen: ItemFilter.of(barred=query.barred) for seen, query in queries.items()}
        leaves = {seen: each.leaves(artifact.trie, artifact.leaf_of_item) for seen, each in filters.items()}
        left_out, shown = queries["allowed"].left_out, queries["allowed"].shown
        if not shown:
            popular = [self._items(self._popular[: each.beams], filters[each.seen]) for each in self._settings]
            return RowAnswer(lists=tuple(popular), rounds=0, model_tokens=0, left_out=left_out, popularity=True)
        prompt = artifact.prompt(shown)
        priors = {} if self._priors is None else {seen: self._priors.after(shown, leaves[seen]) for seen in leaves}
        mixings = [each.mixing_after(len(history)) for each in self._settings]
        plans = [
            SearchPlan(
                alpha=each.alpha,
                beams=each.beams,
                length_penalty=each.length_penalty,
                leaves=leaves[each.seen],
                forced_weight=each.forced_weight,
                scored=each.scored_after(len(history)),
                mixing=mixing,
                prior=priors[each.seen] if mixing.gamma else None,
            )
            for each, mixing in zip(self._settings, mixings, strict=True)
        ]
        # With alpha 0 and all items admitted: raw scores of all children, which each setting weighs and prunes.
        asked = shared_normalisation(plans)
        scoring = Scoring(
            alpha=0.0,
            keep=self._keep,
            adapter=self._adapter,
            normalise=asked.normalise,
            temperature=asked.temperature,
        )
        session = await self._engine.open(artifact.version, prompt, scoring)
        try:
            found = await SharedSession(session, artifact, asked).search(plans)
        finally:
            await session.close()
        for plan, hypotheses in zip(plans, found, strict=True):
            require_whole(hypotheses, wanted=min(plan.beams, plan.leaves.count(artifact.trie.num_leaves)))
        lists = [
            self._items(_leaves(hypotheses), filters[each.seen])
            for each, hypotheses in zip(self._settings, found, strict=True)
        ]
        return RowAnswer(
            lists=tuple(lists),
            rounds=session.stats.rounds,
            model_tokens=session.stats.model_tokens,
            left_out=left_out,
        )

    def _resolved(self, history: Sequence[ItemIndex], *, exclude_seen: bool) -> ResolvedQuery:
        """What the prompt shows, and what may not come back: the rest is the settings'."""
        query = Query(history=history, k=1, exclude_seen=exclude_seen)
        return ResolvedQuery.of(query, self._artifact, self._engine, adapter=self._adapter)

    def _items(self, leaves: NDArray[np.integer], item_filter: ItemFilter) -> tuple[ItemIndex, ...]:
        artifact = self._artifact
        found = (
            first_admitted(artifact.trie.items_of(leaf), artifact.catalogue.frequency, item_filter)
            for leaf in leaves.tolist()
        )
        return tuple(items[0] for items in found if items)


def _priors(artifact: Artifact, settings: Sequence[DecodingSetting]) -> HistoryPriors | None:
    if not any(each.mixes for each in settings):
        return None
    if artifact.scorer is None:
        raise InputError("gammas: the artifact holds no item scorer; `igd build --scorer` makes one")
    return HistoryPriors.of(artifact, artifact.scorer)


def _leaves(hypotheses: Sequence[Hypothesis]) -> NDArray[np.int64]:
    return np.array([found.leaf for found in hypotheses], dtype=np.int64)
