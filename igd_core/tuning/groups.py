"""Lists of the model that is being tuned, by the engine that serves: constrained beam search over its present weights.

A list costs about as many passes as in serving, far more than weights cost to copy and lay out for the engine: on
Toys and Games (2 million parameters, lists of 16, one thread of two shared cores) 15 s for 64 rows and 0.25 s. So every
optimiser step has lists of its own weights, and no ratio of old and new probabilities is ever but 1.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import numpy as np

from igd_core.engines.embedded.checkpoint import copied_checkpoint
from igd_core.engines.embedded.engine import TreeEngine
from igd_core.search.beam import BeamSearch, require_whole
from igd_core.search.session import Scoring

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from igd_core.artifact import Artifact
    from igd_core.search.beam import Hypothesis
    from igd_core.tuning.backbone import Backbone

_TOGETHER = 16
"""Rows decoded at once; their rounds share passes. One at a time, those 64 rows took 23 s."""


class ListSampler:
    """Ranks leaves by ``p(item | history)`` over the catalogue, for a model scored over children."""

    def __init__(self, backbone: Backbone, artifact: Artifact, *, temperature: float) -> None:
        """``backbone``: its weights at the time of each call are the ones that count."""
        self._backbone = backbone
        self._artifact = artifact
        self._temperature = temperature

    def lists(self, prompts: Sequence[Sequence[int]], beams: int) -> NDArray[np.int64]:
        """``(len(prompts), beams)`` int64 leaves, best first.

        Args:
            prompts: token ids; each leaves room for the longest path.
            beams: width of the search, at most as many as there are leaves.

        Raises:
            ModelFault: scores are not finite.
            EngineError: the model failed.
        """
        checkpoint = copied_checkpoint(self._backbone.plain, self._backbone.tokenizer, name=self._backbone.name)
        return asyncio.run(self._decoded(TreeEngine(checkpoint), prompts, beams))

    async def _decoded(self, engine: TreeEngine, prompts: Sequence[Sequence[int]], beams: int) -> NDArray[np.int64]:
        found = np.empty((len(prompts), beams), dtype=np.int64)

        async def work(waiting: Iterator[int]) -> None:
            for row in waiting:
                hypotheses = await self._search(engine, prompts[row], beams)
                require_whole(hypotheses, wanted=beams)
                found[row] = [each.leaf for each in hypotheses]

        try:
            await engine.load(self._artifact)
            waiting = iter(range(len(prompts)))
            async with asyncio.TaskGroup() as tasks:
                for _ in range(_TOGETHER):
                    tasks.create_task(work(waiting))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            await engine.close()
        return found

    async def _search(self, engine: TreeEngine, prompt: Sequence[int], beams: int) -> list[Hypothesis]:
        scoring = Scoring(alpha=0.0, temperature=self._temperature, keep=2 * beams, normalise="children")
        session = await engine.open(self._artifact.version, prompt, scoring)
        try:
            return await BeamSearch(self._artifact.trie, beams=beams, normalise="children").run(session)
        finally:
            await session.close()
