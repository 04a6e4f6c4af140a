from __future__ import annotations

import asyncio
import math
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import oracles
import pytest
from factories import make_catalogue
from hypothesis import given
from hypothesis import strategies as st

from igd_core.artifact import Artifact, BuildOptions, build_artifact
from igd_core.catalogue.conditions import Condition, conditions_of
from igd_core.catalogue.items import Catalogue, SharedTitles
from igd_core.engines.fake import FakeEngine, FakeSession
from igd_core.errors import DeadlineExceeded, ModelFault, QueryError
from igd_core.ids import ItemIndex
from igd_core.limits import MAX_BEAMS, MAX_K
from igd_core.search import recommender
from igd_core.search.normalisation import Normalisation
from igd_core.search.query import Query
from igd_core.search.recommender import Recommendation, Recommender
from igd_core.search.session import ChildScores

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from igd_core.catalogue.conditions import Conditions
    from igd_core.catalogue.items import MetadataValue
    from igd_core.catalogue.tokenization import TitleTokenizer
    from igd_core.ids import NodeId
    from igd_core.search.session import Scoring

NUM_ITEMS = 40
OVER_CHILDREN = Normalisation(normalise="children", temperature=0.5)
FILTERS: tuple[dict[str, Any], ...] = (
    {},
    {"year": [1980, 1982]},
    {"genres": "noir", "year": {"gte": 1981, "lt": 1984}},
    {"genres": {"none_of": ["noir"], "exists": True}, "year": {"exists": False}},
    {"year": {"gt": 1985}},
)
ROWS = st.lists(st.integers(0, NUM_ITEMS - 1).map(ItemIndex), max_size=NUM_ITEMS + 5)


def items(*rows: int) -> list[ItemIndex]:
    return [ItemIndex(row) for row in rows]


@pytest.fixture(scope="module")
def films(tokenizer: TitleTokenizer) -> Artifact:
    """40 items; rows 30 to 34 are called as rows 0 to 4."""
    catalogue = make_catalogue(NUM_ITEMS, seed=4)
    titles = [*catalogue.titles[:30], *catalogue.titles[:5], *catalogue.titles[35:]]
    return build_artifact(replace(catalogue, titles=titles, texts=titles), tokenizer, BuildOptions(alpha=0.3))


def ask(films: Artifact, query: Query, engine: FakeEngine | None = None) -> Recommendation:
    async def run() -> Recommendation:
        serving = engine or FakeEngine()
        await serving.load(films)
        answer = await Recommender(films, serving).recommend(query)
        assert serving.stats().sessions == 0
        return answer

    return asyncio.run(run())


def returned(answer: Recommendation) -> list[ItemIndex]:
    return [item.item for item in answer.items]


@st.composite
def filtered_queries(draw: st.DrawFn) -> Query:
    return Query(
        history=draw(ROWS),
        k=draw(st.integers(1, NUM_ITEMS)),
        beams=draw(st.integers(1, 60)),
        exclude_seen=draw(st.booleans()),
        exclude_seen_titles=draw(st.booleans()),
        exclude=draw(ROWS),
        allow=draw(st.none() | ROWS),
        attributes=conditions_of(draw(st.sampled_from(FILTERS)), make_catalogue(NUM_ITEMS).types),
    )


def seen_by(films: Artifact, query: Query) -> set[int]:
    titles = films.catalogue.titles
    history = set(query.history) if query.exclude_seen else set()
    read = {titles[row] for row in history} if query.exclude_seen_titles else set()
    return history | {row for row in range(NUM_ITEMS) if titles[row] in read}


def admitted(films: Artifact, query: Query) -> set[int]:
    barred = {*query.exclude, *seen_by(films, query)}
    rows = oracles.admitted_items(NUM_ITEMS, query.allow, barred)
    for column, condition in query.attributes.items():
        rows = {row for row in rows if holds(condition, films.catalogue.metadata[column][row])}
    return rows


