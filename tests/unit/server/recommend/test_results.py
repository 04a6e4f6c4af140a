from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from igd_server.recommend.background import Background
from igd_server.recommend.cache import Question, Ranking, ResultCache
from igd_server.recommend.store_guard import StoreGuard

from igd_core.catalogue.attribute_types import AttributeType
from igd_core.catalogue.conditions import conditions_of
from igd_core.errors import StoreUnavailable
from igd_core.ids import ItemIndex
from igd_core.search.recommender import Query
from igd_core.store.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Mapping

    from igd_core.artifact import Artifact

ROWS = st.lists(st.integers(0, 3).map(ItemIndex), max_size=4)
# Few values, so that equal questions are met often; and pairs that Python takes for equal, or nearly.
TYPES = {"x": AttributeType(base="number"), "y": AttributeType(base="text")}
FEW = st.sampled_from([1, 1.0, 0, -0.0, 1.5, 2])
NUMBERS = st.lists(FEW, min_size=1, max_size=3) | st.fixed_dictionaries(
    {"gte": FEW}, optional={"gt": FEW, "none_of": st.lists(FEW, min_size=1, max_size=2), "exists": st.booleans()}
)
TEXTS = st.lists(st.sampled_from(["1", "a", "b"]), min_size=1, max_size=3)
QUERIES = st.builds(
    Query,
    history=st.lists(st.integers(0, 2).map(ItemIndex), max_size=12),
    k=st.integers(1, 2),
    beams=st.integers(1, 3),
    alpha=st.sampled_from([None, 0.2, 0, 0.0, -0.0, 0.5]),
    temperature=st.sampled_from([1, 1.0, 2.0]),
    length_penalty=st.sampled_from([0, 0.0, 1.0]),
    forced_weight=st.sampled_from([1, 1.0, 0, 0.5]),
    exclude_seen=st.booleans(),
    exclude_seen_titles=st.booleans(),
    exclude=ROWS,
    allow=st.none() | ROWS,
    attributes=st.fixed_dictionaries({}, optional={"x": NUMBERS, "y": TEXTS}).map(
        lambda asked: conditions_of(asked, TYPES)
    ),
    timeout_s=st.sampled_from([None, 1.0, 2.0]),
)
QUERY_FIELDS = tuple(Query.__dataclass_fields__)
FIELDS = ("model", "explain", "version", *QUERY_FIELDS)
QUESTIONS = st.tuples(QUERIES, st.sampled_from(["m", "n"]), st.booleans(), st.booleans())


def normal(artifact: Artifact, asked: tuple[Query, str, bool]) -> Any:
    """What the answer can depend on, as Python compares it."""
    query, model, explain = asked
    shown = tuple(artifact.manifest.template.window(query.history))
    return (
        artifact.version,
        model,
        explain,
        shown,
        frozenset(query.exclude) | seen_by(artifact, query),
        None if query.allow is None else frozenset(query.allow),
        query.attributes,
        query.k,
        max(query.k, query.beams),
        artifact.manifest.alpha if query.alpha is None else query.alpha,
        query.temperature,
        query.length_penalty,
        query.forced_weight,
    )


def seen_by(artifact: Artifact, query: Query) -> frozenset[ItemIndex]:
    titles = artifact.catalogue.titles
    history = set(query.history) if query.exclude_seen else set()
    read = {titles[row] for row in history} if query.exclude_seen_titles else set()
    return frozenset(history | {ItemIndex(row) for row, title in enumerate(titles) if title in read})


def key_of(artifact: Artifact, asked: tuple[Query, str, bool]) -> str:
    query, model, explain = asked
    return Question(query=query, artifact=artifact, model=model, explain=explain).key()


@settings(max_examples=500)
@given(one=QUESTIONS, other=QUESTIONS, fields=st.lists(st.sampled_from(FIELDS), max_size=2))
def test_keys_are_equal_if_and_only_if_the_questions_are_the_same(
    small_artifact: Artifact, artifact: Artifact, one: Any, other: Any, fields: list[str]
) -> None:
    # All but one or two fields are the first question's: two that are drawn apart are hardly ever the same.
    query = replace(one[0], **{name: getattr(other[0], name) for name in fields if name in QUERY_FIELDS})
    rest = [other[at] if name in fields else one[at] for at, name in enumerate(FIELDS[:3], start=1)]
    first, second = one[:3], (query, *rest[:2])
    versions = [small_artifact if chosen else artifact for chosen in (one[3], rest[2])]
    is_same = normal(versions[0], first) == normal(versions[1], second)
    assert (key_of(versions[0], first) == key_of(versions[1], second)) == is_same


