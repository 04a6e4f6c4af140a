"""Where each row's target stood by each method: all that comparing checkpoints needs of an evaluation."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from igd_core.errors import DataError, InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

RANKS_FILE = "ranks.json"
_FORMAT = "igd-evaluation-ranks"


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodRanks:
    """Where each row's target stood.

    Attributes:
        name: of the method, without ``seen``.
        seen: allowed or excluded.
        known_as: the literature's name for it, or empty.
        depth: longest list.
        titles: ``(rows,)`` int64; rank of the target's title from 1 on, 0 where it was not listed.
    """

    name: str
    seen: str
    known_as: str
    depth: int
    titles: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedRun:
    """An evaluation's ranks, and what says on which rows.

    Runs whose ``identity`` is the same but for the artefact can be paired: another tokenizer makes another artefact of
    the same titles.
    """

    path: Path
    identity: Mapping[str, Any]
    methods: Sequence[MethodRanks]

    def of(self, name: str, seen: str) -> MethodRanks:
        """A method by its name.

        Raises:
            InputError: the run has none of that name.
        """
        for method in self.methods:
            if (method.name, method.seen) == (name, seen):
                return method
        raise InputError(f"{self.path}: has no {name!r} with seen items {seen}")


def to_ranks_json(identity: Mapping[str, Any], methods: Sequence[MethodRanks]) -> dict[str, Any]:
    """What a run's `RANKS_FILE` holds."""
    return {
        "format": _FORMAT,
        "format_version": 1,
        "identity": dict(identity),
        "methods": [
            {
                "name": method.name,
                "seen": method.seen,
                "known_as": method.known_as,
                "depth": method.depth,
                "titles": method.titles.tolist(),
            }
            for method in methods
        ],
    }


def read_ranks(folder: Path) -> RankedRun:
    """The ranks of a finished evaluation.

    Raises:
        DataError: the folder has none, or they cannot be read.
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
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; `igd evaluate` writes it once every row is decoded") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: is damaged ({type(error).__name__}: {error})") from None
    rows = {len(method.titles) for method in methods}
    if len(rows) != 1 or any(method.titles.ndim != 1 or (method.titles < 0).any() for method in methods):
        raise DataError(f"{path}: is damaged (ranks of {sorted(rows)} rows)")
    return RankedRun(path=path, identity=identity, methods=methods)
