"""Lists of the model that is being tuned, by the engine that serves: constrained beam search over its present weights.

To copy the weights, lay them out for the engine and prove its forward on them took 0.25 s where lists of 16 for 64 rows
took 6 to 15 s (a model of 2 million parameters, 11,695 titles, one thread of two busy cores). So every optimiser step
has lists of its own weights, and the ratio of new and old probabilities is always 1.
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
"""Rows decoded at once; their rounds share passes. One at a time, those 64 rows took half as long again."""
_CACHE_BYTES = 16 << 20
"""For the prompts of one step, most of which share the instruction alone."""


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
        return asyncio.run(self._decoded(TreeEngine(checkpoint, cache_bytes=_CACHE_BYTES), prompts, beams))

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
