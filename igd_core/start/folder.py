"""The folder of a start: which stages are done, and what they were done with. ``start.json`` in it says so."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from igd_core.errors import InputError
from igd_core.locked_folders import LOCK_FILE, locked_folder
from igd_core.whole_files import write_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

START_FILE = "start.json"
LAYOUT_FILE = "layout.toml"
REPORT_FILE = "report.html"
_FORMAT = "igd-start"
_STAGES = (
    ("data", ("data",)),
    ("tokens", ("whole", "tokenizer")),
    ("scorer", ("scorers",)),
    ("titles", ("gain.png",)),
    ("speed", ("speed",)),
    ("tune", ("run",)),
    ("merge", ("model",)),
    ("speed of choose", ("speed-choose",)),
    ("choose", ("chosen",)),
    ("shop", ("shop",)),
    ("speed of judge", ("speed-judge",)),
    ("judge", ("judged",)),
    ("serve", ("serve.log", REPORT_FILE)),
)
"""The stages in their order, and what each writes; ``scorer`` is one for each kind."""
_FIRST = {
    **dict.fromkeys(("model", "recipe", "tokenizer", "on_unspellable"), "tokens"),
    "device": "speed",
    "minutes": "tune",
    "baselines": "judge",
}
"""The first stage that a flag changes, where that is not the first of all."""


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Within the block nobody else starts in this folder, which is made if it is not there.

    Raises:
        InputError: somebody does already, it is no folder, or it holds something else.
    """
    _require_ours(path)  # before a lock is left there
    with locked_folder(path):
        yield


def _require_ours(path: Path) -> None:
    ours = {LAYOUT_FILE, LOCK_FILE}
    if _read(path / START_FILE) is None and path.exists() and not ours.issuperset(each.name for each in path.iterdir()):
        raise InputError(f"out: {path} holds something else; choose another folder")


@dataclass(slots=True, kw_only=True)
class StartFolder:
    """A folder, opened for one set of exports and flags.

    Attributes:
        path: of the folder.
        asked: what the run is made of, by name: flags, and hashes of files.
        done: by stage, its ``seconds`` and its ``result``.
    """

    path: Path
    asked: Mapping[str, Any]
    done: dict[str, dict[str, Any]] = field(default_factory=dict)

    @staticmethod
    def opened(
        path: Path, asked: Mapping[str, Any], *, again: bool, edited: Mapping[str, Any] | None = None
    ) -> StartFolder:
        """The folder, new or with what an earlier run of the same has done.

        Args:
            path: of the folder.
            asked: what this run is made of.
            again: whether stages that were done with something else are done anew.
            edited: the layout in the folder, where it says something else than ``asked`` does.

        Raises:
            InputError: it holds a run of other exports or flags, and names what differs; or something else altogether.
        """
        asked = json.loads(json.dumps(asked))
        before = _read(path / START_FILE)
        if edited is not None and (before is None or before["asked"]["layout"] != edited):
            raise InputError(f"layout: {path / LAYOUT_FILE} was edited; give it back with --layout, or remove it")
        if before is None:
            _require_ours(path)
            path.mkdir(parents=True, exist_ok=True)
            return StartFolder(path=path, asked=asked)._written()
        folder = StartFolder(path=path, asked=asked, done=before["done"])
        differing = _differing(before["asked"], asked)
        if not differing:
            return folder
        name = min(differing, key=lambda name: _place(_FIRST.get(name, "data")))
        first = _place(_FIRST.get(name, "data"))
        begun = [stage for stage in folder.done if _place(stage) >= first] or any(
            (path / made).exists() for _, names in _STAGES[first:] for made in names
        )
        if begun and not again:
            told = _told(name, before["asked"].get(name), asked.get(name))
            raise InputError(f"{told}; --again does anew in {path} what follows from it, another --out keeps both")
        folder._forget(first)
        return folder._written()

    def _forget(self, first: int) -> None:
        """Remove what the stages from the place ``first`` on have made."""
        for name in [stage for stage in self.done if _place(stage) >= first]:
            del self.done[name]
        for made in (self.path / name for _, names in _STAGES[first:] for name in names):
            if made.is_dir():
                shutil.rmtree(made)
            else:
                made.unlink(missing_ok=True)

    def keep(self, stage: str, result: Mapping[str, Any], seconds: float) -> None:
        """Note that a stage is done."""
        self.done[stage] = {"seconds": round(seconds, 1), "result": dict(result)}
        self._written()

    def _written(self) -> StartFolder:
        write_json(self.path / START_FILE, {"format": _FORMAT, "asked": self.asked, "done": self.done})
        return self


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise InputError(f"out: {path.parent} is a file, not a folder") from None
    except ValueError:
        raise InputError(f"{path}: is damaged; choose another --out") from None
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise InputError(f"{path}: was not written by igd start; choose another --out")
    return content


def _place(stage: str) -> int:
    """Of a stage in `_STAGES`."""
    name = "scorer" if stage.startswith("scorer ") else stage
    return [each for each, _ in _STAGES].index(name)


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names of what is not as it was."""
    names = [*now, *(name for name in before if name not in now)]
    return [name for name in names if before.get(name) != now.get(name)]


def _told(name: str, old: object, new: object) -> str:
    """What is not as it was, in words."""
    if isinstance(old, dict) and isinstance(new, dict) and "sha256" in old and old.get("file") == new.get("file"):
        return f"{name}: {new['file']} has changed since this run began"
    while isinstance(old, dict) and isinstance(new, dict) and "sha256" not in old:  # a layout: what differs first
        part = _differing(old, new)[0]
        name, old, new = f"{name}.{part}", old.get(part), new.get(part)
    return f"{name}: was {_short(old)} when this run began, now {_short(new)}"


def _short(value: object) -> str:
    if isinstance(value, dict) and "file" in value:
        return repr(value["file"])
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else text[:200] + "..."
