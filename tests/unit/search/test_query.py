"""What a query comes to, and that everything reads it: the key of a kept answer, the search, popularity."""

from __future__ import annotations

import asyncio
import functools
import itertools
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igd_core.catalogue.attribute_types import AttributeType
from igd_core.catalogue.conditions import Condition, conditions_of
from igd_core.engines.fake import FakeEngine
from igd_core.errors import QueryError
from igd_core.ids import ItemIndex
from igd_core.scorers.mass import ItemMass
from igd_core.scorers.record import ScorerRecord
from igd_core.search.query import Query, ResolvedQuery
from igd_core.search.recommender import Recommendation, Recommender

if TYPE_CHECKING:
    from collections.abc import Sequence

    from igd_core.artifact import Artifact
    from igd_core.engines.fake import FakeSession
    from igd_core.search.session import Scoring


class Scorer:
    """An item scorer of one's own: it likes the item after the history's last one."""

    fingerprint = "next"

    def mass(self, history: Sequence[ItemIndex]) -> ItemMass:
        return ItemMass(background=0.5, items=np.array([(history[-1] + 1) % 24]), mass=np.array([0.5]))


SCORER = Scorer()


def is_linear(query: Query) -> bool:
    return bool(query.gamma) and query.mixture == "linear"


def possible(query: Query) -> Query:
    """What is drawn apart may contradict itself: a linear mixture of scores over the vocabulary."""
    return replace(query, normalise=None) if is_linear(query) else query


ROWS = st.lists(st.integers(0, 3).map(ItemIndex), max_size=4)
# Few values, so that equal queries are met often; and pairs that Python takes for equal, or nearly.
TYPES = {"x": AttributeType(base="number"), "y": AttributeType(base="text")}
FEW = st.sampled_from([1, 1.0, 0, -0.0, 1.5, 2])
NUMBERS = st.lists(FEW, min_size=1, max_size=3) | st.fixed_dictionaries(
    {"gte": FEW}, optional={"gt": FEW, "none_of": st.lists(FEW, min_size=1, max_size=2), "exists": st.booleans()}
)
TEXTS = st.lists(st.sampled_from(["1", "a", "b"]), min_size=1, max_size=3)
PLAIN = st.builds(
    Query,
    history=st.lists(st.integers(0, 2).map(ItemIndex), max_size=12),
    k=st.integers(1, 2),
    beams=st.none() | st.sampled_from([1, 2, 3, 10]),
    alpha=st.sampled_from([None, 0.2, 0, 0.0, -0.0, 0.5]),
    normalise=st.sampled_from([None, "vocabulary", "children"]),
    temperature=st.sampled_from([None, 1, 1.0, 2.0]),
    length_penalty=st.sampled_from([0, 0.0, 1.0]),
    forced_weight=st.sampled_from([1, 1.0, 0, 0.5]),
    gamma=st.sampled_from([None, 0, -0.0, 0.5, 1, 1.0]),
    mixture=st.sampled_from([None, "log-linear", "linear"]),
    exclude_seen=st.booleans(),
    exclude_seen_titles=st.booleans(),
    exclude=ROWS,
    allow=st.none() | ROWS,
    explain=st.booleans(),
    timeout_s=st.sampled_from([None, 1.0, 2.0]),
).map(possible)
CONDITIONS = st.fixed_dictionaries({}, optional={"x": NUMBERS, "y": TEXTS}).map(
    lambda asked: conditions_of(asked, TYPES)
)
QUERIES = st.builds(lambda query, conditions: replace(query, attributes=conditions), PLAIN, CONDITIONS)
QUERY_FIELDS = tuple(each.name for each in fields(Query))
CIRCUMSTANCES = ("weights", "is_small", "room")
# With what, on which catalogue, and into how many tokens beside the longest path.
ASKED = st.tuples(QUERIES, st.sampled_from(["m", "n"]), st.booleans(), st.sampled_from([30, 60, 10_000]))


@functools.cache
def engine_of(weights: str, context: int) -> FakeEngine:
    class Engine(FakeEngine):
        context_tokens = context

    return Engine(weights=weights)


def resolved(artifact: Artifact, query: Query, weights: str = "m", room: int = 10_000) -> ResolvedQuery:
    return ResolvedQuery.of(query, artifact, engine_of(weights, artifact.trie.depth + room), scorer=SCORER)