def holds(condition: Condition, value: MetadataValue) -> bool:
    """For integers and texts, and for bounds that are not strict."""
    own = {one for one in (value if isinstance(value, tuple) else (value,)) if one is not None}
    lowest = -math.inf if condition.lower is None else condition.lower.value
    highest = math.inf if condition.upper is None else condition.upper.value
    return all(
        (
            condition.any_of is None or own & set(condition.any_of),
            condition.none_of is None or not own & set(condition.none_of),
            (lowest == -math.inf and highest == math.inf) or any(lowest <= one <= highest for one in own),  # type: ignore[operator]
            condition.exists is None or condition.exists == bool(own),
        )
    )


@given(query=filtered_queries())
def test_k_admitted_titles_come_back_whenever_k_exist_and_never_another_item(films: Artifact, query: Query) -> None:
    answer = ask(films, query)
    rows = admitted(films, query)
    titles = {films.catalogue.titles[row] for row in rows}
    assert len(answer.items) == min(query.k, len(titles))
    named = [row for item in answer.items for row in (item.item, *item.duplicates)]
    assert set(named) <= rows
    assert len(named) == len(set(named))
    scores = [item.score for item in answer.items]
    assert scores == sorted(scores, reverse=True)
    assert answer.source == ("model" if query.history else "popularity")


@given(query=filtered_queries())
def test_the_item_of_a_shared_title_is_the_most_popular_admitted_one(films: Artifact, query: Query) -> None:
    rows, counts = admitted(films, query), films.catalogue.frequency
    for found in ask(films, query).items:
        title = films.catalogue.titles[found.item]
        same = [row for row in sorted(rows) if films.catalogue.titles[row] == title]
        assert [found.item, *found.duplicates] == sorted(same, key=lambda row: -counts[row])


def test_popularity_ranks_titles_by_their_share_of_interactions(films: Artifact) -> None:
    answer = ask(films, Query(history=[], k=NUM_ITEMS))
    titles, counts = films.catalogue.titles, films.catalogue.frequency
    share = {title: sum(counts[row] for row in range(NUM_ITEMS) if titles[row] == title) for title in titles}
    found = [titles[row] for row in returned(answer)]
    assert sorted(found) == sorted(set(titles))
    assert [share[title] for title in found] == sorted(share.values(), reverse=True)
    assert [item.score for item in answer.items] == pytest.approx([share[title] / counts.sum() for title in found])
    assert answer.prompt_ids == ()
    assert all(item.tokens == () for item in answer.items)


@given(query=filtered_queries(), looked_at=st.sampled_from([0, 1, 32]))
def test_popularity_gives_the_first_admitted_titles_by_their_share(
    films: Artifact, query: Query, looked_at: int
) -> None:
    with mock.patch.object(recommender, "_LOOKED_AT", looked_at):
        found = returned(ask(films, replace(query, history=[])))
    titles, counts = films.catalogue.titles, films.catalogue.frequency
    share = {title: sum(counts[row] for row in range(NUM_ITEMS) if titles[row] == title) for title in titles}
    open_titles = {titles[row] for row in admitted(films, replace(query, history=[]))}
    expected = sorted((share[title] for title in open_titles), reverse=True)[: query.k]
    assert [share[titles[row]] for row in found] == expected
    assert len({titles[row] for row in found}) == len(found)


