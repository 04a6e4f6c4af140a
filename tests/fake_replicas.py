"""`igd serve` whose replicas have a fake engine; run as a program, in a process of its own.

``program.py serve ...`` is the supervisor, with the flags of `igd serve`; it starts ``program.py replica``. A replica
whose number is in the file that ``ENDS_AT_ONCE`` names ends before it serves. ``DELAY_S``: seconds of a model call.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from igd_server.process import Seat
    from igd_server.settings import Settings


class _WithoutPandas:
    """pyarrow imports pandas where there is one, for a second at each start; servers are installed without it."""

    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name)


def _replica() -> int:
    sys.meta_path.insert(0, _WithoutPandas)
    import igd_server.process
    from igd_server.app import Apps, Sources, create_apps
    from igd_server.catalogues.opening import OpenedModel
    from igd_server.replicas import __main__ as replica

    from igd_core.engines.fake import FakeEngine
    from igd_core.errors import EngineError

    def create(settings: Settings) -> Apps:
        engine = FakeEngine(delay_s=float(os.environ.get("DELAY_S", "0")))
        model = OpenedModel(engine=engine, token_texts=lambda _, ids: list(map(str, ids)))
        return create_apps(settings, Sources(open_model=lambda _: model))

    served = igd_server.process.serve

    def serve(settings: Settings, seat: Seat) -> None:
        told = os.environ.get("ENDS_AT_ONCE")
        if told and str(seat.number) in Path(told).read_text().split():
            raise EngineError("told to end")
        served(settings, seat)

    igd_server.process.create_apps = create  # type: ignore[assignment,attr-defined]
    igd_server.process.serve = serve  # type: ignore[assignment]
    return replica.main()


def main() -> int:
    """Serve."""
    if sys.argv[1] == "replica":
        return _replica()
    from igd_server.replicas import supervisor

    from igd_core.cli import main as cli

    program = (sys.executable, __file__, "replica")
    supervisor.supervise = functools.partial(supervisor.supervise, program=program)
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
