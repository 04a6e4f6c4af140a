"""vLLM's scheduler, extended by rounds: one message asks about all nodes of a round, and one message answers.

A request to vLLM costs its sender and the engine process milliseconds apart from the model: parameters that are checked
and copied, a message, log-probabilities as Python lists, statistics. A recommendation asks about 7 to 58 nodes in 3 to
8 rounds. So a round is one request, of which this scheduler makes a row of the batch for each node. Since the rows are
queued together, a round is also one engine step where there is room.

It is the only part of ours that vLLM's engine process creates at its start, so it also ends that process with ours.
"""

from __future__ import annotations

import copy
import os
import signal
import threading
import time
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreEventType, EngineCoreOutput, FinishReason
from vllm.v1.metrics.stats import PrefillStats
from vllm.v1.request import Request, RequestStatus

from igd_core.engines.vllm.question import EXTRA_ARG, NOT_COMPUTED, NodeAnswer, Round, RoundAnswers

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.engine import EngineCoreEvent, EngineCoreOutputs
    from vllm.v1.outputs import ModelRunnerOutput

    from igd_core.engines.vllm.question import Ask


_LOOK_AT_PARENT_S = 1.0
_TIME_TO_END_S = 10.0


def _end_with_parent(parent: int) -> None:
    """End this process when its parent is gone, killed perhaps; vLLM would keep running and hold the GPU's memory."""
    while os.getppid() == parent:
        time.sleep(_LOOK_AT_PARENT_S)
    os.kill(os.getpid(), signal.SIGTERM)  # vLLM then ends its workers
    time.sleep(_TIME_TO_END_S)
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(slots=True, kw_only=True)
class _Running:
    """A round, the rows made of it, and what has come back."""

    request: Request
    asks: dict[str, Ask]
    answers: dict[str, NodeAnswer] = field(default_factory=dict)
    prefill: PrefillStats = field(default_factory=PrefillStats)
    events: list[EngineCoreEvent] = field(default_factory=list)


