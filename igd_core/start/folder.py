"""The folder of a start: which stages are done, and what they were done with. ``start.json`` in it says so."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from igd_core.errors import InputError
from igd_core.whole_files import write_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

START_FILE = "start.json"
LAYOUT_FILE = "layout.toml"
REPORT_FILE = "report.html"
_FORMAT = "igd-start"
_MADE = (
    "data", "whole", "tokenizer", "scorers", "speed", "speed-choose", "speed-judge", "run", "model", "chosen", "shop",
    "judged", "serve.log", REPORT_FILE, "gain.png",
)  # fmt: skip
"""What a start writes beside its two small files."""


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
            again: whether a run of something else is thrown away.
            edited: the layout in the folder, where it says something else than ``asked`` does.

        Raises:
            InputError: it holds a run of other exports or flags, and names what differs; or something else altogether.
        """
        asked = json.loads(json.dumps(asked))
        before = _read(path / START_FILE)
        if edited is not None and (before is None or before["asked"]["layout"] != edited):
            raise InputError(f"layout: {path / LAYOUT_FILE} was edited; give it back with --layout, or remove it")
        if before is None:
            if path.exists() and (not path.is_dir() or any(each.name != LAYOUT_FILE for each in path.iterdir())):
                raise InputError(f"out: {path} holds something else; choose another folder")
            path.mkdir(parents=True, exist_ok=True)
            return StartFolder(path=path, asked=asked)._written()
        differs = _difference(before["asked"], asked)
        if differs is None:
            return StartFolder(path=path, asked=asked, done=before["done"])
        if before["done"] and not again:
            raise InputError(f"{differs}; --again begins anew in {path}, another --out keeps both")
        for name in _MADE:
            made = path / name
            if made.is_dir():
                shutil.rmtree(made)
            else:
                made.unlink(missing_ok=True)
        return StartFolder(path=path, asked=asked)._written()

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


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first thing that is not as it was, in words."""
    for name in [*now, *(name for name in before if name not in now)]:
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict) and "sha256" in old and old.get("file") == new.get("file"):
            return f"{name}: {new['file']} has changed since this run began"
        return f"{name}: was {_short(old)} when this run began, now {_short(new)}"
    return None


def _short(value: object) -> str:
    if isinstance(value, dict) and "file" in value:
        return repr(value["file"])
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else text[:200] + "..."
