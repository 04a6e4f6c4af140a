"""Export a store: list its users, then write what is stored of them, part by part."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

from igd_core.datasets.export_format import FORMAT, FORMAT_VERSION, SCHEMAS
from igd_core.export.folder import now
from igd_core.export.part import PartWriter
from igd_core.release import RELEASE
from igd_core.store.impressions import impressions_in
from igd_core.timestamps import iso_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from igd_core.export.folder import ExportFolder
    from igd_core.store.base import Store
    from igd_core.store.events import Event
    from igd_core.store.impressions import Impression

_USERS_AT_ONCE = 32


async def export(
    store: Store,
    folder: ExportFolder,
    *,
    parts: int,
    force: bool = False,
    on_part: Callable[[int], None] = lambda _: None,
) -> Mapping[str, Any]:
    """Write all events and impressions of a store; returns the manifest.

    What was stored before this began, and is neither forgotten nor too old meanwhile, is in it once. What is stored
    meanwhile may be. Memory holds the user ids of one part, and the rows of one batch.

    Args:
        store: to read; only its name is written to it, if it has none yet.
        folder: locked.
        parts: into how many the users are divided: what is lost when the process dies is one of them.
        force: replace an export of the same store.
        on_part: is told the number of each part that is finished.

    Raises:
        DataError: the folder holds something else.
        StoreError: the store does not answer; the same call goes on later.
        OSError: the disk failed or is full; likewise.
    """
    run = folder.begin(await store.identity(), parts, force=force)
    if not folder.is_listed:
        with folder.listing(parts) as lists:
            async for user_ids in store.users():
                lists.add(user_ids)
    for part in range(parts):
        if folder.report(part) is None:
            folder.finish_part(part, await _write_part(store, folder, part))
        on_part(part)
    manifest = _manifest(run, [folder.report(part) or {} for part in range(parts)])
    folder.finish(manifest)
    return manifest


async def _write_part(store: Store, folder: ExportFolder, part: int) -> dict[str, Any]:
    users = folder.users(part)
    writer = PartWriter(folder.path, part)
    try:
        for at in range(0, len(users), _USERS_AT_ONCE):
            some = users[at : at + _USERS_AT_ONCE]
            found = await asyncio.gather(*(_of(store, user_id) for user_id in some), return_exceptions=True)
            for user_id, of_user in zip(some, found, strict=True):
                if isinstance(of_user, BaseException):
                    raise of_user
                writer.add(user_id, *of_user)
        return writer.finish()
    finally:
        writer.abandon()


async def _of(store: Store, user_id: str) -> tuple[Sequence[Event], Sequence[Event], Sequence[Impression]]:
    return (
        await store.history(user_id),
        await store.other_events(user_id),
        impressions_in(await store.records("impressions", user_id)),
    )


def _manifest(run: Mapping[str, Any], reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    kinds = sum((Counter(report["kinds"]) for report in reports), Counter[str]())
    tables = {name: [report[name] for report in reports] for name in SCHEMAS}
    summary: dict[str, dict[str, Any]] = {name: _rows_and_times(files) for name, files in tables.items()}
    summary["events"]["kinds"] = dict(sorted(kinds.items()))
    summary["impressions"]["answers"] = sum(report["answers"] for report in reports)
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "release": RELEASE,
        "store": run["store"],
        "started_at": run["started_at"],
        "finished_at": now(),
        "users": sum(report["users"] for report in reports),
        **summary,
        "files": [
            {name: file[name] for name in ("path", "rows", "bytes", "sha256")}
            for files in tables.values()
            for file in files
            if file["rows"]
        ],
    }


def _rows_and_times(files: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    times = [time for file in files for time in file["times_ms"]]
    return {
        "rows": sum(file["rows"] for file in files),
        "first": iso_of(min(times)) if times else None,
        "last": iso_of(max(times)) if times else None,
    }