class RoundScheduler(Scheduler):  # type: ignore[misc]  # mypy does not follow vllm
    """Runs each row of a round as a request of its own, and answers the round when all have ended."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - vLLM's, handed on as they are
        super().__init__(*args, **kwargs)
        self._scores_prompts = bool(self.vllm_config.use_v2_model_runner)  # of V1, `runner_v1` scores what we need
        self._rounds: dict[str, _Running] = {}
        self._round_of_row: dict[str, str] = {}
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), name="igd-parent", daemon=True).start()

    def add_request(self, request: Request) -> None:
        """Queue a request, or all rows of a round."""
        params = request.sampling_params  # None for a pooling request
        asked = None if params is None else Round.from_extra_args(params.extra_args)  # checked at admission
        if asked is None:
            super().add_request(request)
            return
        asks = {f"{request.request_id}/{row}": ask for row, ask in enumerate(asked.asks)}
        self._rounds[request.request_id] = _Running(request=request, asks=asks)
        for row_id, ask in asks.items():
            self._round_of_row[row_id] = request.request_id
            super().add_request(_row(request, row_id, ask, scores_prompts=self._scores_prompts))

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """What a step has brought: the rounds that it completed in place of their rows."""
        found: dict[int, EngineCoreOutputs] = super().update_from_output(scheduler_output, model_runner_output)
        if self._rounds:
            for each in found.values():
                each.outputs = [whole for output in each.outputs if (whole := self._whole(output)) is not None]
        return found

    def finish_requests(self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus) -> list[Request]:
        """End requests, and of a round all rows; None means all. Of a round, the request it came as is returned."""
        ids = None if request_ids is None else {request_ids} if isinstance(request_ids, str) else set(request_ids)
        ended = [
            self._rounds[name]
            for name in (list(self._rounds) if ids is None else {self._round_of_row.get(each, each) for each in ids})
            if name in self._rounds
        ]
        rows = {row_id for each in ended for row_id in each.asks}
        if ids is not None:
            ids |= rows
        finished = super().finish_requests(ids, finished_status)
        for each in ended:
            each.request.status = finished_status
            self._forget(each)
        return [each.request for each in ended] + [each for each in finished if each.request_id not in rows]

    def _forget(self, running: _Running) -> None:
        del self._rounds[running.request.request_id]
        for row_id in running.asks:
            del self._round_of_row[row_id]

    def _whole(self, output: EngineCoreOutput) -> EngineCoreOutput | None:
        """An output as its reader knows it: a row's is its round's, once that is complete."""
        running = self._rounds.get(self._round_of_row.get(output.request_id, ""))
        if running is None:
            return output
        row_id, stats = output.request_id, output.prefill_stats or PrefillStats()
        for each in fields(PrefillStats):
            setattr(running.prefill, each.name, getattr(running.prefill, each.name) + getattr(stats, each.name))
        running.events += output.events or []
        if output.finish_reason != FinishReason.LENGTH:  # an error of vLLM's own, which fails the round
            self._forget(running)
            super().finish_requests(set(running.asks), RequestStatus.FINISHED_ERROR)
            return EngineCoreOutput(running.request.request_id, [], finish_reason=output.finish_reason)
        running.answers[row_id] = _answer(running, row_id, output, stats.num_cached_tokens)
        if len(running.answers) < len(running.asks):
            return None
        self._forget(running)
        answers = RoundAnswers(answers=[running.answers[each] for each in running.asks])
        return EngineCoreOutput(
            running.request.request_id,
            output.new_token_ids,
            finish_reason=output.finish_reason,
            events=_events(running.events),
            prefill_stats=running.prefill,
            kv_transfer_params=answers.to_params(),
        )


def _row(request: Request, row_id: str, ask: Ask, *, scores_prompts: bool) -> Request:
    """One row of a round as a request: the round's prompt and the node's path, of which one token is generated."""
    params = copy.copy(request.sampling_params)
    params.extra_args = {EXTRA_ARG: ask.question}
    params.logprobs = ask.question.keep + 1
    params.prompt_logprobs = 0 if ask.question.forced and scores_prompts else None
    hash_blocks = request._block_hasher  # private: vLLM has no other way to it

    def hashes(row: Request) -> list[Any]:
        if not row.block_hashes:
            row.block_hashes.extend(request.block_hashes)  # of the prompt, hashed once a round
        return hash_blocks(row)  # type: ignore[no-any-return]

    return Request(
        row_id,
        prompt_token_ids=request.prompt_token_ids + ask.path,
        sampling_params=params,
        pooling_params=None,
        client_index=request.client_index,
        arrival_time=request.arrival_time,
        lora_request=request.lora_request,
        priority=request.priority,
        block_hasher=None if hash_blocks is None else hashes,
    )


def _answer(running: _Running, row_id: str, output: EngineCoreOutput, cached: int) -> NodeAnswer:
    """Log-probabilities of one row, without the columns that rows with more children have need of."""
    ask = running.asks[row_id]
    found = output.new_logprobs
    kept = slice(1, ask.question.keep + 2)  # the first column is the sampled token, which comes again
    return NodeAnswer(
        cached=cached,
        tokens=found.logprob_token_ids[0, kept],
        logprobs=found.logprobs[0, kept],
        forced=_forced(output, ask, len(running.request.prompt_token_ids) + len(ask.path) - cached),
    )


def _forced(output: EngineCoreOutput, ask: Ask, computed: int) -> NDArray[np.float32]:
    """Log-probabilities of the last tokens of the path, where their rows are among the last ``computed`` ones.

    Counted from the end: for rows from the cache, runner V2 returns nothing and V1 whatever was in memory. Either
    happens also to a request that was preempted and found more in the cache when it resumed: the token id tells.
    """
    found = np.full(ask.question.forced, NOT_COMPUTED, dtype=np.float32)
    known = output.new_prompt_logprobs_tensors
    if len(found) and known is not None:
        count = min(len(found), computed - 1, len(known.logprobs))
        if count > 0:
            right = known.logprob_token_ids[-count:, 0].numpy() == ask.path[-count:]
            found[-count:] = np.where(right, known.logprobs[-count:, 0].numpy(), NOT_COMPUTED)
    return found


def _events(events: list[EngineCoreEvent]) -> list[EngineCoreEvent]:
    """The events of a round: when its first row was queued and when scheduled, and every preemption."""
    found = [each for each in events if each.type == EngineCoreEventType.PREEMPTED]
    for kind in (EngineCoreEventType.SCHEDULED, EngineCoreEventType.QUEUED):
        of_kind = [each for each in events if each.type == kind]
        if of_kind:
            found.insert(0, min(of_kind, key=lambda each: each.timestamp))
    return found
