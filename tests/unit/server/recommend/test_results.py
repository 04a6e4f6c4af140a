from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from igd_server.recommend.background import Background
from igd_server.recommend.cache import Ranking, ResultCache
from igd_server.recommend.store_guard import StoreGuard
from patience import PATIENCE_S

from igd_core.errors import StoreUnavailable
from igd_core.store.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Mapping


async def test_what_the_format_before_held_is_none() -> None:
    parts = Parts()
    parts.cache.keep("k", RANKING)
    await parts.background.settle()
    written = await parts.memory.get("result:k")
    assert written is not None
    assert written[:4] == b"igd3"
    await parts.memory.put("result:k", b"igd2" + written[4:], 60.0)
    assert await Parts(memory=parts.memory).stored("k") is None


RANKING = Ranking(items=b'[{"item_id":"7"}]', rows=(7, 70_000), marks=b"seven of 10s")


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
    large = Ranking(items=b"x" * (30 << 20), rows=(), marks=b"")
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
    async with asyncio.timeout(PATIENCE_S):
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
