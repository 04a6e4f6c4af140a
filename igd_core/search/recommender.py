"""From a history to ranked items: prompt, filters, search, and the items of each path.

A `Recommender` binds one engine to the artifact versions it serves. It knows item rows, not item ids, users or HTTP.
"""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import TYPE_CHECKING, Literal

import numpy as np

from igd_core.catalogue.attributes import AttributeIndex
from igd_core.catalogue.gain import decoding_weight
from igd_core.errors import DeadlineExceeded, QueryError
from igd_core.ids import ItemIndex, LeafIndex
from igd_core.search.beam import BeamSearch, Hypothesis, require_whole
from igd_core.search.cost import DecodingCost
from igd_core.search.filters import ItemFilter, LeafFilter, Matching, first_admitted
from igd_core.search.session import Scoring, SessionStats

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from igd_core.artifact import Artifact
    from igd_core.catalogue.conditions import Condition, Conditions
    from igd_core.search.engine import Engine
    from igd_core.search.fairness import Turn

MAX_K = 100
MAX_BEAMS = 200
MAX_TEMPERATURE = 10.0
MAX_LENGTH_PENALTY = 2.0

_LOOKED_AT = 32
"""Most popular leaves that are looked at for each one wanted, before all that a filter admits are."""
MANY_VALUES = 256
"""That a filter names; looking for so many takes 5 to 10 ms. Fewer are no quicker beside an event loop: this is work of
the interpreter, and whoever holds it keeps it for 5 ms."""
_LONG = 50_000
"""Items times attributes of a filter; more take longer than handing them to a thread does (0.1 ms)."""
_KEPT_BYTES = 16
"""An item, of filters whose items are kept: many requests ask for the same, as what is in stock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One request for recommendations.

    Attributes:
        history: item rows, oldest first; the prompt's template decides how many of them it shows.
        k: items wanted, 1..100 and at most the catalogue's size.
        beams: width of the search, 1..200; raised to ``k`` where smaller.
        alpha: rebalancing towards decisive tokens, 0..1; None takes the artifact's.
        temperature: divides the logits, in (0, 10].
        length_penalty: 0 (D3, IGD) or up to 2; 1 is BIGRec.
        forced_weight: 0..1, what forced tokens count (see `BeamSearch`); 1 is the method, 0 scores decisions alone.
        exclude_seen: leave out items of the whole ``history``.
        exclude_seen_titles: with ``exclude_seen``, leave out also what reads like them (`Artifact.reading_like`).
        exclude: further items to leave out.
        allow: the only items that may come back; None for all.
        attributes: conditions on items' attributes, all of which must hold (`igd_core.catalogue.conditions`).
        timeout_s: seconds after which DeadlineExceeded is raised; None for no limit.
    """

    history: Sequence[ItemIndex]
    k: int = 10
    beams: int = 10
    alpha: float | None = None
    temperature: float = 1.0
    length_penalty: float = 0.0
    forced_weight: float = 1.0
    exclude_seen: bool = True
    exclude_seen_titles: bool = True
    exclude: Sequence[ItemIndex] = ()
    allow: Sequence[ItemIndex] | None = None
    attributes: Conditions = field(default_factory=dict)
    timeout_s: float | None = None

    def barred(self, artifact: Artifact) -> set[int]:
        """Item rows that may not come back: ``exclude``, and what of the catalogue counts as seen."""
        if not self.exclude_seen:
            return {*self.exclude}
        seen = artifact.reading_like(self.history) if self.exclude_seen_titles else self.history
        return {*self.exclude, *seen}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedToken:
    """One token of an item's path.

    Attributes:
        token_id: in the model's vocabulary.
        logprob: nats, over the full vocabulary, unweighted; None where it counts nothing and was not computed.
        information_gain: nats, of the whole catalogue.
        weight: what the log-probability was multiplied with: ``1 - alpha * g``, or ``forced_weight`` if forced.
        forced: whether the trie left no other token here.
    """

    token_id: int
    logprob: float | None
    information_gain: float
    weight: float
    forced: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RecommendedItem:
    """An item, its score (weighted log-probability in nats; for popularity, the share of interactions), and why.

    Attributes:
        item: the most popular admitted item of the path.
        score: higher is better.
        duplicates: other admitted items with the same path, most popular first.
        tokens: the path, EOS included; empty for popularity.
    """

    item: ItemIndex
    score: float
    duplicates: tuple[ItemIndex, ...] = ()
    tokens: tuple[ExplainedToken, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """A ranked answer.

    Attributes:
        source: who ranked.
        version: of the catalogue.
        items: best first.
        prompt_ids: what the model was asked.
        left_out: the history's oldest items that the prompt would show and the model's context has no room for.
        stats: what it cost.
    """

    source: Literal["model", "popularity"]
    version: str
    items: tuple[RecommendedItem, ...]
    prompt_ids: tuple[int, ...] = ()
    left_out: int = 0
    stats: SessionStats = field(default_factory=SessionStats)


class Recommender:
    """Serves one artifact version on an engine that has it loaded."""

    def __init__(self, artifact: Artifact, engine: Engine) -> None:
        """Index ids and attributes, sort by popularity: seconds at a million items, so not on an event loop."""
        self.artifact = artifact
        self.engine = engine
        artifact.catalogue.build_index()
        self.costs = DecodingCost.of(artifact)
        self.attributes = AttributeIndex(artifact.catalogue.metadata, artifact.catalogue.types)
        self._kept: dict[tuple[tuple[str, Condition], ...], Matching] = {}  # the latest used last
        self._lock = threading.Lock()
        self._popular_leaves = artifact.popular_leaves()
        self._popularity_rank = np.empty_like(self._popular_leaves)
        self._popularity_rank[self._popular_leaves] = np.arange(len(self._popular_leaves))

    def cost(self, query: Query) -> float:
        """What `recommend` is expected to cost, in ordinary requests (`igd_core.search.cost`)."""
        leaves = None if query.allow is None else len(query.allow)
        beams, forced = max(query.beams, query.k), query.forced_weight != 0
        return self.costs.of_search(query.history, beams=beams, forced=forced, leaves=leaves)

    async def recommend(self, query: Query, *, adapter: str | None = None, turn: Turn | None = None) -> Recommendation:
        """Decode with the model, under one of the engine's adapters if named.

        Popularity answers an empty history, and one of which nothing fits into the model's context.

        ``turn`` says whose request it is, where the engine has several.

        Raises:
            QueryError: a value out of range; names the field.
            DeadlineExceeded: ``timeout_s`` went by.
            ModelFault: what the model computed is no answer.
            EngineError: the engine cannot answer.
        """
        check_query(query, self.artifact)
        if not query.history:
            return await self.popularity(query)
        try:
            async with asyncio.timeout(query.timeout_s):
                return await self._decode(query, adapter, turn)
        except TimeoutError:
            raise DeadlineExceeded(f"no answer within {query.timeout_s} s") from None

    def left_out(self, history: Sequence[ItemIndex]) -> int:
        """How many of the oldest items that a prompt would show the model's context has no room for."""
        return self.artifact.left_out(history, self.engine.context_tokens)

    async def popularity(self, query: Query) -> Recommendation:
        """As `popular`, beside the event loop where that takes long.

        Raises:
            QueryError: a value out of range; names the field.
        """
        return await asyncio.to_thread(self.popular, query) if self._is_long(query) else self.popular(query)

    def popular(self, query: Query) -> Recommendation:
        """Most popular admitted items, one per title; needs no model.

        Raises:
            QueryError: a value out of range; names the field.
        """
        check_query(query, self.artifact)
        item_filter, leaves = self._filters(query)
        ranked = self._most_popular(leaves, query.k)
        prior = self.artifact.leaf_prior
        return Recommendation(
            source="popularity",
            version=self.artifact.version,
            items=tuple(self._item(LeafIndex(leaf), float(prior[leaf]), item_filter) for leaf in ranked),
        )

    def _most_popular(self, leaves: LeafFilter, k: int) -> NDArray[np.int32]:
        """The first ``k`` open leaves by popularity, fewer if there are not so many."""
        ranked, rank = self._popular_leaves, self._popularity_rank
        top = ranked[: _LOOKED_AT * k]
        top = top[leaves.admits(top)][:k]
        if len(top) == k:
            return top
        best = rank[leaves.leaves]
        if leaves.barred:
            # The first k that are not barred stand among the first k + (number barred).
            admitted = np.ones(min(k + len(best), len(ranked)), bool)
            admitted[best[best < len(admitted)]] = False
            return np.asarray(ranked[: len(admitted)][admitted][:k])
        if len(best) > k:
            best = np.partition(best, k - 1)[:k]
        return np.asarray(ranked[np.sort(best)])

    async def _decode(self, query: Query, adapter: str | None, turn: Turn | None) -> Recommendation:
        artifact = self.artifact
        left_out = self.left_out(query.history)
        if left_out == len(artifact.manifest.template.window(query.history)):
            return replace(await self.popularity(query), left_out=left_out)
        long = self._is_long(query)
        item_filter, leaves = await asyncio.to_thread(self._filters, query) if long else self._filters(query)
        prompt = artifact.prompt(query.history, left_out=left_out)
        if not leaves.count(artifact.trie.num_leaves):
            return Recommendation(
                source="model", version=artifact.version, items=(), prompt_ids=tuple(prompt), left_out=left_out
            )
        beams = max(query.beams, query.k)
        alpha = artifact.manifest.alpha if query.alpha is None else query.alpha
        scoring = Scoring(
            alpha=alpha,
            temperature=query.temperature,
            keep=2 * beams,
            leaves=leaves,
            adapter=adapter,
            forced=query.forced_weight != 0,
            turn=turn,
        )
        session = await self.engine.open(artifact.version, prompt, scoring)
        try:
            search = BeamSearch(
                artifact.trie, beams=beams, length_penalty=query.length_penalty, forced_weight=query.forced_weight
            )
            hypotheses = await search.run(session)
            require_whole(hypotheses, wanted=min(beams, leaves.count(artifact.trie.num_leaves)))
            if turn is not None:
                turn.complete = True
        finally:
            await session.close()
        return Recommendation(
            source="model",
            version=artifact.version,
            items=tuple(
                self._explained(found, alpha, query.forced_weight, item_filter) for found in hypotheses[: query.k]
            ),
            prompt_ids=tuple(prompt),
            left_out=left_out,
            stats=session.stats,
        )

    def _item(self, leaf: LeafIndex, score: float, item_filter: ItemFilter) -> RecommendedItem:
        items = first_admitted(self.artifact.trie.items_of(leaf), self.artifact.catalogue.frequency, item_filter)
        return RecommendedItem(item=items[0], score=score, duplicates=tuple(items[1:]))

    def _explained(
        self, found: Hypothesis, alpha: float, forced_weight: float, item_filter: ItemFilter
    ) -> RecommendedItem:
        trie, gains = self.artifact.trie, self.artifact.gains
        plain = self._item(found.leaf, found.score, item_filter)
        edges = np.array([step.edge for step in found.steps])
        parents = trie.parents(edges + 1)
        forced = trie.row_start[parents + 1] - trie.row_start[parents] == 1
        weight = np.where(forced, forced_weight, decoding_weight(gains.sibling_gain[edges].astype(np.float64), alpha))
        tokens = tuple(
            ExplainedToken(
                token_id=int(trie.edge_token[step.edge]),
                logprob=step.logprob,
                information_gain=float(gains.information_gain[step.edge]),
                weight=float(weight[at]),
                forced=bool(forced[at]),
            )
            for at, step in enumerate(found.steps)
        )
        return RecommendedItem(item=plain.item, score=plain.score, duplicates=plain.duplicates, tokens=tokens)

    def _is_long(self, query: Query) -> bool:
        """Whether making the filters would keep an event loop from other requests."""
        conditions = query.attributes
        values = sum(len(each.any_of or ()) + len(each.none_of or ()) for each in conditions.values())
        return values > MANY_VALUES or len(self.artifact.catalogue) * len(conditions) > _LONG

    def _filters(self, query: Query) -> tuple[ItemFilter, LeafFilter]:
        """Of items and of leaves; on any thread."""
        return _filters_of(query, self.artifact, self._matching(query.attributes))

    def _matching(self, conditions: Conditions) -> Matching | None:
        """Items that meet them; kept for the next request that asks for the same."""
        key = tuple(sorted(conditions.items(), key=itemgetter(0)))
        with self._lock:
            kept = self._kept.pop(key, None)
            if kept is not None:
                self._kept[key] = kept
                return kept
        items = self.attributes.admitted(conditions)
        if items is None:
            return None
        found = Matching.of(items, self.artifact.trie, self.artifact.leaf_of_item)
        with self._lock:
            self._kept[key] = found
            while sum(kept.nbytes for kept in self._kept.values()) > _KEPT_BYTES * len(items):
                del self._kept[next(iter(self._kept))]
        return found


def admitted(query: Query, artifact: Artifact, attributes: AttributeIndex | None) -> int:
    """How many items an answer can hold: one of each path that the filters admit. Needs no model.

    ``attributes`` may be None where the query has no conditions on them.
    """
    items = None if attributes is None else attributes.admitted(query.attributes)
    matching = None if items is None else Matching.of(items, artifact.trie, artifact.leaf_of_item)
    _, leaves = _filters_of(query, artifact, matching)
    return leaves.count(artifact.trie.num_leaves)


def _filters_of(query: Query, artifact: Artifact, matching: Matching | None) -> tuple[ItemFilter, LeafFilter]:
    item_filter = ItemFilter.of(allowed=query.allow, barred=list(query.barred(artifact)), matching=matching)
    return item_filter, item_filter.leaves(artifact.trie, artifact.leaf_of_item)


def check_query(query: Query, artifact: Artifact) -> None:
    """Refuse values out of range; needs no model.

    Raises:
        QueryError: names the field, the value and the range.
    """
    num_items = len(artifact.catalogue)
    _require_range("k", query.k, 1, min(MAX_K, num_items))
    _require_range("beams", query.beams, 1, MAX_BEAMS)
    if query.alpha is not None:
        _require_range("alpha", query.alpha, 0.0, 1.0)
    _require_range("temperature", query.temperature, 0.01, MAX_TEMPERATURE)
    _require_range("length_penalty", query.length_penalty, 0.0, MAX_LENGTH_PENALTY)
    _require_range("forced_weight", query.forced_weight, 0.0, 1.0)
    for name, items in (("history", query.history), ("exclude", query.exclude), ("allow", query.allow or ())):
        for item in items:
            if not 0 <= item < num_items:
                raise QueryError(name, f"item row {item} is not in the catalogue of {num_items}")


def _require_range(name: str, value: float, lowest: float, highest: float) -> None:
    if not lowest <= value <= highest:  # NaN fails this too
        raise QueryError(name, f"{value} is not in {lowest}..{highest}")
