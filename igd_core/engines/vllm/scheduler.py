"""vLLM's scheduler, told which requests belong to one round, so that a round is one engine step.

Requests reach vLLM's engine one by one. An idle engine starts its step with the first, and the rest of the round waits
for a second step: 7 steps instead of 4 for a recommendation alone.

It is also the one part of ours that vLLM's engine process makes at its start, so it sees to that process's end.
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
    """End this process when the one that started it is gone, killed perhaps; vLLM would keep it, and a GPU's memory."""
    while os.getppid() == parent:
        time.sleep(_LOOK_AT_PARENT_S)
    os.kill(os.getpid(), signal.SIGTERM)  # vLLM ends its workers then
    time.sleep(_TIME_TO_END_S)
    os.kill(os.getpid(), signal.SIGKILL)


class RoundScheduler(Scheduler):  # type: ignore[misc]  # mypy does not follow vllm
    """Holds the requests of a round back until all have arrived; whoever aborts one must abort them all."""

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
        """Forget held requests as well as queued ones; None means all."""
        ids = None if request_ids is None else {request_ids} if isinstance(request_ids, str) else set(request_ids)
        for round_id, arrived in list(self._held.items()):
            if ids is None or any(each.request_id in ids for each in arrived):
                del self._held[round_id]
        finished: list[Request] = super().finish_requests(ids, finished_status)
        return finished