@pytest.mark.parametrize(
    ("asked", "long", "beside"),
    [
        ({"year": 1980}, NUM_ITEMS, False),
        ({"year": 1980, "genres": "noir"}, NUM_ITEMS, True),
        ({"year": [*range(1920, 2000)], "genres": {"none_of": [f"genre {n}" for n in range(100)]}}, 50_000, False),
        (
            {
                "year": {"any_of": [*range(1920, 2000)], "none_of": [*range(2000, 2100)]},
                "genres": {"none_of": [f"genre {n}" for n in range(100)]},
            },
            50_000,
            True,
        ),
    ],
    ids=["short", "many items", "180 values", "280 values"],
)
def test_filters_that_take_long_are_made_beside_the_event_loop_and_kept(
    films: Artifact, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], long: int, beside: bool
) -> None:
    monkeypatch.setattr(recommender, "_LONG", long)
    conditions = conditions_of(asked, films.catalogue.types)
    made: list[bool] = []

    async def run() -> None:
        engine = FakeEngine()
        await engine.load(films)
        serving = Recommender(films, engine)
        admitted = serving.attributes.admitted
        loop_thread = threading.get_ident()

        def watched(asked: Conditions) -> Any:
            made.append(threading.get_ident() != loop_thread)
            return admitted(asked)

        monkeypatch.setattr(serving.attributes, "admitted", watched)
        for history in (items(7), []):
            query = Query(history=history, attributes=conditions)
            backwards = dict(reversed(conditions.items()))
            assert returned(await serving.recommend(query)) == returned(
                await serving.recommend(replace(query, attributes=backwards))
            )
        monkeypatch.setattr(recommender, "_KEPT_BYTES", 0)
        narrower = {**conditions, "genres": Condition(exists=False)}
        for attributes in (narrower, conditions, conditions):
            await serving.recommend(Query(history=[], attributes=attributes))

    asyncio.run(run())
    # Once, however it is asked for; and with no room for any, each time.
    assert made[0] == beside
    assert made[2:] == [beside, beside]
    assert len(made) == 4


def test_an_allow_list_of_three_returns_exactly_three(films: Artifact) -> None:
    answer = ask(films, Query(history=items(7), allow=items(10, 11, 12), k=10))
    assert sorted(returned(answer)) == [10, 11, 12]


def test_nothing_admitted_is_an_empty_answer_of_the_model(films: Artifact) -> None:
    answer = ask(films, Query(history=items(7), allow=items(7)))
    assert (answer.items, answer.source, answer.stats.rounds) == ((), "model", 0)
    assert ask(films, Query(history=[], allow=[])).items == ()


def test_a_seen_item_comes_back_only_when_asked_for(films: Artifact) -> None:
    seen = items(*range(20))
    assert not set(seen) & set(returned(ask(films, Query(history=seen, k=15))))
    assert set(seen) & set(returned(ask(films, Query(history=seen, k=30, exclude_seen=False))))


def test_another_item_of_a_seen_title_is_seen_unless_asked_for(films: Artifact) -> None:
    titles = films.catalogue.titles
    twins = {row for row in range(1, NUM_ITEMS) if titles[row] == titles[0]}
    assert twins  # or this test would show nothing
    everything: dict[str, Any] = {"k": NUM_ITEMS, "beams": NUM_ITEMS}
    for history in (items(0), ()):  # from the model, and popularity
        barred = Query(history=history, exclude=() if history else items(0), **everything)
        named = {row for item in ask(films, barred).items for row in (item.item, *item.duplicates)}
        assert bool(twins & named) == (not history)  # `exclude` names items, not titles
    kept = Query(history=items(0), exclude_seen_titles=False, **everything)
    named = {row for item in ask(films, kept).items for row in (item.item, *item.duplicates)}
    assert (twins <= named, 0 in named) == (True, False)


def test_items_of_one_title_spelled_apart_and_of_two_titles_spelled_alike_are_seen_together(
    tokenizer: TitleTokenizer,
) -> None:
    """Where another column spells the paths, the title is still what people read."""
    catalogue = Catalogue.build(
        item_ids=list("abcdef"),
        titles=["Red River", "Red River", "Red River", "The Dam", "The Weir", "The Lock"],
        texts=["one", "two", "three", "four", "four", "five"],
        frequency=np.arange(6, 0, -1),
    )
    artifact = build_artifact(catalogue, tokenizer, BuildOptions())
    assert [artifact.of_same_path_or_title(items(row)) for row in range(6)] == [{0, 1, 2}] * 3 + [{3, 4}] * 2 + [{5}]
    assert artifact.of_same_path_or_title([]) == set()
    assert sorted(returned(ask(artifact, Query(history=items(1, 4), k=6, beams=6)))) == [5]
    apart = Query(history=items(1, 4), k=6, beams=6, exclude_seen_titles=False)
    assert sorted(returned(ask(artifact, apart))) == [0, 2, 3, 5]


