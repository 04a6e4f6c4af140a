"""Lists of a batch in a store: every user's, whole, while they are fresh; nothing of a batch that is not complete."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from publishing import PATIENT

from igd_core.batch.parts import LINES, PartReport, Parts
from igd_core.batch.precompute import Keeping, Precomputed, precompute
from igd_core.batch.run_folder import RunFolder, digest_of
from igd_core.cli.main import main
from igd_core.errors import DataError, InputError
from igd_core.store.memory import MemoryStore
from igd_core.store.open import open_store
from igd_core.store.precomputed import newest_of

if TYPE_CHECKING:
    from pathlib import Path

_IDENTITY = {"artifact": "v"}
_DAY = Keeping(ttl_s=86_400)


def line(row: int, rank: int, user_id: str | None, *, source: str = "model") -> dict[str, Any]:
    return {
        "user_id": user_id,
        "rank": rank,
        "item_id": f"{row}-{rank}",
        "score": -float(rank),
        "version": "v",
        "model_fingerprint": "f",
        "source": source,
        "file": "rows.csv",
        "row": row,
    }


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Two parts: 700 users with three items each, then rows that no user gets."""
    folder = RunFolder(tmp_path / "out")
    folder.path.mkdir()
    folder.begin(_IDENTITY)
    parts = Parts(folder.recommendations, digest_of(_IDENTITY))
    parts.prepare(2)
    others = [
        line(800, 1, None),
        line(801, 1, "new", source="popularity"),
        line(802, 1, "bad\x07"),
        line(803, 1, "Ame\u0301lie"),
    ]
    for chunk, lines in enumerate([[line(row, rank, f"u{row}") for row in range(700) for rank in (1, 2, 3)], others]):
        report = PartReport(
            chunk=chunk,
            rows=1,
            lines=len(lines),
            popularity=0,
            rejected=0,
            seconds=1.0,
            worker="w",
            made_at_ms=int(time.time() * 1000) - 3_600_000,
        )
        parts.write(report, pa.Table.from_pylist(lines, schema=LINES), [])
    folder.write_manifest(_IDENTITY, {"chunks": 2})
    return folder.path


async def test_each_user_gets_the_list_of_their_row(out: Path) -> None:
    store = MemoryStore()
    parts: list[int] = []
    assert await precompute(out, store, "films", _DAY, parts.append) == Precomputed(
        lists=701, nameless=1, popularity=1, refused=1
    )
    assert parts == [2, 2]
    for row in range(700):
        made = newest_of(await store.records("precomputed", f"u{row}"), "films")
        assert made is not None
        assert made.item_ids == (f"{row}-1", f"{row}-2", f"{row}-3")
        assert made.scores == (-1.0, -2.0, -3.0)
        assert 3590 < time.time() - made.made_at_ms / 1000 < 3700
    assert len(await store.records("precomputed", "Am\u00e9lie")) == 1, "as servers compose ids"
    assert await store.records("precomputed", "new") == []


async def test_the_next_one_replaces_it_and_a_list_ends_so_long_after_it_was_made(out: Path) -> None:
    now = time.time()
    store = MemoryStore(clock=lambda: now)
    await precompute(out, store, "films", Keeping(ttl_s=7200))
    await precompute(out, store, "books", Keeping(ttl_s=7200))
    assert newest_of(await store.records("precomputed", "u1"), "films") is None
    await precompute(out, store, "films", Keeping(ttl_s=7200, lists=2))
    kept = await store.records("precomputed", "u1")
    assert None not in (newest_of(kept, "films"), newest_of(kept, "books"))
    now += 3700  # and an hour before
    assert await store.records("precomputed", "u1") == []


async def test_lists_that_are_too_old_are_refused(out: Path) -> None:
    with pytest.raises(InputError, match=r"^ttl_hours: 0\.5; the lists in .*part-000000\.parquet are 0\.5 hours older"):
        await precompute(out, MemoryStore(), "films", Keeping(ttl_s=1800))


async def test_a_batch_that_is_not_complete_is_refused(out: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no run of igd batch"):
        await precompute(tmp_path, MemoryStore(), "films", _DAY)
    damaged = out / "recommendations" / "part-000001.parquet"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-5])
    with pytest.raises(DataError, match=r"part-000001\.parquet is missing or damaged"):
        await precompute(out, MemoryStore(), "films", _DAY)
    damaged.write_bytes(whole)
    RunFolder(out).write_manifest(_IDENTITY, None)
    with pytest.raises(DataError, match="is not complete"):
        await precompute(out, MemoryStore(), "films", _DAY)


async def test_a_name_that_is_no_catalogues_is_refused(out: Path) -> None:
    with pytest.raises(InputError, match="catalogue"):
        await precompute(out, MemoryStore(), "no name", _DAY)


def test_the_command_says_what_it_did(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = f"file://{tmp_path}/store"
    asked = ["precompute", "--lists", str(out), "--catalogue", "films", "--store", store]
    assert main(asked) == 0
    told = capsys.readouterr().out
    assert "lists         701, each for 48 hours after it was made" in told
    assert "left out      1 rows without a user_id" in told
    assert main([*asked, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"lists": 701, "nameless": 1, "popularity": 1, "refused": 1}
    assert main([*asked, "--store", "memory://"]) == 2
    assert "memory:// ends with this command" in capsys.readouterr().err


async def test_the_command_reached_the_store(out: Path, tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/store", options=PATIENT)
    await precompute(out, store, "films", _DAY)
    made = newest_of(await store.records("precomputed", "u699"), "films")
    assert made is not None
    assert made.item_ids[0] == "699-1"
    assert (await store.forget("u699")).precomputed == 1
    assert await store.records("precomputed", "u699") == []
    await store.close()
