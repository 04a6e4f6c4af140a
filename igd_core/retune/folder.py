"""The folder of a catalogue's retuning: rounds, one after the other, each in a folder of its own.

``retune.json`` says what is done of the present round, and how the earlier ones ended.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from igd_core.errors import InputError
from igd_core.locked_folders import LOCK_FILE
from igd_core.whole_files import write_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

STATE_FILE = "retune.json"
_FORMAT = "igd-retune"
_MOST_REMEMBERED = 100


@dataclass(slots=True, kw_only=True)
class RetuneFolder:
    """A folder, opened for one catalogue and its settings.

    Attributes:
        path: of the folder.
        asked: what a round is made of, by name.
        number: of the present round, from 1.
        done: by stage of the present round, what it came to.
        ended: how earlier rounds ended, the oldest first.
        dropped: whether an unfinished round of other settings was given up for this one.
    """

    path: Path
    asked: Mapping[str, Any]
    number: int = 1
    done: dict[str, dict[str, Any]] = field(default_factory=dict)
    ended: list[dict[str, Any]] = field(default_factory=list)
    dropped: bool = False

    @staticmethod
    def opened(path: Path, asked: Mapping[str, Any]) -> RetuneFolder:
        """The folder with the round that goes on, or a new one; its lock must be held.

        Raises:
            InputError: it holds something else, or another catalogue's rounds.
        """
        asked = json.loads(json.dumps(asked))
        before = _read(path)
        if before is None:
            return RetuneFolder(path=path, asked=asked)._written()
        if before["asked"]["catalogue"] != asked["catalogue"]:
            raise InputError(
                f"out: {path} holds rounds of catalogue {before['asked']['catalogue']!r}; choose another folder"
            )
        folder = RetuneFolder(
            path=path, asked=asked, number=before["round"], done=before["done"], ended=before["ended"]
        )
        if before["asked"] != asked and folder.done:
            shutil.rmtree(folder.at, ignore_errors=True)
            folder.done, folder.dropped = {}, True
        return folder._written()

    @property
    def at(self) -> Path:
        """The folder of the present round."""
        return self.path / f"round-{self.number:04}"

    @property
    def last_export(self) -> Mapping[str, Any] | None:
        """What the latest round that ended was made of; None before the first."""
        return self.ended[-1]["export"] if self.ended else None

    def keep(self, stage: str, result: Mapping[str, Any]) -> None:
        """Note that a stage is done."""
        self.done[stage] = dict(result)
        self._written()

    def end(self, outcome: Mapping[str, Any]) -> None:
        """End the round. What people chose is deleted; of the models, those of the latest round are kept."""
        for name in ("export", "data"):
            shutil.rmtree(self.at / name, ignore_errors=True)
        if self.number > 1:
            shutil.rmtree(self.path / f"round-{self.number - 1:04}", ignore_errors=True)
        self.ended = [*self.ended, {"round": self.number, **outcome}][-_MOST_REMEMBERED:]
        self.number += 1
        self.done = {}
        self._written()

    def _written(self) -> RetuneFolder:
        state = {"format": _FORMAT, "asked": self.asked, "round": self.number, "done": self.done, "ended": self.ended}
        write_json(self.path / STATE_FILE, state)
        return self


def _read(path: Path) -> dict[str, Any] | None:
    state = path / STATE_FILE
    try:
        content = json.loads(state.read_text("utf-8"))
    except FileNotFoundError:
        if any(each.name != LOCK_FILE for each in path.iterdir()):
            raise InputError(f"out: {path} holds something else; choose another folder") from None
        return None
    except ValueError:
        raise InputError(f"{state}: is damaged; choose another --out") from None
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise InputError(f"{state}: was not written by igd retune; choose another --out")
    return content