@given(titles=st.lists(st.sampled_from(["A", "B", "C", "é", "D"]), min_size=1, max_size=12))
def test_shared_titles_are_found(titles: list[str]) -> None:
    shared = SharedTitles.of_titles(titles)
    for row, title in enumerate(titles):
        same = [other for other, each in enumerate(titles) if each == title]
        assert sorted(shared.of(titles, row)) == (same if len(same) > 1 else [])
    assert len(shared.rows) == sum(titles.count(title) > 1 for title in titles)


def test_the_whole_history_is_seen_though_the_prompt_shows_its_end(films: Artifact) -> None:
    history = items(*range(25))
    answer = ask(films, Query(history=history, k=15))
    assert not set(history) & set(returned(answer))
    assert list(answer.prompt_ids) == films.prompt(history[-10:])


@pytest.mark.parametrize("forced_weight", [1.0, 0.5, 0.0])
def test_every_token_of_an_item_is_explained(films: Artifact, forced_weight: float) -> None:
    query = Query(
        history=items(1, 2), k=NUM_ITEMS, beams=NUM_ITEMS, alpha=0.4, length_penalty=1.0, forced_weight=forced_weight
    )
    paths = [tuple(films.trie.path(films.leaf_of_item[row])) for row in range(NUM_ITEMS)]
    prior = (films.catalogue.frequency / films.catalogue.frequency.sum()).tolist()
    decided_nothing = 0
    for found in ask(films, query).items:
        assert tuple(token.token_id for token in found.tokens) == paths[found.item]
        total = 0.0
        for at, token in enumerate(found.tokens):
            prefix = paths[found.item][:at]
            gain = oracles.entropy(paths, prior, prefix) - oracles.entropy(paths, prior, (*prefix, token.token_id))
            g = oracles.sibling_gains(paths, prior, prefix)[token.token_id]
            assert token.information_gain == pytest.approx(gain, rel=1e-6, abs=1e-9)
            assert token.forced == (len(oracles.next_tokens(paths, prefix)) == 1)
            assert token.weight == pytest.approx(forced_weight if token.forced else 1.0 - 0.4 * g, abs=1e-6)
            assert (token.logprob is None) == (token.forced and forced_weight == 0), (
                "what counts nothing is not asked for"
            )
            if token.logprob is not None:
                total += token.logprob * token.weight
            decided_nothing += not token.forced and token.information_gain == 0
        assert found.score == pytest.approx(total / len(found.tokens))
        assert found.score == pytest.approx(sum(token.score for token in found.tokens))
    assert decided_nothing > 0, "a choice between popular and cold items gains nothing, and is no forced one"


def test_over_children_an_item_comes_with_its_probability_and_tokens_that_explain_it(films: Artifact) -> None:
    asked = Query(history=items(1, 2), k=NUM_ITEMS, beams=NUM_ITEMS, exclude_seen=False, normalise="children")
    answer = ask(films, replace(asked, alpha=0.4, forced_weight=0.3))
    assert answer == ask(films, replace(asked, alpha=0.4)), "forced tokens have probability 1, whatever they weigh"
    # Of items that share a title the first stands for it: the probability is the title's.
    assert len(answer.items) == len({films.catalogue.titles[each.item] for each in answer.items}) < NUM_ITEMS
    assert sum(each.probability or 0.0 for each in answer.items) == pytest.approx(1.0, abs=1e-9)
    assert any(each.duplicates for each in answer.items)
    for found in answer.items:
        logprobs = [token.logprob for token in found.tokens if token.logprob is not None]
        assert len(logprobs) == len(found.tokens)
        assert found.probability == pytest.approx(math.exp(sum(logprobs)))
        weighted = [(token.logprob or 0.0) * token.weight for token in found.tokens]
        assert found.score == pytest.approx(sum(weighted))
        assert all((token.logprob, token.weight) == (0.0, 1.0) for token in found.tokens if token.forced)
    untold = ask(films, replace(asked, alpha=0.4, explain=False))
    assert [each.probability for each in untold.items] == [each.probability for each in answer.items]
    assert {each.probability for each in ask(films, replace(asked, normalise="vocabulary")).items} == {None}
    assert {each.probability for each in ask(films, replace(asked, history=[])).items} == {None}, "of popularity"