@given(data=st.data(), query=QUERIES)
def test_what_cannot_change_the_answer_does_not_change_the_key(
    artifact: Artifact, data: st.DataObject, query: Query
) -> None:
    template = artifact.manifest.template
    hidden = len(query.history) - len(template.window(query.history))
    shown = list(query.history[hidden:])
    barred = [*query.exclude, *seen_by(artifact, query)]
    reordered = data.draw(st.permutations(barred)) + barred[:1]
    other = Query(
        # What the prompt does not show is left out of the answer by another field here.
        history=[*data.draw(st.lists(st.just(ItemIndex(3)), min_size=hidden, max_size=hidden)), *shown],
        exclude_seen=False,
        exclude=reordered,
        allow=None if query.allow is None else [*reversed(query.allow), *query.allow],
        attributes=dict(reversed(list(query.attributes.items()))),
        k=query.k,
        beams=data.draw(st.integers(1, query.k)) if query.beams <= query.k else query.beams,
        alpha=artifact.manifest.alpha if query.alpha is None else twin(query.alpha),
        temperature=twin(query.temperature),
        length_penalty=twin(query.length_penalty),
        forced_weight=twin(query.forced_weight),
        timeout_s=0.5,
    )
    assert key_of(artifact, (query, "m", False)) == key_of(artifact, (other, "m", False))


def twin(value: Any) -> Any:
    """Another value that equals this one, where Python has one."""
    if isinstance(value, str):
        return value
    if value == 0:
        return -0.0
    if value == 1 and value is not True:
        return True
    return float(value)


def test_what_reads_like_the_history_is_part_of_the_question_and_not_how_it_came_to_be_left_out(
    artifact: Artifact,
) -> None:
    titles = artifact.catalogue.titles
    first, second = next((a, b) for b in range(len(titles)) for a in range(b) if titles[a] == titles[b])
    history = [ItemIndex(first)]
    with_twin = key_of(artifact, (Query(history=history), "m", False))
    alone = key_of(artifact, (Query(history=history, exclude_seen_titles=False), "m", False))
    by_id = Query(history=history, exclude=[ItemIndex(second)], exclude_seen_titles=False)
    assert with_twin != alone
    assert {titles.count(titles[first])} == {2}
    assert key_of(artifact, (by_id, "m", False)) == with_twin


def test_a_new_event_of_a_user_is_another_question(artifact: Artifact) -> None:
    history = [ItemIndex(row) for row in range(30)]
    keys = {
        Question(query=Query(history=history[:length], exclude_seen=exclude_seen), artifact=artifact, model="m").key()
        for length in range(31)
        for exclude_seen in (True, False)
    }
    assert len(keys) == 2 * 31 - 1  # without a history there is nothing to leave out


