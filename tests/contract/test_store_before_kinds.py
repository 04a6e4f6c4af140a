"""Stores that a release wrote which knew no kinds of events, nor records: read as before, and not rewritten."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from patience import PATIENCE_S
from redis_server import RedisServer

from igd_core.store.base import Forgotten, StoreOptions
from igd_core.store.events import Event
from igd_core.store.open import open_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from igd_core.store.base import Store

# What the release before kinds left, as sqlite3's `iterdump` and redis-cli show it; only the ends are later here.
FILES = """
CREATE TABLE events (
    user_id TEXT, event_id TEXT, item_id TEXT NOT NULL, timestamp_ms INTEGER NOT NULL,
    PRIMARY KEY (user_id, event_id)) WITHOUT ROWID;
INSERT INTO "events" VALUES('ann','e1','50',1700000000000);
INSERT INTO "events" VALUES('ann','e2','a film: with spaces',1700000001000);
INSERT INTO "events" VALUES('bob é','e1','172',1700000002000);
CREATE TABLE holds (
    catalogue TEXT, version TEXT, holder TEXT, ends_at REAL NOT NULL,
    PRIMARY KEY (catalogue, version, holder)) WITHOUT ROWID;
CREATE TABLE pasts (catalogue TEXT PRIMARY KEY, past TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE pointers (
    catalogue TEXT PRIMARY KEY, current TEXT NOT NULL, previous TEXT, moves INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE trials (
    catalogue TEXT, version TEXT, state TEXT NOT NULL, holder TEXT NOT NULL, detail TEXT NOT NULL,
    allowed INTEGER NOT NULL, ends_at REAL NOT NULL, PRIMARY KEY (catalogue, version)) WITHOUT ROWID;
CREATE TABLE users (user_id TEXT PRIMARY KEY, ends_at REAL NOT NULL) WITHOUT ROWID;
INSERT INTO "users" VALUES('ann',4e+09);
INSERT INTO "users" VALUES('bob é',4e+09);
CREATE TABLE versions (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT, catalogue TEXT NOT NULL, version TEXT NOT NULL,
    folder TEXT NOT NULL, size_bytes INTEGER NOT NULL, stored_at REAL NOT NULL, UNIQUE (catalogue, version));
CREATE INDEX users_by_end ON users (ends_at);
PRAGMA user_version = 1;
"""
REDIS = {
    "igd:history:ann": ("e1", "1700000000000 50", "e2", "1700000001000 a film: with spaces"),
    "igd:history:bob é": ("e1", "1700000002000 172"),
}
OF_ANN = [
    Event(event_id="e1", item_id="50", timestamp_ms=1_700_000_000_000),
    Event(event_id="e2", item_id="a film: with spaces", timestamp_ms=1_700_000_001_000),
]
BOUGHT = Event(
    event_id="e3",
    item_id="172",
    timestamp_ms=1_700_000_003_000,
    kind="buy",
    value=12.99,
    position=3,
    request_id="r-1",
)
_SAME_ROWS = "SELECT * FROM events WHERE user_id = 'bob é'"


@pytest.fixture(params=["files", "redis"])
async def old_store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    options = StoreOptions(timeout_s=PATIENCE_S)
    if request.param == "files":
        with sqlite3.connect(tmp_path / "store.sqlite") as database:
            database.executescript(FILES)
            before = database.execute(_SAME_ROWS).fetchall()
        store = open_store(f"file://{tmp_path}", options=options)
        yield store
        await store.close()
        assert database.execute(_SAME_ROWS).fetchall() == before, "rows of the older release were rewritten"
        database.close()
        return
    with RedisServer(tmp_path) as server:
        for key, fields in REDIS.items():
            server.cli("hset", key, *fields)
        store = open_store(server.url, options=options)
        yield store
        await store.close()
        assert server.cli("hget", "igd:history:bob é", "e1") == "1700000002000 172"


async def test_events_without_a_kind_are_clicks_and_new_ones_stand_beside_them(old_store: Store) -> None:
    assert await old_store.history("ann") == OF_ANN
    assert {event.kind for event in OF_ANN} == {"click"}
    assert await old_store.append("ann", [OF_ANN[0], BOUGHT]) == 1
    assert await old_store.history("ann") == [*OF_ANN, BOUGHT]
    late = [replace(OF_ANN[0], event_id=name) for name in ("z", "a")]
    assert await old_store.append("ann", late) == 2
    assert [event.event_id for event in await old_store.history("ann")] == ["e1", "z", "a", "e2", "e3"]
    assert {user async for page in old_store.users() for user in page} == {"ann", "bob é"}
    assert await old_store.forget("ann") == Forgotten(events=5)
    assert await old_store.history("bob é") == [
        Event(event_id="e1", item_id="172", timestamp_ms=1_700_000_002_000, kind="click")
    ]
