"""From a history to ranked items: prompt, filters, search, and the items of each path.

A `Recommender` joins an engine with one artifact version. It knows item rows, not item ids, users or HTTP.
"""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from igd_core.catalogue.attributes import AttributeIndex
from igd_core.catalogue.gain import decoding_weight
from igd_core.errors import DeadlineExceeded
from igd_core.ids import ItemIndex, LeafIndex
from igd_core.search.beam import BeamSearch, Hypothesis, require_whole
from igd_core.search.cost import DecodingCost
from igd_core.search.filters import ItemFilter, LeafFilter, Matching, first_admitted
from igd_core.search.prior import HistoryPriors, PriorMixer
from igd_core.search.query import Query, ResolvedQuery
from igd_core.search.session import Scoring, SessionStats

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from igd_core.artifact import Artifact
    from igd_core.catalogue.conditions import Condition
    from igd_core.scorers.mass import ItemScorer
    from igd_core.search.engine import Engine
    from igd_core.search.fairness import Turn

_LOOKED_AT = 32
"""How many of the most popular leaves to look at for each one wanted, before computing all that a filter admits."""
MANY_VALUES = 256
"""That a filter names; looking for so many takes 5 to 10 ms. Fewer are no quicker beside an event loop: this is work of
the interpreter, and whoever holds it keeps it for 5 ms."""
_LONG = 50_000
"""Items times attributes of a filter above which handing it to a thread (0.1 ms) takes less time."""
_KEPT_BYTES = 16
"""Bytes an item for keeping the items that filters match: many requests have the same filter, such as "in stock"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedToken:
    """One token of an item's path.

    Attributes:
        token_id: in the model's vocabulary.
        score: what the token adds to the item's, nats; divided as that is with a length penalty.
        logprob: nats, unweighted, normalised as the query asks; None if it does not count and was not computed.
        information_gain: nats, of the whole catalogue.
        weight: factor of the log-probability: ``1 - alpha * g``, or ``forced_weight`` if forced; times
            ``1 - gamma`` in a log-linear mixture.
        forced: whether the trie left no other token here.
        prior_logprob: nats; the item scorer's probability of this child among those of its node, of which gamma times
            goes into the score of a log-linear mixture. None with gamma 0.
    """

    token_id: int
    score: float
    logprob: float | None
    information_gain: float
    weight: float
    forced: bool
    prior_logprob: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedItem:
    """An item, its score (weighted log-probability in nats; for popularity, the share of interactions), and its tokens.

    Attributes:
        item: the most popular admitted item of the path.
        score: higher is better.
        probability: that the model gives the path, whatever alpha, gamma and the filters: of this item and its
            duplicates together. Over all paths it sums to 1. None where scores are not normalised over children.
        duplicates: other admitted items with the same path, most popular first.
        tokens: the path, EOS included; empty for popularity, and where the query does not ask for them.
    """

    item: ItemIndex
    score: float
    probability: float | None = None
    duplicates: tuple[ItemIndex, ...] = ()
    tokens: tuple[ExplainedToken, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """A recommendation: ranked items, and how they were found.

    Attributes:
        query: the query that it answers.
        source: who ranked: the model, popularity, or a list made in advance.
        items: best first.
        prompt_ids: token ids of the prompt.
        stats: what it cost.
    """

    query: ResolvedQuery
    source: Literal["model", "popularity", "precomputed"]
    items: tuple[RankedItem, ...]
    prompt_ids: tuple[int, ...] = ()
    stats: SessionStats = field(default_factory=SessionStats)


class Recommender:
    """Recommends from one artifact version, on an engine that has loaded it."""

    def __init__(self, artifact: Artifact, engine: Engine, *, scorer: ItemScorer | None = None) -> None:
        """Index ids and attributes, and sort by popularity: seconds at a million items, so not on an event loop.

        Args:
            artifact: the version.
            engine: has it loaded.
            scorer: in the place of the artifact's own item scorer.
        """
        self.artifact = artifact
        self.engine = engine
        self.scorer = artifact.scorer if scorer is None else scorer
        self._priors = None if self.scorer is None else HistoryPriors.of(artifact, self.scorer)
        artifact.catalogue.build_index()
        self.costs = DecodingCost.of(artifact)
        self.attributes = AttributeIndex(artifact.catalogue.metadata, artifact.catalogue.types)
        self._kept: dict[tuple[tuple[str, Condition], ...], Matching] = {}  # the most recently used last
        self._lock = threading.Lock()
        self._popular_leaves = artifact.popular_leaves()
        self._popularity_rank = np.empty_like(self._popular_leaves)
        self._popularity_rank[self._popular_leaves] = np.arange(len(self._popular_leaves))

    def resolve(self, query: Query, *, adapter: str | None = None) -> ResolvedQuery:
        """Resolve a query for this version, under one of the engine's adapters if named.

        Raises:
            QueryError: a value out of range; names the field.
        """
        return ResolvedQuery.of(query, self.artifact, self.engine, adapter=adapter, scorer=self.scorer)

    def cost(self, query: ResolvedQuery) -> float:
        """The expected cost of `answer`, in ordinary requests (`igd_core.search.cost`)."""
        leaves = None if query.allowed is None else len(query.allowed)
        return self.costs.of_search(query.shown, beams=query.beams, forced=query.asks_about_forced, leaves=leaves)

    async def recommend(self, query: Query, *, adapter: str | None = None) -> Recommendation:
        """Resolve a query and answer it within its time.

        Raises:
            QueryError: a value out of range; names the field.
            DeadlineExceeded: ``timeout_s`` has passed.
            EngineError: as `answer`.
        """
        resolved = self.resolve(query, adapter=adapter)
        try:
            async with asyncio.timeout(query.timeout_s):
                return await self.answer(resolved)
        except TimeoutError:
            raise DeadlineExceeded(f"no answer within {query.timeout_s} s") from None

    async def answer(self, query: ResolvedQuery, *, turn: Turn | None = None) -> Recommendation:
        """Decode with the model; rank by popularity if the prompt would show nothing of the history.

        ``turn`` is the request's claim on a shared model.

        Raises:
            ModelFault: the model's scores are not usable.
            EngineError: the engine cannot answer.
        """
        return await (self._decode(query, turn) if query.shown else self.popularity(query))

    async def popularity(self, query: ResolvedQuery) -> Recommendation:
        """As `popular`, on a thread if it takes long."""
        return await asyncio.to_thread(self.popular, query) if self._is_long(query) else self.popular(query)

    def popular(self, query: ResolvedQuery) -> Recommendation:
        """The most popular admitted items, one a title; needs no model."""
        item_filter, leaves = self._filters(query)
        ranked = self._most_popular(leaves, query.k)
        prior = self.artifact.leaf_prior
        return Recommendation(
            query=query,
            source="popularity",
            items=tuple(self._item(LeafIndex(leaf), float(prior[leaf]), item_filter) for leaf in ranked),
        )

    async def listed(self, query: ResolvedQuery, ranked: Sequence[tuple[ItemIndex, float]]) -> Recommendation:
        """As `listed_now`, on a thread if it takes long."""
        long = self._is_long(query)
        return await asyncio.to_thread(self.listed_now, query, ranked) if long else self.listed_now(query, ranked)

    def listed_now(self, query: ResolvedQuery, ranked: Sequence[tuple[ItemIndex, float]]) -> Recommendation:
        """The first k of ``ranked``, items with scores made in advance, that the query admits, one a title."""
        item_filter, leaves = self._filters(query)
        scores: dict[int, float] = {}
        for item, score in ranked:
            scores.setdefault(int(self.artifact.leaf_of_item[item]), score)
        paths = np.fromiter(scores, dtype=np.int64, count=len(scores))
        admitted = paths[leaves.admits(paths)][: query.k]
        return Recommendation(
            query=query,
            source="precomputed",
            items=tuple(self._item(LeafIndex(int(leaf)), scores[int(leaf)], item_filter) for leaf in admitted),
        )

    def _most_popular(self, leaves: LeafFilter, k: int) -> NDArray[np.int32]:
        """The first ``k`` open leaves by popularity; fewer if there are not so many."""
        ranked, rank = self._popular_leaves, self._popularity_rank
        top = ranked[: _LOOKED_AT * k]
        top = top[leaves.admits(top)][:k]
        if len(top) == k:
            return top
        best = rank[leaves.leaves]
        if leaves.barred:
            # The first k that are not barred are among the first k + (number barred).
            admitted = np.ones(min(k + len(best), len(ranked)), bool)
            admitted[best[best < len(admitted)]] = False
            return np.asarray(ranked[: len(admitted)][admitted][:k])
        if len(best) > k:
            best = np.partition(best, k - 1)[:k]
        return np.asarray(ranked[np.sort(best)])

    async def _decode(self, query: ResolvedQuery, turn: Turn | None) -> Recommendation:
        artifact, trie = self.artifact, self.artifact.trie
        long = self._is_long(query)
        item_filter, leaves = await asyncio.to_thread(self._filters, query) if long else self._filters(query)
        prompt = artifact.prompt(query.shown)
        if not leaves.count(trie.num_leaves):
            return Recommendation(query=query, source="model", items=(), prompt_ids=tuple(prompt))
        mixer = self._mixer(query, leaves)
        scoring = Scoring(
            alpha=query.alpha,
            temperature=query.temperature,
            keep=2 * query.beams,
            leaves=leaves,
            adapter=query.adapter,
            forced=query.forced_share != 0,
            normalise=query.normalise,
            mixer=mixer,
            turn=turn,
        )
        session = await self.engine.open(query.version, prompt, scoring)
        try:
            search = BeamSearch(
                trie,
                beams=query.beams,
                length_penalty=query.length_penalty,
                forced_weight=query.forced_share,
                normalise=query.normalise,
            )
            hypotheses = await search.run(session)
            require_whole(hypotheses, wanted=min(query.beams, leaves.count(trie.num_leaves)))
            if turn is not None:
                turn.complete = True
        finally:
            await session.close()
        return Recommendation(
            query=query,
            source="model",
            items=tuple(self._found(each, query, item_filter, mixer) for each in hypotheses[: query.k]),
            prompt_ids=tuple(prompt),
            stats=session.stats,
        )

    def _mixer(self, query: ResolvedQuery, leaves: LeafFilter) -> PriorMixer | None:
        if self._priors is None or not query.gamma:
            return None
        return PriorMixer(self._priors.after(query.shown, leaves), query.mixing)

    def _found(
        self, found: Hypothesis, query: ResolvedQuery, item_filter: ItemFilter, mixer: PriorMixer | None
    ) -> RankedItem:
        first, *others = self._items(found.leaf, item_filter)
        return RankedItem(
            item=first,
            score=found.score,
            probability=found.probability if query.normalise == "children" else None,
            duplicates=tuple(others),
            tokens=self._explained(found, query, mixer) if query.explain else (),
        )

    def _item(self, leaf: LeafIndex, score: float, item_filter: ItemFilter) -> RankedItem:
        first, *others = self._items(leaf, item_filter)
        return RankedItem(item=first, score=score, duplicates=tuple(others))

    def _items(self, leaf: LeafIndex, item_filter: ItemFilter) -> list[ItemIndex]:
        """The admitted items of a leaf that has one."""
        items = self.artifact.trie.items_of(leaf)
        if len(items) == 1:
            return [ItemIndex(int(items[0]))]
        return first_admitted(items, self.artifact.catalogue.frequency, item_filter)

    def _explained(
        self, found: Hypothesis, query: ResolvedQuery, mixer: PriorMixer | None
    ) -> tuple[ExplainedToken, ...]:
        trie, gains = self.artifact.trie, self.artifact.gains
        edges = np.array([step.edge for step in found.steps])
        parents = trie.parents(edges + 1)
        forced = trie.row_start[parents + 1] - trie.row_start[parents] == 1
        gained = decoding_weight(gains.sibling_gain[edges].astype(np.float64), query.alpha)
        weight = np.where(forced, query.forced_weight, gained) * query.mixing.model_weight
        prior = [None] * len(edges) if mixer is None else mixer.prior.log_shares_along(edges, parents)
        length = len(edges) ** query.length_penalty
        return tuple(
            ExplainedToken(
                token_id=int(trie.edge_token[step.edge]),
                score=step.score / length,
                logprob=step.logprob,
                information_gain=float(gains.information_gain[step.edge]),
                weight=float(weight[at]),
                forced=bool(forced[at]),
                prior_logprob=prior[at],
            )
            for at, step in enumerate(found.steps)
        )

    def _is_long(self, query: ResolvedQuery) -> bool:
        """Whether building the filters would block an event loop for too long."""
        conditions = query.conditions
        values = sum(len(each.any_of or ()) + len(each.none_of or ()) for _, each in conditions)
        return values > MANY_VALUES or len(self.artifact.catalogue) * len(conditions) > _LONG

    def _filters(self, query: ResolvedQuery) -> tuple[ItemFilter, LeafFilter]:
        """Build the filters on items and on leaves; may run on any thread."""
        item_filter = ItemFilter.of(
            allowed=query.allowed, barred=query.barred, matching=self._matching(query.conditions)
        )
        return item_filter, item_filter.leaves(self.artifact.trie, self.artifact.leaf_of_item)

    def _matching(self, conditions: tuple[tuple[str, Condition], ...]) -> Matching | None:
        """Items that meet the conditions; kept for the next request with the same conditions."""
        with self._lock:
            kept = self._kept.pop(conditions, None)
            if kept is not None:
                self._kept[conditions] = kept
                return kept
        items = self.attributes.admitted(dict(conditions))
        if items is None:
            return None
        found = Matching.of(items, self.artifact.trie, self.artifact.leaf_of_item)
        with self._lock:
            self._kept[conditions] = found
            while sum(kept.nbytes for kept in self._kept.values()) > _KEPT_BYTES * len(items):
                del self._kept[next(iter(self._kept))]
        return found


def admitted(query: Query, artifact: Artifact, attributes: AttributeIndex | None) -> int:
    """How many items an answer can have: one for each path that the filters admit. Needs no model.

    ``attributes`` may be None if the query has no conditions.
    """
    items = None if attributes is None else attributes.admitted(query.attributes)
    matching = None if items is None else Matching.of(items, artifact.trie, artifact.leaf_of_item)
    item_filter = ItemFilter.of(allowed=query.allow, barred=query.barred(artifact), matching=matching)
    return item_filter.leaves(artifact.trie, artifact.leaf_of_item).count(artifact.trie.num_leaves)
