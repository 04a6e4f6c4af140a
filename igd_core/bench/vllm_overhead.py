"""The time that our logits processor adds to a step of vLLM, from vLLM's own times of its steps."""

from __future__ import annotations

import asyncio
import statistics
from typing import TYPE_CHECKING

import numpy as np

from igd_core.bench.random_nodes import random_nodes
from igd_core.engines.vllm.question import NodeQuestion, RoundTicket

if TYPE_CHECKING:
    from collections.abc import Sequence

    from igd_core.artifact import Artifact
    from igd_core.engines.vllm.engine import VLLMEngine

ROWS = 64
# A row of a recommendation computes the last, partly filled block: one token at least, 17 on average.
TOKENS_A_ROW = (1, 17)
_BLOCKS = 4
_REPEATS = 15
_KEEP = 20


async def measure_overhead(engine: VLLMEngine, artifacts: Sequence[Artifact]) -> dict[str, object]:
    """Median milliseconds of a step of 64 requests, their rows spread over ``artifacts``, with and without questions.

    Both kinds ask for as many log-probabilities of one token, from prompts that the cache holds up to the last block;
    the one without has the same processor in the engine, with nothing to do.
    """
    block = int(engine.llm.vllm_config.cache_config.block_size)
    result: dict[str, object] = {"measured": "processor", "rows": ROWS, "catalogues": len(artifacts)}
    rng = np.random.default_rng(0)
    for tokens in TOKENS_A_ROW:
        prompt = [5] * (_BLOCKS * block + tokens)
        with_ms: list[float] = []
        without_ms: list[float] = []
        for repeat in range(_REPEATS + 2):
            questions = _questions(artifacts, rng)
            asked = await _step_ms(engine, prompt, questions, f"with-{tokens}-{repeat}")
            plain = await _step_ms(engine, prompt, [None] * ROWS, f"without-{tokens}-{repeat}")
            if repeat >= 2:  # the first two fill the cache
                with_ms.append(asked)
                without_ms.append(plain)
        ratios = [a / b - 1.0 for a, b in zip(with_ms, without_ms, strict=True)]
        result[f"with_ms_{tokens}_tokens"] = round(statistics.median(with_ms), 1)
        result[f"without_ms_{tokens}_tokens"] = round(statistics.median(without_ms), 1)
        result[f"overhead_{tokens}_tokens"] = round(statistics.median(ratios), 4)
    return result


def _questions(artifacts: Sequence[Artifact], rng: np.random.Generator) -> list[NodeQuestion | None]:
    """Questions at random depths of random paths."""
    questions: list[NodeQuestion | None] = []
    for row in range(ROWS):
        artifact = artifacts[row % len(artifacts)]
        node = int(random_nodes(artifact.trie, 1, rng)[0])
        questions.append(NodeQuestion(version=artifact.version, node=node, alpha=0.2, temperature=1.0, keep=_KEEP))
    return questions


async def _step_ms(engine: VLLMEngine, prompt: list[int], questions: Sequence[NodeQuestion | None], name: str) -> float:
    from vllm import SamplingParams
    from vllm.inputs import tokens_input
    from vllm.sampling_params import RequestOutputKind

    ticket = RoundTicket(round_id=name, size=len(questions)).to_extra_args()

    async def ask(number: int, question: NodeQuestion | None) -> tuple[float, float]:
        params = SamplingParams(
            temperature=0.0,
            max_tokens=1,
            ignore_eos=True,
            detokenize=False,
            logprobs=_KEEP + 1,
            flat_logprobs=True,
            extra_args=ticket if question is None else ticket | question.to_extra_args(),
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        async for output in engine.llm.generate(tokens_input(prompt), params, f"{name}-{number}"):
            times = output.metrics
        return times.scheduled_ts, times.last_token_ts

    times = await asyncio.gather(*(ask(number, question) for number, question in enumerate(questions)))
    return 1e3 * (max(end for _, end in times) - min(begin for begin, _ in times))
