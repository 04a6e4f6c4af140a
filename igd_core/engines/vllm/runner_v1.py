"""What vLLM's V1 runner computes for our rows: the children and forced tokens that are asked for, and no more.

For a row with log-probabilities V1 takes the log-softmax of the whole vocabulary, the best of it, and a rank; for those
of a prompt, all of that at every row of the prompt, one request after the other. With a model of one layer these took
most of the worker's time. So, in steps that hold nothing but our rows, the answer comes from the score kernel itself;
and forced tokens' log-probabilities come from one pass over just the rows before them.

Both are hooks at private parts of the runner; vLLM has no public ones (V2 scores a prompt as vLLM itself does).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from vllm.v1.outputs import LogprobsTensors, SamplerOutput

from igd_core.engines.vllm.question import EXTRA_ARG, NOT_COMPUTED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from vllm.v1.sample.metadata import SamplingMetadata

    from igd_core.engines.vllm.processors import TrieProcessorV1

# Logits of one pass over forced tokens' rows: 16 MiB, and 512 MiB on a GPU.
_BLOCK_LOGITS_CPU = 1 << 22
_BLOCK_LOGITS_CUDA = 1 << 27


def install(runner: Any, processor: TrieProcessorV1) -> None:  # noqa: ANN401 - vLLM's runner
    """Hook both into a runner, once."""
    sample, prompts = runner.sampler.forward, runner._get_prompt_logprobs_dict
    forced = ForcedTokens(runner)

    def answered(logits: torch.Tensor, sampling_metadata: SamplingMetadata, **more: bool | str | None) -> SamplerOutput:
        answers = processor.answers(logits)
        if answers is None:
            return sample(logits, sampling_metadata, **more)
        sampled = torch.zeros((len(logits), 1), dtype=torch.int32, device=logits.device)
        ranks = torch.zeros(len(logits), dtype=torch.int32, device=logits.device)
        return SamplerOutput(sampled, LogprobsTensors(answers.tokens, answers.logprobs, ranks))

    def with_forced(hidden: torch.Tensor, scheduled: Mapping[str, int]) -> dict[str, LogprobsTensors | None]:
        return {**prompts(hidden, scheduled), **forced.of_step(hidden, scheduled)}

    runner.sampler.forward = answered
    runner._get_prompt_logprobs_dict = with_forced


class ForcedTokens:
    """Log-probabilities of the last tokens of our rows' prompts, at temperature 1 and over the vocabulary."""

    def __init__(self, runner: Any) -> None:  # noqa: ANN401 - vLLM's runner
        self._runner = runner
        self._begun: dict[str, NDArray[np.float32]] = {}

    def of_step(self, hidden: torch.Tensor, scheduled: Mapping[str, int]) -> dict[str, LogprobsTensors]:
        """What a step computed of them, for each request whose prompt ends in it.

        Args:
            hidden: ``(tokens, width)``; the last hidden states of the step's tokens.
            scheduled: how many of them each request has.
        """
        runner = self._runner
        rows: list[int] = []
        tokens: list[int] = []
        parts: list[NDArray[np.float32]] = []
        ended: list[str] = []
        for request_id, count in scheduled.items():
            request = runner.requests[request_id]
            question = (request.sampling_params.extra_args or {}).get(EXTRA_ARG) if request.sampling_params else None
            if question is None or not question.forced:
                continue
            begin, length = request.num_computed_tokens, len(request.prompt_token_ids)
            offset = int(runner.query_start_loc.np[runner.input_batch.req_id_to_index[request_id]]) - begin
            found = self._begun.setdefault(request_id, np.full(question.forced, NOT_COMPUTED, dtype=np.float32))
            before = length - question.forced - 1  # the row that predicts the first of them
            first, end = max(begin, before), min(begin + count, length - 1)
            if first < end:
                rows += range(offset + first, offset + end)
                tokens += request.prompt_token_ids[first + 1 : end + 1]
                parts.append(found[first - before : end - before])
            if begin + count >= length:
                ended.append(request_id)
        if rows:
            logprobs, at = self._logprobs(hidden, rows, tokens), 0
            for part in parts:
                part[:] = logprobs[at : at + len(part)]
                at += len(part)
        for request_id in [each for each in self._begun if each not in runner.requests]:
            del self._begun[request_id]  # given up halfway
        return {request_id: self._tensors(request_id) for request_id in ended}

    def _tensors(self, request_id: str) -> LogprobsTensors:
        found = self._begun.pop(request_id)
        tokens = self._runner.requests[request_id].prompt_token_ids[-len(found) :]
        column = torch.tensor(tokens, dtype=torch.int32)[:, None]
        return LogprobsTensors(column, torch.from_numpy(found)[:, None], torch.zeros(len(found), dtype=torch.int32))

    def _logprobs(self, hidden: torch.Tensor, rows: list[int], tokens: list[int]) -> NDArray[np.float32]:
        """Log-probability of each token after the row before it, ``(n,)`` float32."""
        vocab = self._runner.model_config.get_vocab_size()
        size = max(1, (_BLOCK_LOGITS_CUDA if hidden.is_cuda else _BLOCK_LOGITS_CPU) // vocab)
        of_rows = torch.tensor(rows, device=hidden.device).split(size)
        of_tokens = torch.tensor(tokens, device=hidden.device).split(size)
        found = []
        for row, token in zip(of_rows, of_tokens, strict=True):
            logits = self._runner.model.compute_logits(hidden[row]).float()
            found.append(logits.gather(1, token[:, None])[:, 0] - logits.logsumexp(dim=1))
        return np.asarray(torch.cat(found).cpu().numpy())
