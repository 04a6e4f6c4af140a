"""Put the lists of a complete batch into a store, for servers to answer with when the model cannot."""

from __future__ import annotations

import itertools
import time
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from igd_core.batch.parts import Parts
from igd_core.batch.run_folder import RunFolder, digest_of
from igd_core.errors import DataError, InputError
from igd_core.store.names import require_catalogue_name, require_user_id
from igd_core.store.precomputed import MOST_ITEMS, PrecomputedList

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from igd_core.store.base import RecordStore

_LINES_AT_ONCE = 65_536
_USERS_AT_ONCE = 256
_COLUMNS = ("user_id", "item_id", "score", "version", "model_fingerprint", "source", "file", "row")


@dataclass(frozen=True, slots=True, kw_only=True)
class Precomputed:
    """What became of the rows of a batch.

    Attributes:
        lists: that were written; a user with two rows counts twice, and has one of the two.
        nameless: rows without a user id.
        popularity: rows that popularity ranked, which servers can do themselves.
        refused: rows whose user id no request can have.
    """

    lists: int = 0
    nameless: int = 0
    popularity: int = 0
    refused: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """How lists are kept: the newest ``lists`` of a user, each for ``ttl_s`` seconds after it was made."""

    ttl_s: float
    lists: int = 1


async def precompute(
    out: Path, store: RecordStore, catalogue: str, keeping: Keeping, on_part: Callable[[int], None] = lambda _: None
) -> Precomputed:
    """Put each user's list into the store; a second run replaces what the first one wrote.

    Args:
        out: folder of a complete `igd batch`.
        store: of the servers.
        catalogue: the name under which they serve what the lists are made of.
        keeping: how long and how many.
        on_part: is called with the number of parts after each.

    Raises:
        DataError: the folder holds no complete batch.
        InputError: the catalogue's name; or the lists are too old to be kept.
        StoreUnavailable: some lists are in the store; the same call goes on.
    """
    require_catalogue_name(catalogue)
    manifest = RunFolder(out).manifest()
    if manifest is None:
        raise DataError(f"lists: {out} holds no run of igd batch")
    if manifest["result"] is None:
        raise DataError(f"lists: {out} is not complete; the same `igd batch` command goes on with it")
    chunks = manifest["result"]["chunks"]
    parts = Parts(RunFolder(out).recommendations, digest_of(manifest["run"]))
    found = Precomputed()
    for chunk in range(chunks):
        report = parts.report(chunk)
        if report is None:
            raise DataError(f"lists: {parts.path(chunk)} is missing or damaged; `igd batch` makes it again")
        made_at_ms = report.made_at_ms or int(parts.path(chunk).stat().st_mtime * 1000)
        left_s = keeping.ttl_s - (time.time() - made_at_ms / 1000)
        if left_s <= 0:
            raise InputError(
                f"ttl_hours: {keeping.ttl_s / 3600:g}; the lists in {parts.path(chunk)} are {-left_s / 3600:.1f} hours "
                "older than that"
            )
        lists = _lists(parts.path(chunk), catalogue, made_at_ms)
        while some := list(itertools.islice(lists, _USERS_AT_ONCE)):
            found = await _store(some, store, found, keep=keeping.lists, ttl_s=left_s)
        on_part(chunks)
    return found


async def _store(
    rows: list[tuple[str | None, PrecomputedList | None]],
    store: RecordStore,
    found: Precomputed,
    *,
    keep: int,
    ttl_s: float,
) -> Precomputed:
    """Store the lists of some rows; returns the count with them."""
    lists: dict[str, list[bytes]] = {}
    nameless = popularity = refused = 0
    for user_id, made in rows:
        if user_id is None:
            nameless += 1
        elif made is None:
            popularity += 1
        elif (asked_as := _as_servers_write(user_id)) is None:
            refused += 1
        else:
            lists[asked_as] = [made.packed()]
    if lists:
        await store.add_records("precomputed", lists, keep=keep, ttl_s=ttl_s)
    return Precomputed(
        lists=found.lists + len(lists),
        nameless=found.nameless + nameless,
        popularity=found.popularity + popularity,
        refused=found.refused + refused,
    )


def _lists(path: Path, catalogue: str, made_at_ms: int) -> Iterator[tuple[str | None, PrecomputedList | None]]:
    """Each row's user and list; None for no user id, and for what popularity ranked."""
    for (_, _), lines in itertools.groupby(_lines(path), key=lambda line: (line["file"], line["row"])):
        ranked = list(lines)
        first = ranked[0]
        if first["user_id"] is None or first["source"] != "model":
            yield first["user_id"], None
            continue
        yield (
            first["user_id"],
            PrecomputedList(
                catalogue=catalogue,
                version=first["version"],
                model_fingerprint=first["model_fingerprint"],
                made_at_ms=made_at_ms,
                item_ids=tuple(line["item_id"] for line in ranked[:MOST_ITEMS]),
                scores=tuple(float(line["score"]) for line in ranked[:MOST_ITEMS]),
            ),
        )


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path, page_checksum_verification=True) as part:
        for batch in part.iter_batches(_LINES_AT_ONCE, columns=list(_COLUMNS)):
            yield from batch.to_pylist()


def _as_servers_write(user_id: str) -> str | None:
    """The id as servers look it up, composed (NFC); None if no request can have it."""
    composed = unicodedata.normalize("NFC", user_id)
    try:
        return require_user_id(composed)
    except InputError:
        return None
