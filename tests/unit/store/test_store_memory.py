from __future__ import annotations

from stores import event

from igd_core.store.base import HistoryLimits, StoreOptions
from igd_core.store.memory import MemoryResults, MemoryStore


class Clock:
    """Seconds that pass when told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_results_are_bounded_and_the_oldest_go_first() -> None:
    results = MemoryResults(Clock(), most=3)
    for key in ("a", "b", "a", "c", "d"):
        await results.put(key, key.encode(), 10)
    assert [await results.get(key) for key in "abcd"] == [b"a", None, b"c", b"d"]


async def test_expired_histories_leave_memory_as_others_grow() -> None:
    clock = Clock()
    store = MemoryStore(StoreOptions(history=HistoryLimits(ttl_s=100)), clock=clock)
    for number in range(50):
        await store.append(f"user-{number}", [event(1)])
    clock.now = 60
    await store.append("user-7", [event(2)])
    clock.now = 101
    await store.append("ann", [event(1)])
    assert set(store._histories) == {"user-7", "ann"}
    assert len(await store.history("user-7")) == 2