def test_what_another_release_wrote_is_never_read(small_artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    question = Question(query=Query(history=[ItemIndex(0)]), artifact=small_artifact, model="m")
    now = question.key()
    monkeypatch.setattr("igd_server.recommend.cache.RELEASE", "0.0.1")
    assert question.key() != now


async def test_what_the_format_before_held_is_none() -> None:
    parts = Parts()
    parts.cache.keep("k", RANKING)
    await parts.background.settle()
    written = await parts.memory.get("result:k")
    assert written is not None
    assert written[:4] == b"igd2"
    await parts.memory.put("result:k", b"igd1" + written[4:], 60.0)
    assert await Parts(memory=parts.memory).stored("k") is None


RANKING = Ranking(items=b'[{"item_id":"7"}]', item_ids=b'["7"]')


class Parts:
    """A cache over a store in memory, with a clock that is set by hand."""

    def __init__(self, *, ttl_s: float = 60.0, max_local: int = 3, memory: MemoryStore | None = None) -> None:
        self.now = 1_000_000.0
        self.memory = memory or MemoryStore()
        self.background = Background(max_waiting=100)
        self.cache = ResultCache(
            StoreGuard(self.memory, timeout_s=0.25),
            self.background,
            ttl_s=ttl_s,
            max_local=max_local,
            clock=lambda: self.now,
        )

    async def stored(self, key: str) -> Ranking | None:
        return await self.cache.stored(key, by=asyncio.get_running_loop().time() + 1.0)


async def test_an_answer_is_found_here_and_by_other_servers_until_its_time_is_over() -> None:
    here = Parts()
    there = Parts(memory=here.memory)
    here.cache.keep("k", RANKING)
    await here.background.settle()
    assert here.cache.local("k") == RANKING
    assert there.cache.local("k") is None
    here.now = there.now = here.now + 40
    assert await there.stored("k") == RANKING
    assert there.cache.local("k") == RANKING
    here.now = there.now = here.now + 21
    assert here.cache.local("k") is None
    assert there.cache.local("k") is None, "what came from the store is no younger for that"
    assert await there.stored("k") is None


@pytest.mark.parametrize("jump_s", [-86_400.0, 86_400.0])
async def test_a_clock_that_jumps_costs_answers_but_makes_none_old(jump_s: float) -> None:
    parts = Parts()
    parts.cache.keep("k", RANKING)
    await parts.background.settle()
    parts.now += jump_s
    assert parts.cache.local("k") is None
    assert await parts.stored("k") is None
    parts.cache.keep("k", RANKING)
    assert parts.cache.local("k") == RANKING


async def test_the_answers_asked_for_last_are_the_ones_kept() -> None:
    parts = Parts(max_local=3)
    for key in "abc":
        parts.cache.keep(key, RANKING)
    assert parts.cache.local("a") == RANKING
    parts.cache.keep("d", RANKING)
    assert [key for key in "abcd" if parts.cache.local(key)] == ["a", "c", "d"]
    await parts.background.settle()
    assert await parts.stored("b") == RANKING


async def test_few_large_answers_are_kept_where_many_small_ones_would_be() -> None:
    parts = Parts(max_local=1000)
    large = Ranking(items=b"x" * (30 << 20), item_ids=b"[]")
    for key in "abc":
        parts.cache.keep(key, large)
    parts.cache.keep("c", large)
    assert [key for key in "abc" if parts.cache.local(key)] == ["b", "c"]
    await parts.background.close(1.0)


async def test_nothing_is_kept_where_that_is_switched_off() -> None:
    never, only_store = Parts(ttl_s=0), Parts(max_local=0)
    for parts in (never, only_store):
        parts.cache.keep("k", RANKING)
        await parts.background.settle()
        assert parts.cache.local("k") is None
    assert await never.stored("k") is None
    assert await never.memory.get("result:k") is None
    assert await only_store.stored("k") == RANKING


@given(data=st.data())
async def test_a_damaged_answer_is_none(data: st.DataObject) -> None:
    parts = Parts()
    parts.cache.keep("k", RANKING)
    await parts.background.settle()
    whole = await parts.memory.get("result:k")
    assert whole is not None
    if data.draw(st.booleans()):
        broken = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        at = data.draw(st.integers(0, len(whole) - 1))
        broken = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
    await parts.memory.put("result:k", broken, 60.0)
    other = Parts(memory=parts.memory)
    assert await other.stored("k") is None
    assert other.cache.local("k") is None


async def test_a_store_that_does_not_answer_has_no_answers() -> None:
    class Gone(MemoryStore):
        async def get(self, key: str) -> bytes | None:
            await asyncio.sleep(3600)
            return await super().get(key)

    parts = Parts(memory=Gone())
    parts.cache.keep("k", RANKING)
    assert parts.cache.local("k") == RANKING
    async with asyncio.timeout(1.0):
        assert await parts.stored("k") is None
    await parts.background.settle()


async def test_answers_of_the_same_moment_reach_the_store_in_few_calls_and_all_of_them_do() -> None:
    class Counting(MemoryStore):
        sizes: ClassVar[list[int]] = []

        async def put_all(self, values: Mapping[str, bytes], ttl_s: float) -> None:
            self.sizes.append(len(values))
            await super().put_all(values, ttl_s)

    parts = Parts(memory=Counting(), max_local=0)
    for number in range(40):
        parts.cache.keep(f"k{number}", RANKING)
    await parts.background.settle()
    assert Counting.sizes == [16, 16, 8]
    assert all([await parts.stored(f"k{number}") == RANKING for number in range(40)])


async def test_a_store_that_refuses_a_write_gets_the_next_one() -> None:
    class Refusing(MemoryStore):
        full = True

        async def put_all(self, values: Mapping[str, bytes], ttl_s: float) -> None:
            if self.full:
                raise StoreUnavailable("full")
            await super().put_all(values, ttl_s)

    store = Refusing()
    parts = Parts(memory=store, max_local=0)
    parts.cache.keep("lost", RANKING)
    await parts.background.settle()
    store.full = False
    parts.cache.keep("kept", RANKING)
    await parts.background.settle()
    assert await parts.stored("lost") is None
    assert await parts.stored("kept") == RANKING


async def test_what_waits_for_the_store_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("igd_server.recommend.cache._MAX_UNWRITTEN", 3)
    parts = Parts(max_local=0)
    for key in "abcd":
        parts.cache.keep(key, RANKING)
    await parts.background.settle()
    assert [key for key in "abcd" if await parts.stored(key)] == ["a", "b", "c"]
