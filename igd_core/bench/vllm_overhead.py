"""The time that our logits processor adds to a step of vLLM, from vLLM's own times of its steps."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import numpy as np

from igd_core.bench.random_nodes import random_nodes
from igd_core.engines.vllm.question import NO_NODE, Ask, NodeQuestion, Round
from igd_core.engines.vllm.session import round_params

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
    """Median milliseconds of a step of 64 rows, of one of ``artifacts`` after the other, with and without questions.

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
            artifact = artifacts[repeat % len(artifacts)]
            nodes = random_nodes(artifact.trie, ROWS, rng).tolist()
            asked = await _step_ms(engine, prompt, _round(artifact, nodes), f"with-{tokens}-{repeat}")
            nothing = _round(artifact, [NO_NODE] * ROWS)
            plain = await _step_ms(engine, prompt, nothing, f"without-{tokens}-{repeat}")
            if repeat >= 2:  # the first two fill the cache
                with_ms.append(asked)
                without_ms.append(plain)
        ratios = [a / b - 1.0 for a, b in zip(with_ms, without_ms, strict=True)]
        result[f"with_ms_{tokens}_tokens"] = round(statistics.median(with_ms), 1)
        result[f"without_ms_{tokens}_tokens"] = round(statistics.median(without_ms), 1)
        result[f"overhead_{tokens}_tokens"] = round(statistics.median(ratios), 4)
    return result


def _round(artifact: Artifact, nodes: Sequence[int]) -> Round:
    common: dict[str, Any] = {"version": artifact.version, "alpha": 0.2, "temperature": 1.0, "keep": _KEEP}
    return Round(asks=[Ask(path=[], question=NodeQuestion(node=node, **common)) for node in nodes])


async def _step_ms(engine: VLLMEngine, prompt: list[int], asked: Round, name: str) -> float:
    from vllm.inputs import tokens_input

    async for output in engine.llm.generate(tokens_input(prompt), round_params(asked), name):
        times = output.metrics
    return 1e3 * float(times.last_token_ts - times.scheduled_ts)
