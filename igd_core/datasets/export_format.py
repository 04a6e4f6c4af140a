"""The folder that `igd export` writes, and its check before it is read.

manifest.json                   format, store, times, counts, kinds; rows, bytes and sha256 of each file; written last
events/part-0000.parquet        one row an event
impressions/part-0000.parquet   one row an item that was shown
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import pyarrow as pa

from igd_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

FORMAT, FORMAT_VERSION = "igd-export", 1
MANIFEST = "manifest.json"
_MAX_MANIFEST_BYTES = 16 << 20
_FILE = re.compile(r"(events|impressions)/part-\d{4}\.parquet")
_TIME = pa.timestamp("ms", "UTC")

Table: TypeAlias = Literal["events", "impressions"]
SCHEMAS: Mapping[Table, pa.Schema] = {
    "events": pa.schema(
        [
            ("user_id", pa.string()),
            ("event_id", pa.string()),
            ("item_id", pa.string()),
            ("timestamp", _TIME),
            ("kind", pa.string()),
            ("value", pa.float64()),
            ("position", pa.int32()),
            ("request_id", pa.string()),
            ("history", pa.bool_()),
        ]
    ),
    "impressions": pa.schema(
        [
            ("user_id", pa.string()),
            ("request_id", pa.string()),
            ("timestamp", _TIME),
            ("catalogue", pa.string()),
            ("version", pa.string()),
            ("variant", pa.string()),
            ("source", pa.string()),
            ("rank", pa.int32()),
            ("item_id", pa.string()),
            ("score", pa.float64()),
        ]
    ),
}
"""``history``: whether the event is in the list that histories are made of. ``rank``: from 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreExport:
    """A whole export.

    Attributes:
        folder: where it lies.
        manifest: what it says of itself.
        files: of each table, in order.
    """

    folder: Path
    manifest: Mapping[str, Any]
    files: Mapping[Table, Sequence[Path]]

    @staticmethod
    def open(folder: Path) -> StoreExport:
        """Check every file against the manifest. Blocking; reads all of it.

        Raises:
            DataError: it is no export, not finished, of a later format, or a file is missing or was altered.
        """
        manifest = read_manifest(folder)
        if manifest is None:
            raise DataError(f"export: {folder} holds no {MANIFEST}: no export of igd, or one that is not finished")
        try:
            files: dict[Table, list[Path]] = {name: [] for name in SCHEMAS}
            for file in manifest["files"]:
                named = _FILE.fullmatch(file["path"])
                if named is None:
                    raise DataError(
                        f"export: {folder / MANIFEST} names {file['path']!r}, which is no part of an export"
                    )
                path, table = folder / file["path"], cast("Table", named[1])
                if sha256_of(path) != file["sha256"]:
                    raise DataError(f"export: {path} is not as it was written: its sha256 differs from the manifest's")
                files[table].append(path)
        except OSError as error:
            raise DataError(f"export: {error.filename}: {error.strerror}") from None
        except (KeyError, TypeError, AttributeError):
            raise DataError(f"export: {folder / MANIFEST} cannot be understood") from None
        return StoreExport(folder=folder, manifest=manifest, files=files)


def read_manifest(folder: Path) -> Mapping[str, Any] | None:
    """The manifest of a finished export; None if there is none.

    Raises:
        DataError: it cannot be read, or is of another format.
    """
    path = folder / MANIFEST
    try:
        with path.open("rb") as file:
            manifest = json.loads(file.read(_MAX_MANIFEST_BYTES))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"export: {path}: {error.strerror}") from None
    except ValueError:
        raise DataError(f"export: {path} is no JSON") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(f"export: {path} is of no export of igd")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"export: {path}: format_version {manifest.get('format_version')!r}; this release reads {FORMAT_VERSION}"
        )
    return manifest


def sha256_of(path: Path) -> str:
    """The hash of a file's content, hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
