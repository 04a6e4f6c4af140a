"""vLLM's scheduler, extended so that the requests of one round run in one engine step.

Requests reach vLLM's engine one by one. An idle engine would start its step with the first, and the rest of the round
would wait for a second step: 7 steps instead of 4 for a recommendation alone.

It is the only part of ours that vLLM's engine process creates at its start, so it also ends that process with ours.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

from vllm.v1.core.sched.scheduler import Scheduler

from igd_core.engines.vllm.question import RoundTicket

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vllm.v1.request import Request, RequestStatus


_LOOK_AT_PARENT_S = 1.0
_TIME_TO_END_S = 10.0


def _end_with_parent(parent: int) -> None:
    """End this process when its parent is gone, killed perhaps; vLLM would keep running and hold the GPU's memory."""
    while os.getppid() == parent:
        time.sleep(_LOOK_AT_PARENT_S)
    os.kill(os.getpid(), signal.SIGTERM)  # vLLM then ends its workers
    time.sleep(_TIME_TO_END_S)
    os.kill(os.getpid(), signal.SIGKILL)


class RoundScheduler(Scheduler):  # type: ignore[misc]  # mypy does not follow vllm
    """Holds the requests of a round until all have arrived; to abort one, abort all of them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - vLLM's, handed on as they are
        super().__init__(*args, **kwargs)
        self._held: dict[str, list[Request]] = {}
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), name="igd-parent", daemon=True).start()

    def add_request(self, request: Request) -> None:
        """Queue a request, or hold it until its round is complete."""
        params = request.sampling_params  # None for a pooling request
        ticket = None if params is None else RoundTicket.from_extra_args(params.extra_args)
        if ticket is None:
            super().add_request(request)
            return
        arrived = self._held.setdefault(ticket.round_id, [])
        arrived.append(request)
        if len(arrived) == ticket.size:
            for each in self._held.pop(ticket.round_id):
                super().add_request(each)

    def finish_requests(self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus) -> list[Request]:
        """Drop held requests as well as queued ones; None means all."""
        ids = None if request_ids is None else {request_ids} if isinstance(request_ids, str) else set(request_ids)
        for round_id, arrived in list(self._held.items()):
            if ids is None or any(each.request_id in ids for each in arrived):
                del self._held[round_id]
        finished: list[Request] = super().finish_requests(ids, finished_status)
        return finished