def normal(artifact: Artifact, query: Query, weights: str, room: int) -> Any:
    """What the answer can depend on, as Python compares it."""
    window = tuple(artifact.manifest.template.window(query.history))
    shown = next(
        window[gone:]
        for gone in itertools.count()
        if gone >= len(window) or len(artifact.prompt(window[gone:])) <= room
    )
    return (
        artifact.version,
        weights,
        query.explain,
        shown,
        len(window) - len(shown),
        frozenset(query.exclude) | seen_by(artifact, query),
        None if query.allow is None else frozenset(query.allow),
        query.attributes,
        query.k,
        max(query.k, query.beams or artifact.manifest.beams),
        artifact.manifest.alpha if query.alpha is None else query.alpha,
        is_children(query),
        query.temperature or 1,
        query.length_penalty,
        is_children(query) or query.forced_weight,
        query.gamma or 0,
        is_linear(query),
    )


def is_children(query: Query) -> bool:
    mixes = bool(query.gamma) and query.normalise is None and query.forced_weight == 1.0
    return query.normalise == "children" or is_linear(query) or mixes


def seen_by(artifact: Artifact, query: Query) -> frozenset[ItemIndex]:
    titles = artifact.catalogue.titles
    history = set(query.history) if query.exclude_seen else set()
    read = {titles[row] for row in history} if query.exclude_seen_titles else set()
    return frozenset(history | {ItemIndex(row) for row, title in enumerate(titles) if title in read})


@settings(max_examples=300)
@given(one=ASKED, other=ASKED, changed=st.lists(st.sampled_from((*CIRCUMSTANCES, *QUERY_FIELDS)), max_size=2))
def test_keys_are_equal_if_and_only_if_the_questions_are_the_same(
    small_artifact: Artifact, artifact: Artifact, one: Any, other: Any, changed: list[str]
) -> None:
    # All but one or two fields are the first question's: two that are drawn apart are hardly ever the same.
    query = possible(replace(one[0], **{name: getattr(other[0], name) for name in changed if name in QUERY_FIELDS}))
    rest = [other[at] if name in changed else one[at] for at, name in enumerate(CIRCUMSTANCES, start=1)]
    found = []
    for asked, weights, is_small, room in (one, (query, *rest)):
        catalogue = small_artifact if is_small else artifact
        came = resolved(catalogue, asked, weights, room)
        found.append((came.key(), came, normal(catalogue, asked, weights, room)))
    first, second = found
    is_same = first[2] == second[2]
    assert (first[0] == second[0]) == is_same
    assert (first[1] == second[1]) == is_same


def respelled(data: st.DataObject, query: Query, artifact: Artifact) -> Query:
    """The same question in other words."""
    template = artifact.manifest.template
    hidden = len(query.history) - len(template.window(query.history))
    barred = [*query.exclude, *seen_by(artifact, query)]
    beams = query.beams or artifact.manifest.beams
    return Query(
        # What the prompt does not show is left out of the answer by another field here.
        history=[
            *data.draw(st.lists(st.just(ItemIndex(3)), min_size=hidden, max_size=hidden)),
            *query.history[hidden:],
        ],
        exclude_seen=False,
        exclude=data.draw(st.permutations(barred)) + barred[:1],
        allow=None if query.allow is None else [*reversed(query.allow), *query.allow],
        attributes=dict(reversed(list(query.attributes.items()))),
        k=query.k,
        beams=data.draw(st.integers(1, query.k)) if beams <= query.k else beams,
        alpha=artifact.manifest.alpha if query.alpha is None else twin(query.alpha),
        normalise="children" if is_children(query) else "vocabulary",
        temperature=twin(query.temperature or 1),
        length_penalty=twin(query.length_penalty),
        forced_weight=0.25 if is_children(query) else twin(query.forced_weight),
        gamma=twin(query.gamma or 0),
        mixture=query.mixture if query.gamma else "linear",
        explain=query.explain,
        timeout_s=0.5,
    )


def twin(value: float) -> Any:
    """Another value that equals this one, where Python has one."""
    if value == 0:
        return -0.0
    if value == 1 and value is not True:
        return True
    return float(value)


