"""`igd serve` with a fake engine, and with versions that end it: ``DEADLY`` says how, as ``{"VERSION": "MANNER"}``.

Run as a program, in a process of its own.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from typing import TYPE_CHECKING

from igd_core.artifact import load_artifact
from igd_core.engines.fake import FakeEngine
from igd_core.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from igd_server.settings import Settings

    from igd_core.artifact import Artifact
    from igd_core.engines.fake import FakeSession
    from igd_core.search.session import Scoring

_PIECE = 32 << 20
_WITHOUT_LIMIT = 4


def read(directory: Path) -> Artifact:
    """Read a version, or end."""
    manner = _manner(directory.name)
    if manner == "memory":  # until the kernel kills; where no limit could be set, we do it for it
        taken: list[bytes] = []
        while os.environ["LIMITED"] or len(taken) < _WITHOUT_LIMIT:
            taken.append(b"1" * _PIECE)
        os.kill(os.getpid(), signal.SIGKILL)
    if manner == "segfault":
        ctypes.string_at(0)
    return load_artifact(directory)


class DeadlyEngine(FakeEngine):
    """Ends, or fails, in the first answer after the warm-up."""

    def __init__(self) -> None:
        super().__init__()
        self._warm: set[str] = set()

    async def open(self, version: str, prompt_ids: Sequence[int], scoring: Scoring) -> FakeSession:
        if version in self._warm and _manner(version) == "answer":
            os.kill(os.getpid(), signal.SIGKILL)
        if version in self._warm and _manner(version) == "faults":
            raise EngineError("told to fail")
        self._warm.add(version)
        return await super().open(version, prompt_ids, scoring)


def _manner(version: str) -> str:
    return str(json.loads(os.environ["DEADLY"]).get(version, ""))


class _WithoutPandas:
    """pyarrow imports pandas where there is one, for a second at each start; servers are installed without it."""

    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name)


def main() -> int:
    """Serve."""
    sys.meta_path.insert(0, _WithoutPandas)
    import igd_server.process
    from igd_server.app import Apps, Sources, create_apps
    from igd_server.catalogues.opening import OpenedModel

    from igd_core.cli import main as cli

    def create(settings: Settings) -> Apps:
        model = OpenedModel(engine=DeadlyEngine(), token_texts=lambda _, ids: list(map(str, ids)))
        return create_apps(settings, Sources(open_model=lambda _: model, read_artifact=read))

    igd_server.process.create_apps = create  # type: ignore[assignment,attr-defined]
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