@pytest.mark.parametrize(
    ("tuned", "asked", "comes"),
    [
        (None, {}, ("vocabulary", 1.0)),
        (None, {"normalise": "children"}, ("children", 1.0)),
        (OVER_CHILDREN, {}, ("children", 0.5)),
        (OVER_CHILDREN, {"temperature": 2.0}, ("children", 2.0)),
        (OVER_CHILDREN, {"normalise": "children"}, ("children", 0.5)),
        (OVER_CHILDREN, {"normalise": "vocabulary"}, ("vocabulary", 1.0)),
        (OVER_CHILDREN, {"normalise": "vocabulary", "temperature": 3.0}, ("vocabulary", 3.0)),
        (Normalisation(temperature=3.0), {}, ("vocabulary", 3.0)),
    ],
)
def test_scores_follow_what_the_model_was_tuned_for_unless_a_query_says_otherwise(
    films: Artifact, tuned: Normalisation | None, asked: dict[str, Any], comes: tuple[str, float]
) -> None:
    query = Recommender(films, FakeEngine(tuned_for=tuned)).resolve(Query(history=items(3), **asked))
    assert (query.normalise, query.temperature) == comes


def test_alpha_is_the_artifacts_where_a_query_names_none(films: Artifact) -> None:
    history = items(3, 9)
    assert ask(films, Query(history=history)) == ask(films, Query(history=history, alpha=0.3))
    assert ask(films, Query(history=history)) != ask(films, Query(history=history, alpha=0.0))


def test_fewer_beams_than_k_are_raised_to_k(films: Artifact) -> None:
    few, enough = (ask(films, Query(history=items(1), k=12, beams=beams)) for beams in (1, 12))
    assert few == enough


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        ({"k": 0}, "k", "0 is not in 1..40"),
        ({"k": NUM_ITEMS + 1}, "k", "41 is not in 1..40"),
        ({"beams": 0}, "beams", "0 is not in"),
        ({"beams": MAX_BEAMS + 1}, "beams", "201 is not in"),
        ({"alpha": 7}, "alpha", "7 is not in 0.0..1.0"),
        ({"alpha": -0.1}, "alpha", "-0.1"),
        ({"alpha": math.nan}, "alpha", "nan"),
        ({"normalise": "siblings"}, "normalise", "'siblings' is not one of vocabulary, children"),
        ({"temperature": 0.0}, "temperature", "0.0"),
        ({"temperature": math.inf}, "temperature", "inf"),
        ({"length_penalty": -1.0}, "length_penalty", "-1.0"),
        ({"length_penalty": 2.5}, "length_penalty", "2.5"),
        ({"history": [NUM_ITEMS]}, "history", "item row 40"),
        ({"exclude": [-1]}, "exclude", "item row -1"),
        ({"allow": [99]}, "allow", "item row 99"),
        ({"attributes": {"colour": Condition(exists=True)}}, "filter", "no attribute 'colour'"),
    ],
)
@pytest.mark.parametrize("history", [[], [1]])
def test_a_value_out_of_range_is_refused_by_field(
    films: Artifact, change: dict[str, Any], field: str, message: str, history: list[ItemIndex]
) -> None:
    with pytest.raises(QueryError, match=message) as caught:
        ask(films, Query(**({"history": history} | change)))
    assert caught.value.field == field