@given(data=st.data(), query=QUERIES)
def test_what_cannot_change_the_answer_does_not_change_the_key(
    artifact: Artifact, data: st.DataObject, query: Query
) -> None:
    assert resolved(artifact, query).key() == resolved(artifact, respelled(data, query, artifact)).key()


def answers(artifact: Artifact, queries: Sequence[Query]) -> list[Recommendation]:
    async def run() -> list[Recommendation]:
        engine = FakeEngine()
        await engine.load(artifact)
        recommender = Recommender(artifact, engine, scorer=SCORER)
        return [await recommender.answer(recommender.resolve(query)) for query in queries]

    return asyncio.run(run())


@settings(max_examples=50)
@given(data=st.data(), query=PLAIN)
def test_equal_keys_mean_equal_answers(small_artifact: Artifact, data: st.DataObject, query: Query) -> None:
    one, other = answers(small_artifact, [query, respelled(data, query, small_artifact)])
    assert one.query.key() == other.query.key()
    assert one == other


OTHER: dict[str, Any] = {
    "version": "of another day",
    "model": None,
    "shown": (ItemIndex(1),),
    "left_out": 1,
    "k": 9,
    "beams": 11,
    "alpha": 0.25,
    "normalise": "children",
    "temperature": 0.5,
    "length_penalty": 1.0,
    "forced_weight": 0.5,
    "gamma": 0.5,
    "mixture": "linear",
    "scorer": "another",
    "barred": (),
    "allowed": (),
    "conditions": (("x", Condition(exists=True)),),
    "explain": False,
}


@pytest.mark.parametrize("name", [each.name for each in fields(ResolvedQuery) if each.compare])
def test_every_field_changes_the_key(artifact: Artifact, name: str) -> None:
    plain = resolved(artifact, Query(history=[ItemIndex(0)]))
    changed = replace(plain, **{name: OTHER[name]})
    assert changed != plain
    assert changed.key() != plain.key()


MEANT: dict[str, dict[str, Any]] = {
    "history": {"history": [ItemIndex(1)]},
    "k": {"k": 9},
    "beams": {"beams": 11},
    "alpha": {"alpha": 0.25},
    "normalise": {"normalise": "children"},
    "temperature": {"temperature": 0.5},
    "length_penalty": {"length_penalty": 1.0},
    "forced_weight": {"forced_weight": 0.5},
    "gamma": {"gamma": 0.25},
    "mixture": {"mixture": "linear"},
    "exclude_seen": {"exclude_seen": False},
    "exclude_seen_titles": {"exclude_seen_titles": False},
    "exclude": {"exclude": [ItemIndex(5)]},
    "allow": {"allow": [ItemIndex(5)]},
    "attributes": {"attributes": {"x": Condition(exists=True)}},
    "explain": {"explain": False},
}


@pytest.mark.parametrize("name", [name for name in QUERY_FIELDS if name != "timeout_s"])
def test_every_field_of_a_query_has_a_meaning(artifact: Artifact, name: str) -> None:
    shared = artifact.shares_path.index(1)  # or exclude_seen_titles would change nothing
    plain = Query(history=[ItemIndex(shared)], gamma=0.5 if name == "mixture" else None)
    assert resolved(artifact, replace(plain, **MEANT[name])).key() != resolved(artifact, plain).key()


def test_what_reads_like_the_history_is_part_of_the_question_and_not_how_it_came_to_be_left_out(
    artifact: Artifact,
) -> None:
    titles = artifact.catalogue.titles
    first, second = next((a, b) for b in range(len(titles)) for a in range(b) if titles[a] == titles[b])
    history = [ItemIndex(first)]
    with_twin = resolved(artifact, Query(history=history)).key()
    alone = resolved(artifact, Query(history=history, exclude_seen_titles=False)).key()
    by_id = Query(history=history, exclude=[ItemIndex(second)], exclude_seen_titles=False)
    assert with_twin != alone
    assert {titles.count(titles[first])} == {2}
    assert resolved(artifact, by_id).key() == with_twin


def test_a_new_event_of_a_user_is_another_question(artifact: Artifact) -> None:
    history = [ItemIndex(row) for row in range(30)]
    keys = {
        resolved(artifact, Query(history=history[:length], exclude_seen=exclude_seen)).key()
        for length in range(31)
        for exclude_seen in (True, False)
    }
    assert len(keys) == 2 * 31 - 1  # without a history there is nothing to leave out


