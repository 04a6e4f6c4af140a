"""`igd export` on real stores: everything once, whatever happens meanwhile, and nothing of who was forgotten."""

from __future__ import annotations

import asyncio
import itertools
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from patience import PATIENCE_S
from redis_server import RedisServer

from igd_core.cli.main import main
from igd_core.datasets.export_format import SCHEMAS, StoreExport, sha256_of
from igd_core.errors import DataError, StoreUnavailable
from igd_core.event_kinds import KINDS
from igd_core.export.folder import ExportFolder
from igd_core.export.run import export
from igd_core.locked_folders import locked_folder
from igd_core.store.base import StoreOptions
from igd_core.store.events import Event
from igd_core.store.impressions import Impression
from igd_core.store.open import open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from igd_core.store.base import RecordList, Store

    Opened = Callable[[], Store]

NOON_MS = 1_769_860_800_000
_numbers = itertools.count()


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(params=["files", "redis"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opened:
    """Opens one store, as often as called: as other processes would."""
    url = request.getfixturevalue("redis").url if request.param == "redis" else f"file://{tmp_path}/store"
    options = StoreOptions(prefix=f"export-{next(_numbers)}", timeout_s=PATIENCE_S)
    return lambda: open_store(url, options=options)


def event(number: int, **said: Any) -> Event:
    return Event(event_id=f"e{number}", item_id=f"item {number % 7}", timestamp_ms=NOON_MS + number, **said)


def shown(number: int, *item_ids: str) -> Impression:
    return Impression(
        request_id=f"r{number}",
        timestamp_ms=NOON_MS + number,
        catalogue="films",
        version="0123456789abcdef",
        variant="",
        source="model",
        item_ids=item_ids,
        scores=tuple(-float(rank) for rank in range(1, len(item_ids) + 1)),
    )


async def note(store: Store, user_id: str, *impressions: Impression) -> None:
    records = {user_id: [each.packed() for each in impressions]}
    await store.add_records("impressions", records, keep=1000, ttl_s=3600.0)


async def exported(store: Store, folder: Path, **options: Any) -> Mapping[str, Any]:
    target = ExportFolder(folder)
    with locked_folder(target.path):
        return await export(store, target, **({"parts": 3} | options))


def rows(folder: Path, table: Any) -> list[dict[str, Any]]:
    files = StoreExport.open(folder).files[table]
    return [row for file in files for row in pq.read_table(file, schema=SCHEMAS[table]).to_pylist()]


async def test_everything_that_is_stored_is_exported_with_a_manifest_that_says_so(
    opened: Opened, tmp_path: Path
) -> None:
    store = opened()
    bought = event(2, kind="buy", value=12.5, position=3, request_id="r1")
    await store.append("ann", [event(1), bought])
    await store.append_others("ann", [event(3, kind="view")])
    await store.append("a:b é/{x}*", [event(1)])
    await note(store, "ann", shown(1, "item 1", "item 2"), shown(1, "item 1", "item 2"))
    await note(store, "only shown", replace(shown(2, "item 3"), variant="bold"))
    manifest = await exported(store, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == manifest
    assert (manifest["users"], manifest["store"]) == (3, await store.identity())
    assert manifest["events"] == {
        "rows": 4,
        "first": "2026-01-31T12:00:00.001Z",
        "last": "2026-01-31T12:00:00.003Z",
        "kinds": {"buy": 1, "click": 2, "view": 1},
    }
    assert manifest["impressions"] == {
        "rows": 3,
        "first": "2026-01-31T12:00:00.001Z",
        "last": "2026-01-31T12:00:00.002Z",
        "answers": 2,
    }
    for file in manifest["files"]:
        assert sha256_of(tmp_path / "out" / file["path"]) == file["sha256"]
    (found,) = (row for row in rows(tmp_path / "out", "events") if row["event_id"] == "e2")
    assert found.pop("timestamp").timestamp() * 1000 == bought.timestamp_ms
    assert found == {
        "user_id": "ann",
        "event_id": "e2",
        "item_id": "item 2",
        "kind": "buy",
        "value": 12.5,
        "position": 3,
        "request_id": "r1",
        "history": True,
    }
    assert {
        (row["user_id"], row["request_id"], row["rank"], row["item_id"], row["score"], row["variant"])
        for row in (rows(tmp_path / "out", "impressions"))
    } == {
        ("ann", "r1", 1, "item 1", -1.0, None),
        ("ann", "r1", 2, "item 2", -2.0, None),
        ("only shown", "r2", 1, "item 3", -1.0, "bold"),
    }
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".lock",
        "events",
        "impressions",
        "manifest.json",
    ], "the list of users is left behind"
    await store.close()


async def test_two_writers_and_an_exporter_lose_nothing_and_double_nothing(opened: Opened, tmp_path: Path) -> None:
    stores = [opened() for _ in range(3)]
    before = {(f"u{number % 20}", f"e{number}") for number in range(100)}
    for user in range(20):
        await stores[0].append(f"u{user}", [event(number) for number in range(100) if number % 20 == user])

    async def write(store: Store, first: int) -> None:
        for number in range(first, 300, 2):
            await store.append(f"u{number % 50}", [event(number)])
            await store.append_others(f"u{number % 50}", [event(number + 1000, kind="view")])

    await asyncio.gather(write(stores[0], 100), write(stores[1], 101), exported(stores[2], tmp_path / "meanwhile"))
    await exported(stores[2], tmp_path / "after")
    pairs = [(row["user_id"], row["event_id"]) for row in rows(tmp_path / "meanwhile", "events")]
    assert len(pairs) == len(set(pairs)), "doubled"
    assert before <= set(pairs), "lost"
    after = [(row["user_id"], row["event_id"]) for row in rows(tmp_path / "after", "events")]
    written = {(f"u{number % 50}", f"e{number}") for number in range(100, 300)}
    views = {(user, f"e{int(event_id[1:]) + 1000}") for user, event_id in written}
    assert sorted(after) == sorted(before | written | views)
    for store in stores:
        await store.close()


class Failing:
    """A store that stops answering after so many users."""

    def __init__(self, store: Store, after: int) -> None:
        self._store = store
        self._left = after
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def records(self, name: RecordList, user_id: str) -> Sequence[bytes]:
        self.asked.append(user_id)
        self._left -= 1
        if self._left < 0:
            raise StoreUnavailable("gone")
        return await self._store.records(name, user_id)


async def test_an_export_that_stopped_goes_on_where_it_did(opened: Opened, tmp_path: Path) -> None:
    store = opened()
    users = [f"u{number}" for number in range(30)]
    for user in users:
        await store.append(user, [event(1)])
    with pytest.raises(StoreUnavailable):
        await exported(Failing(store, 20), tmp_path / "out")
    with pytest.raises(DataError, match="not finished"):
        StoreExport.open(tmp_path / "out")
    assert not list((tmp_path / "out").glob("*/.part-*")), "half a part is left"
    finished = {
        row["user_id"] for path in (tmp_path / "out" / "events").iterdir() for row in pq.read_table(path).to_pylist()
    }
    assert finished
    await store.append("came later", [event(1)])
    rest = Failing(store, 1000)
    with pytest.raises(DataError, match=r"parts: 4; the export begun in .* has 3"):
        await exported(store, tmp_path / "out", parts=4)
    manifest = await exported(rest, tmp_path / "out")
    assert finished.isdisjoint(rest.asked), "what was there is read again"
    assert sorted(row["user_id"] for row in rows(tmp_path / "out", "events")) == sorted(users)
    assert manifest["events"]["rows"] == 30
    await store.close()


async def test_exports_of_two_stores_are_not_mixed(opened: Opened, tmp_path: Path) -> None:
    store, other = opened(), open_store(f"file://{tmp_path}/other", options=StoreOptions(timeout_s=PATIENCE_S))
    await store.append("ann", [event(1)])
    await exported(store, tmp_path / "out")
    for options in ({}, {"force": True}):
        with pytest.raises(DataError, match="holds an export of another store"):
            await exported(other, tmp_path / "out", **options)
    with pytest.raises(DataError, match=r"holds a finished export of .* --force"):
        await exported(store, tmp_path / "out")
    await store.append("ann", [event(2)])
    assert (await exported(store, tmp_path / "out", force=True))["events"]["rows"] == 2
    with pytest.raises(StoreUnavailable):
        await exported(Failing(other, 0), await _one_user(other, tmp_path))
    with pytest.raises(DataError, match="holds an export of another store"):
        await exported(store, tmp_path / "begun")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(DataError, match=r"'thesis\.tex', which is no export's"):
        await exported(store, tmp_path / "full")
    (tmp_path / "mine" / "users").mkdir(parents=True)  # the name of a folder that an export empties
    (tmp_path / "mine" / "users" / "ann.json").touch()
    for options in ({}, {"force": True}):
        with pytest.raises(DataError, match=r"holds 'users/ann\.json', which is no export's"):
            await exported(store, tmp_path / "mine", **options)
    assert (tmp_path / "mine" / "users" / "ann.json").exists()
    for each in (store, other):
        await each.close()


async def _one_user(store: Store, tmp_path: Path) -> Path:
    await store.append("bob", [event(1)])
    return tmp_path / "begun"


async def test_an_export_after_forgetting_holds_nothing_of_the_person(opened: Opened, tmp_path: Path) -> None:
    store = opened()
    for user in ("forgotten-person", "bob"):
        await store.append(user, [event(1)])
        await store.append_others(user, [event(2, kind="view")])
        await note(store, user, shown(1, "item 1"))
    await exported(store, tmp_path / "before")
    await store.forget("forgotten-person")
    await exported(store, tmp_path / "after")
    assert {row["user_id"] for row in rows(tmp_path / "after", "events")} == {"bob"}
    assert {row["user_id"] for row in rows(tmp_path / "before", "events")} == {"bob", "forgotten-person"}
    for path in (each for each in (tmp_path / "after").rglob("*") if each.is_file()):
        assert b"forgotten-person" not in path.read_bytes(), path
    await store.close()


@pytest.mark.parametrize("table", ["events", "impressions"])
async def test_an_altered_or_missing_file_is_named(tmp_path: Path, table: str) -> None:
    store = open_store(f"file://{tmp_path}/store", options=StoreOptions(timeout_s=PATIENCE_S))
    await store.append("ann", [event(1)])
    await note(store, "ann", shown(1, "item 1"))
    await exported(store, tmp_path / "out", parts=1)
    await store.close()
    file = tmp_path / "out" / table / "part-0000.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[:-20] + bytes(byte ^ 1 for byte in whole[-20:]))
    with pytest.raises(DataError, match=f"{file} is not as it was written"):
        StoreExport.open(tmp_path / "out")
    file.unlink()
    with pytest.raises(DataError, match=f"{file}: No such file"):
        StoreExport.open(tmp_path / "out")
    manifest = tmp_path / "out" / "manifest.json"
    said = json.loads(manifest.read_text())
    for wrong, told in (
        ({"format_version": 2}, "format_version 2; this release reads 1"),
        ({"format": "other"}, "is of no export"),
        ({"files": [{"path": "../x"}]}, "names '../x'"),
        ({"files": [{}]}, "cannot be understood"),
    ):
        manifest.write_text(json.dumps(said | wrong))
        with pytest.raises(DataError, match=told):
            StoreExport.open(tmp_path / "out")


EVENTS = st.dictionaries(
    st.text("abc:{}*é ", min_size=1, max_size=6),
    st.lists(
        st.builds(
            lambda number, kind, said: event(number, kind=kind, **said),
            st.integers(0, 400),
            st.sampled_from(KINDS),
            st.fixed_dictionaries(
                {}, optional={"value": st.floats(-1e9, 1e9), "position": st.integers(1, 99), "request_id": st.just("r")}
            ),
        ),
        max_size=8,
        unique_by=lambda made: made.event_id,
    ),
    max_size=8,
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(EVENTS, st.integers(1, 5))
async def test_what_goes_in_comes_out(tmp_path: Path, events: dict[str, list[Event]], parts: int) -> None:
    from igd_core.store.memory import MemoryStore

    store, folder = MemoryStore(), tmp_path / f"out-{next(_numbers)}"
    for user_id, of_user in events.items():
        await store.append(user_id, of_user)
    await exported(store, folder, parts=parts)
    found = {
        (row["user_id"], Event(timestamp_ms=round(row["timestamp"].timestamp() * 1000), **_said(row)))
        for row in rows(folder, "events")
    }
    assert found == {(user_id, each) for user_id, of_user in events.items() for each in of_user}


def _said(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("event_id", "item_id", "kind", "value", "position", "request_id")}


def test_the_command_says_what_it_wrote_and_refuses_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"file://{tmp_path}/store"

    async def fill() -> None:
        store = open_store(url, options=StoreOptions(timeout_s=PATIENCE_S))
        await store.append("ann", [event(1), event(2, kind="buy")])
        await note(store, "ann", shown(1, "item 1", "item 2"))
        await store.close()

    asyncio.run(fill())
    monkeypatch.setenv("IGD_STORE", url)
    assert main(["export", "--out", str(tmp_path / "out"), "--parts", "2"]) == 0
    said = capsys.readouterr().out
    assert "events        2, 2026-01-31T12:00:00.001Z to 2026-01-31T12:00:00.002Z" in said
    assert "  buy         1" in said
    assert "impressions   2 items in 1 answers" in said
    assert main(["export", "--out", str(tmp_path / "out"), "--json", "--force"]) == 0
    assert json.loads(capsys.readouterr().out)["users"] == 1
    for argv, told in (
        (["--out", str(tmp_path / "out")], "holds a finished export"),
        (["--out", str(tmp_path / "x"), "--store", "memory://"], "memory:// ends with this command"),
        (["--out", str(tmp_path / "x"), "--parts", "0"], "parts: 0 is not in 1..256"),
    ):
        try:
            code = main(["export", *argv])
        except SystemExit as error:
            code = int(error.code or 0)
        assert (code, told in capsys.readouterr().err) == (2, True), argv
