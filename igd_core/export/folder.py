"""An export on its way: one folder, one writer, and all that is needed to go on where it stopped.

While it is not finished, ``run.json`` says of which store it is, ``users/`` lists whose data there are, divided among
the parts, and ``parts/`` says what each finished part holds. All three go when ``manifest.json`` is written.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import zlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from igd_core.datasets.export_format import MANIFEST, SCHEMAS, read_manifest
from igd_core.errors import DataError
from igd_core.locked_folders import LOCK_FILE
from igd_core.whole_files import sync, write_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

_RUN, _USERS, _PARTS, _LISTED = "run.json", "users", "parts", "listed"
_IN = (_USERS, _PARTS, *SCHEMAS)
_OURS = {LOCK_FILE, _RUN, MANIFEST, *_IN}
_FILE = re.compile(
    rf"{_USERS}/(\d{{4,}}\.txt|{_LISTED})|{_PARTS}/\.?\d{{4,}}\.json.*|({'|'.join(SCHEMAS)})/\.?part-\d{{4,}}\.parquet.*"
)
"""In them; with a dot before it and more behind it, one that was being written."""


class ExportFolder:
    """The folder ``--out``."""

    def __init__(self, path: Path) -> None:
        """Look at nothing yet."""
        self.path = path

    def begin(self, store: str, parts: int, *, force: bool) -> Mapping[str, Any]:
        """Begin an export of the store of this name, or go on with it; returns what ``run.json`` says.

        Args:
            store: `igd_core.store.base.Store.identity`.
            parts: into how many its users are divided.
            force: replace an export of the same store, finished or not.

        Raises:
            DataError: the folder holds another store's export, a finished one, one in other parts, or other files.
        """
        if other := self._not_ours():
            raise DataError(f"out: {self.path} holds {other[0]!r}, which is no export's; choose an empty folder")
        finished, begun = read_manifest(self.path), self._run()
        found = finished or begun
        if found is not None and found.get("store") != store:
            raise DataError(
                f"out: {self.path} holds an export of another store ({found.get('store')}, this one is {store}); "
                "choose an empty folder"
            )
        if finished is not None and not force:
            raise DataError(
                f"out: {self.path} holds a finished export of {finished.get('finished_at')}; choose an empty folder, "
                "or --force to replace it"
            )
        if begun is not None and not force and finished is None:
            if begun["parts"] != parts:
                raise DataError(
                    f"parts: {parts}; the export begun in {self.path} has {begun['parts']}; --force begins anew"
                )
            return begun
        self._clear()
        run = {"store": store, "parts": parts, "started_at": now()}
        for name in _IN:
            (self.path / name).mkdir(exist_ok=True)
        write_json(self.path / _RUN, run)
        return run

    @property
    def is_listed(self) -> bool:
        """Whether all users are listed."""
        return (self.path / _USERS / _LISTED).exists()

    @contextlib.contextmanager
    def listing(self, parts: int) -> Iterator[UserLists]:
        """Where to list users; it counts as whole when the block ends without an error."""
        with contextlib.ExitStack() as files:
            paths = [self.path / _USERS / f"{part:04}.txt" for part in range(parts)]
            yield UserLists([files.enter_context(path.open("w", encoding="utf-8")) for path in paths])
        for path in paths:
            sync(path)
        (self.path / _USERS / _LISTED).touch()
        sync(self.path / _USERS)

    def users(self, part: int) -> list[str]:
        """The users of a part, sorted, each once."""
        with (self.path / _USERS / f"{part:04}.txt").open(encoding="utf-8") as lines:
            return sorted({json.loads(line) for line in lines})

    def report(self, part: int) -> Mapping[str, Any] | None:
        """What a finished part holds; None if it is not finished."""
        try:
            found: Mapping[str, Any] = json.loads((self.path / _PARTS / f"{part:04}.json").read_text("utf-8"))
        except FileNotFoundError:
            return None
        return found

    def finish_part(self, part: int, report: Mapping[str, Any]) -> None:
        """Say that a part is finished."""
        write_json(self.path / _PARTS / f"{part:04}.json", report)

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Say that the export is finished, and remove what was only for going on, the list of users first of all."""
        write_json(self.path / MANIFEST, manifest)
        for name in (_USERS, _PARTS):
            shutil.rmtree(self.path / name)
        (self.path / _RUN).unlink()
        sync(self.path)

    def _not_ours(self) -> list[str]:
        """What no export wrote, also in folders that have the names of ours: those are emptied before one begins."""
        paths = [*self.path.iterdir(), *(path for name in _IN for path in (self.path / name).glob("*"))]
        names = sorted(str(path.relative_to(self.path)) for path in paths)
        return [name for name in names if not (name in _OURS or _FILE.fullmatch(name))]

    def _run(self) -> Mapping[str, Any] | None:
        try:
            found: Mapping[str, Any] = json.loads((self.path / _RUN).read_text("utf-8"))
        except FileNotFoundError:
            return None
        except ValueError:
            raise DataError(f"out: {self.path / _RUN} is no JSON") from None
        return found

    def _clear(self) -> None:
        for name in (MANIFEST, _RUN):
            (self.path / name).unlink(missing_ok=True)
        for name in _IN:
            shutil.rmtree(self.path / name, ignore_errors=True)


class UserLists:
    """Users divided among parts by a hash of their ids; some may be listed twice."""

    def __init__(self, files: list[Any]) -> None:
        self._files = files

    def add(self, user_ids: Iterable[str]) -> None:
        """List users."""
        for user_id in user_ids:
            self._files[zlib.crc32(user_id.encode()) % len(self._files)].write(json.dumps(user_id) + "\n")


def now() -> str:
    """The time, as manifests have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