def test_what_another_release_wrote_is_never_read(small_artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    query = resolved(small_artifact, Query(history=[ItemIndex(0)]))
    now = query.key()
    monkeypatch.setattr("igd_core.search.query.RELEASE", "0.0.1")
    assert query.key() != now


def test_an_adapter_counts_by_its_content_and_one_that_is_not_there_is_no_model(small_artifact: Artifact) -> None:
    engine = FakeEngine(adapters={"a": Path("a"), "b": Path("b")})
    identity = replace(engine.identity, adapters={"a": "same", "b": "same", "c": "other"})
    engine.identity = identity
    query = Query(history=[ItemIndex(0)])
    by_name = {
        name: ResolvedQuery.of(query, small_artifact, engine, adapter=name) for name in (None, "a", "b", "c", "gone")
    }
    assert {name: each.adapter for name, each in by_name.items()} == {name: name for name in by_name}
    assert by_name["a"] == by_name["b"]
    assert len({each.key() for each in by_name.values()}) == 4
    assert by_name["gone"].model is None
    assert [by_name[name].model for name in (None, "a")] == [identity.fingerprint(), identity.fingerprint("a")]


async def test_the_search_reads_what_the_key_is_made_of(artifact: Artifact) -> None:
    opened: list[tuple[str, list[int], Scoring]] = []

    class Recording(FakeEngine):
        context_tokens = artifact.trie.depth + 40

        async def open(self, version: str, prompt_ids: Sequence[int], scoring: Scoring) -> FakeSession:
            opened.append((version, list(prompt_ids), scoring))
            return await super().open(version, prompt_ids, scoring)

    engine = Recording(adapters={"lora": Path("lora")})
    await engine.load(artifact)
    recommender = Recommender(artifact, engine)
    written = Query(
        history=[ItemIndex(row) for row in range(10)], k=7, beams=3, allow=[ItemIndex(row) for row in range(5, 60)]
    )
    query = recommender.resolve(written, adapter="lora")
    assert query.left_out > 0
    # Changed by hand, to values that the written query does not lead to: who derives one again gets another.
    query = replace(query, alpha=0.75, temperature=0.5, beams=9, forced_weight=0.0, explain=False, barred=(20,), k=8)
    query = replace(query, normalise="children")
    answer = await recommender.answer(query)
    ((version, prompt, scoring),) = opened
    assert (version, prompt) == (query.version, artifact.prompt(query.shown))
    assert (scoring.alpha, scoring.temperature, scoring.keep) == (0.75, 0.5, 18)
    assert (scoring.adapter, scoring.forced, scoring.normalise) == ("lora", False, "children")
    admitted = {int(artifact.leaf_of_item[row]) for row in range(5, 60) if row != 20}
    assert set(scoring.leaves.leaves.tolist()) == admitted
    assert (answer.query, len(answer.items)) == (query, 8)
    assert all(item.tokens == () for item in answer.items)
    dearer = replace(query, beams=50)
    assert recommender.cost(dearer) > recommender.cost(query)
    popular = recommender.popular(query)
    named = {row for item in popular.items for row in (item.item, *item.duplicates)}
    assert (len(popular.items), named <= {*range(5, 60)} - {20}) == (8, True)


def test_another_scorer_is_another_question_and_without_gamma_it_is_none(artifact: Artifact) -> None:
    class Other(Scorer):
        fingerprint = "other"

    def key(scorer: Scorer | None, gamma: float) -> str:
        query = Query(history=[ItemIndex(0)], gamma=gamma)
        return ResolvedQuery.of(query, artifact, engine_of("m", 10_000), scorer=scorer).key()

    assert key(SCORER, 0.5) != key(Other(), 0.5)
    assert key(SCORER, 0.0) == key(Other(), 0.0) == key(None, 0.0)


def with_own(artifact: Artifact, **own: Any) -> Artifact:
    """An artifact whose manifest tells of a scorer with these defaults."""
    record = ScorerRecord(**{"kind": "transitions", "decay": 0.0, "backoff": 1.0, "entries": 0, **own})
    return replace(artifact, manifest=replace(artifact.manifest, scorer=record))


def test_the_artifacts_gamma_and_mixture_are_those_of_queries_that_name_none(artifact: Artifact) -> None:
    own = with_own(artifact, gamma=0.25, mixture="linear")
    came = resolved(own, Query(history=[]))
    assert (came.gamma, came.mixture, came.normalise, came.scorer) == (0.25, "linear", "children", "next")
    came = resolved(own, Query(history=[], gamma=0.5, mixture="log-linear"))
    assert (came.gamma, came.mixture, came.normalise) == (0.5, "log-linear", "children")
    came = resolved(own, Query(history=[], normalise="vocabulary"))
    assert (came.gamma, came.mixture, came.normalise) == (0.25, "log-linear", "vocabulary")
    came = resolved(own, Query(history=[], gamma=0.0))
    assert (came.gamma, came.mixture, came.normalise, came.scorer) == (0.0, "log-linear", "vocabulary", None)


def test_gamma_follows_the_whole_historys_length_and_a_querys_own_wins(artifact: Artifact) -> None:
    window = artifact.manifest.template.max_history
    own = with_own(artifact, gamma=((0, 0.25), (2, 0.0), (window + 1, 0.75)), mixture="log-linear")
    history = [ItemIndex(row % 9) for row in range(window + 3)]
    came = [resolved(own, Query(history=history[:length])) for length in range(len(history))]
    assert [each.gamma for each in came] == [0.25] * 2 + [0.0] * (window - 1) + [0.75] * 2
    assert [each.scorer for each in came] == ["next" if each.gamma else None for each in came]
    assert {resolved(own, Query(history=history[:length], gamma=0.5)).gamma for length in range(len(history))} == {0.5}


def test_the_key_holds_the_gamma_that_came_of_the_length_and_not_the_length(artifact: Artifact) -> None:
    """A history as long again that shows the same prompt is another question only where gamma is another."""

    def key(steps: tuple[tuple[int, float], ...], length: int, **more: Any) -> str:
        query = Query(history=[ItemIndex(7)] * length, exclude_seen=False, **more)
        return replace(resolved(with_own(artifact, gamma=steps, mixture="linear"), query), shown=()).key()

    steps = ((0, 0.25), (3, 0.5))
    assert key(steps, 1) == key(steps, 2) != key(steps, 3) == key(steps, 4)
    assert key(steps, 3) == key(steps, 1, gamma=0.5) == key(((0, 0.5),), 1)


@pytest.mark.parametrize(
    ("query", "field", "message"),
    [
        ({"gamma": -0.1}, "gamma", r"-0.1 is not in 0.0..1.0"),
        ({"gamma": math.nan}, "gamma", "nan is not in"),
        ({"mixture": "cubic"}, "mixture", "'cubic' is not one of log-linear, linear"),
        (
            {"gamma": 0.5, "mixture": "linear", "normalise": "vocabulary"},
            "mixture",
            "linear is of probabilities over children, and normalise is 'vocabulary'",
        ),
    ],
)
def test_a_mixture_that_cannot_be_is_refused_by_field(
    artifact: Artifact, query: dict[str, Any], field: str, message: str
) -> None:
    with pytest.raises(QueryError, match=message) as refused:
        resolved(artifact, Query(history=[], **query))
    assert refused.value.field == field


def test_a_gamma_or_a_linear_mixture_without_a_scorer_is_refused_and_0_is_not(artifact: Artifact) -> None:
    engine = engine_of("m", 10_000)
    with pytest.raises(QueryError, match=r"gamma: 0.5, and this version of catalogue 'films' holds no item scorer"):
        ResolvedQuery.of(Query(history=[], gamma=0.5), artifact, engine)
    with pytest.raises(QueryError, match="mixture: linear, and this version of catalogue 'films' holds no item scorer"):
        ResolvedQuery.of(Query(history=[], mixture="linear"), artifact, engine)
    for harmless in (Query(history=[], mixture="log-linear"), Query(history=[], gamma=0.0, mixture="linear")):
        assert ResolvedQuery.of(harmless, artifact, engine).mixture == "log-linear"
    assert ResolvedQuery.of(Query(history=[], gamma=0.0), artifact, engine).gamma == 0.0
