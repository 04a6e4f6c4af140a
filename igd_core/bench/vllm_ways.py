"""Three ways to search with vLLM: ours, ours with a request for each beam and token, and vLLM's own beam search."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from igd_core.engines.vllm.session import Prompt, VLLMSession
from igd_core.ids import LeafIndex
from igd_core.search.beam import BeamSearch
from igd_core.search.fairness import Turn
from igd_core.search.session import Scoring

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Sequence

    from vllm import RequestOutput, SamplingParams

    from igd_core.artifact import Artifact
    from igd_core.engines.vllm.engine import VLLMEngine
    from igd_core.engines.vllm.question import Ask, NodeAnswer
    from igd_core.ids import NodeId


@dataclass(slots=True, kw_only=True)
class Cost:
    """The cost of one recommendation.

    Attributes:
        seconds: from the first request to the answer.
        requests: in vLLM's scheduler, each a row of a batch. vLLM's own search sends them one by one, ours by rounds.
        rounds: how often the search waited for vLLM.
        generated_tokens: sampled, used or not.
        computed_tokens: prompt tokens that went through the model.
        distinct_tokens: tokens that a search without recomputation would have computed.
        longest_path: tokens of the longest answer, its end included.
        answers: that came back.
        not_items: how many of the answers are not items of the catalogue.
    """

    seconds: float = 0.0
    requests: int = 0
    rounds: int = 0
    generated_tokens: int = 0
    computed_tokens: int = 0
    distinct_tokens: int = 0
    longest_path: int = 0
    answers: int = 0
    not_items: int = 0


Way: TypeAlias = "Callable[[Sequence[int]], Coroutine[Any, Any, Cost]]"
"""Recommends for one prompt."""


@dataclass(slots=True)
class _Seen:
    """Counts the requests that pass."""

    cost: Cost
    prompt_tokens: int
    prefixes: set[tuple[int, ...]] = field(default_factory=set)

    def count(self, path: Sequence[int], *, generated: int, cached: int) -> None:
        """Count a request for the tokens of ``path`` after the prompt."""
        self.cost.requests += 1
        self.cost.generated_tokens += generated
        self.cost.computed_tokens += self.prompt_tokens + len(path) - cached
        path = tuple(path)
        self.prefixes.update(path[:end] for end in range(1, len(path) + 1))

    def finish(self, started: float) -> Cost:
        self.cost.seconds = time.perf_counter() - started
        self.cost.distinct_tokens = self.prompt_tokens + len(self.prefixes)
        return self.cost


class _CountedSession(VLLMSession):
    """Our session, counted."""

    seen: _Seen

    def _count(self, asks: Sequence[Ask], answers: Sequence[NodeAnswer], output: RequestOutput) -> None:
        super()._count(asks, answers, output)
        for ask, answer in zip(asks, answers, strict=True):
            self.seen.count(ask.path, generated=1, cached=answer.cached)


class _TokenwiseSession(_CountedSession):
    """Our session without jumps: one request for each node, forced or not."""

    def _chain(self, node: NodeId) -> list[NodeId]:
        return [node]


def our_way(
    engine: VLLMEngine,
    artifact: Artifact,
    *,
    beams: int,
    alpha: float,
    forced_weight: float = 1.0,
    tokenwise: bool = False,
) -> Way:
    """The search that `igd serve` runs; ``tokenwise`` disables its jump over forced tokens."""
    orders = iter(range(1, 1 << 62))
    kind = _TokenwiseSession if tokenwise else _CountedSession
    scoring = Scoring(alpha=alpha, keep=2 * beams, forced=forced_weight != 0)

    async def recommend(prompt_ids: Sequence[int]) -> Cost:
        started = time.perf_counter()
        # As `VLLMEngine.open` makes them; the engine's own count of sessions does not include these.
        prompt = Prompt(ids=list(prompt_ids), scoring=scoring, order=next(orders), turn=Turn())
        session = kind(engine, artifact, prompt)
        session.seen = _Seen(Cost(), len(prompt_ids))
        found = await BeamSearch(artifact.trie, beams=beams, forced_weight=forced_weight).run(session)
        cost = session.seen.finish(started)
        cost.rounds = session.stats.rounds
        cost.longest_path = max(len(hypothesis.steps) for hypothesis in found)
        cost.answers = len(found)
        return cost

    return recommend


def vllms_way(engine: VLLMEngine, artifact: Artifact, *, beams: int, max_tokens: dict[tuple[int, ...], int]) -> Way:
    """The beam search of vLLM itself, unconstrained, for as many tokens as ``max_tokens`` says of a prompt."""
    from vllm.entrypoints.generate.beam_search.online import BeamSearchOnlineMixin
    from vllm.inputs import tokens_input
    from vllm.sampling_params import BeamSearchParams

    trie = artifact.trie
    items = {tuple(trie.path(LeafIndex(leaf))) for leaf in range(trie.num_leaves)}
    numbers = iter(range(1 << 62))

    class Search(BeamSearchOnlineMixin):  # type: ignore[misc]  # mypy does not follow vllm
        def __init__(self, seen: _Seen) -> None:
            self.renderer = _Renderer(artifact.manifest.eos_id)
            self.engine_client = _CountedClient(engine.llm, seen)

    async def recommend(prompt_ids: Sequence[int]) -> Cost:
        started = time.perf_counter()
        seen = _Seen(Cost(), len(prompt_ids))
        limit = max_tokens[tuple(prompt_ids)]
        params = BeamSearchParams(
            beam_width=beams, max_tokens=limit, length_penalty=0.0, include_stop_str_in_output=True
        )
        async for output in Search(seen).beam_search(tokens_input(list(prompt_ids)), f"own-{next(numbers)}", params):
            answers = [tuple(answer.token_ids) for answer in output.outputs]
        cost = seen.finish(started)
        cost.rounds = limit
        cost.longest_path = max(map(len, answers))
        cost.answers = len(answers)
        cost.not_items = sum(answer not in items for answer in answers)
        return cost

    return recommend


class _Renderer:
    """What vLLM's beam search needs of a tokenizer: the end of a text. Nobody reads its texts."""

    def __init__(self, eos_token_id: int) -> None:
        self.eos_token_id = eos_token_id

    def get_tokenizer(self) -> _Renderer:
        return self

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool) -> str:  # noqa: ARG002 - vLLM's names
        return ""


class _CountedClient:
    """vLLM's client, counting what its beam search sends."""

    def __init__(self, llm: Any, seen: _Seen) -> None:  # noqa: ANN401 - AsyncLLM
        self.input_processor = llm.input_processor
        self._llm = llm
        self._seen = seen

    async def generate(
        self,
        prompt: Any,  # noqa: ANN401 - vLLM's input
        params: SamplingParams,
        request_id: str,
        **more: Any,  # noqa: ANN401 - vLLM's own
    ) -> AsyncIterator[RequestOutput]:
        async for output in self._llm.generate(prompt, params, request_id, **more):
            if output.finished:
                path = prompt["prompt_token_ids"][self._seen.prompt_tokens :]
                self._seen.count(path, generated=len(output.outputs[0].token_ids), cached=output.num_cached_tokens or 0)
            yield output


async def driven(way: Way, prompts: Sequence[Sequence[int]], *, concurrency: int) -> list[Cost]:
    """All prompts, ``concurrency`` at once."""
    room = asyncio.Semaphore(concurrency)

    async def one(prompt: Sequence[int]) -> Cost:
        async with room:
            return await way(prompt)

    return await asyncio.gather(*(one(prompt) for prompt in prompts))
