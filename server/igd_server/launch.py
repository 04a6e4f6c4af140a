"""Serve as the settings say: in this process, or with several that this one watches."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from igd_server.settings import Settings


def launch(settings: Settings) -> int:
    """Serve until told to stop; returns the exit code.

    Raises:
        IGDError: as `igd_server.process.serve` and `igd_server.replicas.supervisor.supervise`.
    """
    if settings.replicas > 1:  # without what a model needs: a supervisor stays small
        from igd_server.replicas.supervisor import supervise

        return supervise(settings)
    from igd_server.process import serve

    serve(settings)
    return 0