def test_k_stays_bounded_in_a_large_catalogue(tokenizer: TitleTokenizer) -> None:
    many = build_artifact(make_catalogue(300), tokenizer, BuildOptions())
    assert len(ask(many, Query(history=items(1), k=MAX_K)).items) == MAX_K
    with pytest.raises(QueryError, match=r"101 is not in 1\.\.100"):
        ask(many, Query(history=items(1), k=MAX_K + 1))


def test_a_deadline_ends_the_request_and_closes_its_session(films: Artifact) -> None:
    engine = FakeEngine(delay_s=5.0)
    with pytest.raises(DeadlineExceeded, match=r"no answer within 0.05 s"):
        ask(films, Query(history=items(1), timeout_s=0.05), engine)
    assert engine.stats().sessions == 0


def short_engine(tokens: int) -> FakeEngine:
    class ShortEngine(FakeEngine):
        context_tokens = tokens

    return ShortEngine()


def test_the_oldest_items_leave_a_prompt_that_the_model_has_no_room_for(films: Artifact) -> None:
    history = items(*range(10))
    whole = len(films.prompt(history))
    depth = films.trie.depth
    assert ask(films, Query(history=history), short_engine(whole + depth)).query.left_out == 0
    for tokens in range(len(films.prompt([])) + depth, whole + depth):
        answer = ask(films, Query(history=history), short_engine(tokens))
        gone = next(count for count in range(11) if len(films.prompt(history[count:])) + depth <= tokens)
        assert answer.query.left_out == gone
        assert answer.source == ("model" if gone < 10 else "popularity")
        assert list(answer.prompt_ids) == (films.prompt(history[gone:]) if gone < 10 else [])
        assert not set(returned(answer)) & set(history), "what is not shown is still seen"


class FaultySession(FakeSession):
    """Changes what the fake engine's sessions return."""

    change: Callable[[ChildScores], ChildScores]

    async def expand(self, nodes: Sequence[NodeId]) -> Mapping[NodeId, ChildScores]:
        scored = await super().expand(nodes)
        return {node: type(self).change(children) for node, children in scored.items()}


def faulty(change: Callable[[ChildScores], ChildScores]) -> FakeEngine:
    session_class = type("Session", (FaultySession,), {"change": staticmethod(change)})

    class FaultyEngine(FakeEngine):
        async def open(self, version: str, prompt_ids: Sequence[int], scoring: Scoring) -> FakeSession:
            session: FakeSession = session_class(self, self._artifacts[version], scoring, prompt_ids)
            self._open_sessions += 1
            return session

    return FaultyEngine()


def without_the_first(children: ChildScores) -> ChildScores:
    return ChildScores(children.edges[1:], children.logprobs[1:], children.scores[1:])


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_scores_that_are_not_finite_are_no_answer_whatever_the_engine(films: Artifact, value: float) -> None:
    engine = faulty(lambda children: children._replace(scores=[value] * len(children.scores)))
    with pytest.raises(ModelFault):
        ask(films, Query(history=items(1, 2)), engine)
    assert engine.stats().sessions == 0


def test_fewer_items_than_are_admitted_are_no_answer(films: Artifact) -> None:
    with pytest.raises(ModelFault, match=r"the search found \d+ of 10 paths"):
        ask(films, Query(history=items(1, 2)), faulty(without_the_first))
    with pytest.raises(ModelFault, match="the search found 0 of 1 paths"):
        ask(films, Query(history=items(1, 2), allow=items(5)), faulty(without_the_first))


def test_queries_do_not_change_the_shared_arrays(films: Artifact) -> None:
    before = {name: array.copy() for name, array in films.trie.arrays().items()}
    ask(films, Query(history=items(1, 2, 3), exclude=items(5), k=20))
    for name, array in films.trie.arrays().items():
        assert np.array_equal(array, before[name])
