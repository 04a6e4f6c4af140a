"""What models computed and is no answer: counted, and told once each."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from igd_core.errors import ModelFault
    from igd_server.observe.metrics import Metrics

_log = logging.getLogger("igd.server")


class ModelFaults:
    """Faults of this process's model and its adapters."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._told: set[tuple[str, str | None]] = set()

    def note(self, fault: ModelFault, *, model: str, adapter: str | None) -> None:
        """Count a fault; the first of a model, and of each adapter, is logged."""
        self._metrics.observe_model_fault(model=model, adapter=adapter or "")
        if (model, adapter) in self._told:
            return
        self._told.add((model, adapter))
        fields = {"model": model, "adapter": adapter, "detail": str(fault)}
        _log.error("model_fault", extra={"fields": fields})
