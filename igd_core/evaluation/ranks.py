"""The rank of each row's target under each method: all that comparing checkpoints needs."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from igd_core.errors import DataError, InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

RANKS_FILE = "ranks.json"
IN_FILE_ORDER = {"unknown_targets": "in file order"}
"""In the identity of runs whose rows may have unknown targets: earlier releases put such rows behind all others."""
_FORMAT = "igd-evaluation-ranks"


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodRanks:
    """The ranks under one method.

    Attributes:
        name: of the method, without ``seen``.
        seen: allowed or excluded.
        known_as: the name in the literature, or empty.
        depth: length of the longest list.
        titles: ``(rows,)`` int64; rank of the target's title, from 1; 0 where it is not in the list.
    """

    name: str
    seen: str
    known_as: str
    depth: int
    titles: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedRun:
    """An evaluation's ranks, and which rows they are of.

    Two runs can be paired if their ``identity`` is equal but for the artifact: another tokenizer builds another
    artifact of the same titles.

    Attributes:
        path: of the file.
        identity: see `RunIdentity.of_ranks`.
        methods: at least one; all have as many rows.
        rows: ``(rows,)`` int64, place of each among the usable rows of its file, rising; None in files of earlier
            versions, as is the next.
        targets: ``(rows,)`` int64, rows of one number ask for the same title; every number from 0 on is in use.
    """

    path: Path
    identity: Mapping[str, Any]
    methods: Sequence[MethodRanks]
    rows: NDArray[np.int64] | None = None
    targets: NDArray[np.int64] | None = None

    def of(self, name: str, seen: str) -> MethodRanks:
        """The method with this name.

        Raises:
            InputError: the run has no such method.
        """
        for method in self.methods:
            if (method.name, method.seen) == (name, seen):
                return method
        raise InputError(f"{self.path}: has no {name!r} with seen items {seen}")

    def shares_rows_with(self, other: RankedRun) -> bool:
        """Whether a row of one file is known to be in both."""
        if self.identity.get("rows_sha256") != other.identity.get("rows_sha256"):
            return False
        return self.rows is None or other.rows is None or bool(np.isin(self.rows, other.rows).any())

    def at(self, places: NDArray[np.int64]) -> RankedRun:
        """The run cut to some of its rows, as if only they had been evaluated."""
        return replace(
            self,
            methods=[replace(method, titles=method.titles[places]) for method in self.methods],
            rows=None if self.rows is None else self.rows[places],
            targets=None if self.targets is None else np.unique(self.targets[places], return_inverse=True)[1],
        )


def to_ranks_json(run: RankedRun) -> dict[str, Any]:
    """The content of a run's `RANKS_FILE`."""
    known = {"rows": run.rows, "targets": run.targets}
    return {
        "format": _FORMAT,
        "format_version": 1,
        "identity": dict(run.identity),
        **{name: values.tolist() for name, values in known.items() if values is not None},
        "methods": [
            {
                "name": method.name,
                "seen": method.seen,
                "known_as": method.known_as,
                "depth": method.depth,
                "titles": method.titles.tolist(),
            }
            for method in run.methods
        ],
    }


def read_ranks(folder: Path) -> RankedRun:
    """Read the ranks of a finished evaluation.

    Raises:
        DataError: the folder has no ranks, or they cannot be read.
    """
    path = folder / RANKS_FILE
    try:
        content = json.loads(path.read_text("utf-8"))
        if (content["format"], content["format_version"]) != (_FORMAT, 1):
            raise DataError(f"{path}: no {_FORMAT} file of version 1")
        methods = [
            MethodRanks(
                name=str(method["name"]),
                seen=str(method["seen"]),
                known_as=str(method["known_as"]),
                depth=int(method["depth"]),
                titles=np.array(method["titles"], dtype=np.int64),
            )
            for method in content["methods"]
        ]
        identity = dict(content["identity"])
        known = {
            name: np.array(content[name], dtype=np.int64) if name in content else None for name in ("rows", "targets")
        }
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; `igd evaluate` writes it once every row is decoded") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: is damaged ({type(error).__name__}: {error})") from None
    rows = {len(method.titles) for method in methods}
    if len(rows) != 1 or any(method.titles.ndim != 1 or (method.titles < 0).any() for method in methods):
        raise DataError(f"{path}: is damaged (ranks of {sorted(rows)} rows)")
    for name, values in known.items():
        if values is not None and (values.shape != methods[0].titles.shape or (values < 0).any()):
            raise DataError(f"{path}: is damaged ({name} of shape {values.shape} for {len(methods[0].titles)} ranks)")
    if known["rows"] is not None and (np.diff(known["rows"]) <= 0).any():
        raise DataError(f"{path}: is damaged (rows do not rise)")
    if known["targets"] is not None:
        known["targets"] = np.unique(known["targets"], return_inverse=True)[1]
    return RankedRun(path=path, identity=identity, methods=methods, **known)
