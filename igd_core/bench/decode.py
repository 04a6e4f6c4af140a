"""Time of one recommendation: the reference, ours, and the floor, interleaved on the same prompts.

The floor is a time that no tree search over this model can beat by much: as many tokens as ours, fed to the model in
ONE plain causal prefill, with logits for as many rows.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from igd_core.bench.datasets import load_dataset
from igd_core.bench.reference import ReferenceSettings, build_dict_trie, reference_generate
from igd_core.catalogue.items import prior
from igd_core.engines.embedded.checkpoint import in_precision, load_checkpoint
from igd_core.engines.embedded.engine import TreeEngine
from igd_core.ids import ItemIndex, LeafIndex
from igd_core.limits import DEFAULT_BEAMS
from igd_core.search.query import Query
from igd_core.search.recommender import Recommender

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from igd_core.artifact import Artifact
    from igd_core.bench.reference import DictNode, ReferenceResult
    from igd_core.engines.embedded.checkpoint import Checkpoint
    from igd_core.engines.forward_choice import ForwardChoice, PrecisionChoice
    from igd_core.engines.vllm.engine import VLLMEngine
    from igd_core.engines.vllm.options import VLLMOptions
    from igd_core.search.recommender import Recommendation

SWAP_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeSettings:
    """What to measure: prompts a data set, decoding settings, the folder of Video Games; and vLLM's options."""

    video_games: Path
    histories: int = 20
    beams: int = 10
    alpha: float = 0.2
    forced_weight: float = 1.0
    vllm: VLLMOptions | None = None

    def query(self, history: tuple[ItemIndex, ...]) -> Query:
        """What is asked for a history."""
        return Query(
            history=history,
            k=self.beams,
            beams=self.beams,
            alpha=self.alpha,
            forced_weight=self.forced_weight,
            exclude_seen=False,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeResult:
    """Medians over prompts; seconds, tokens or calls a recommendation.

    Attributes:
        speedup: median of reference / ours over prompts.
        floor_ratio: median of ours / floor over prompts.
        ours_cold_s: ours, without key-value caches of earlier prompts.
        cached_tokens: prompt tokens that ``ours_s`` found in the cache (the instruction), not among ``model_tokens``.
        same_items: prompts for which ours ranked the same paths in the same order as the reference.
        near_ties: prompts whose order differs only within 1e-3 in score.
        worst_score_gap: largest difference of a path's score.
    """

    dataset: str
    histories: int
    reference_s: float
    ours_s: float
    ours_cold_s: float
    floor_s: float
    speedup: float
    speedup_cold: float
    floor_ratio: float
    reference_calls: float
    rounds: float
    prompt_tokens: float
    cached_tokens: float
    model_tokens: float
    same_items: int
    near_ties: int
    worst_score_gap: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sample:
    reference_s: float
    ours_s: float
    cold_s: float
    floor_s: float
    agreement: Agreement
    reference_calls: int
    answer: Recommendation


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How ours compares with the reference on one prompt."""

    same: bool
    near_tie: bool
    worst_gap: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchCheckpoints:
    """One checkpoint, loaded twice.

    Attributes:
        plain: as transformers loads it; the reference and the floor run on it.
        served: as the engine loads it.
    """

    plain: Checkpoint
    served: Checkpoint

    @staticmethod
    def load(
        model: str | Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        forward: ForwardChoice = "auto",
        precision: PrecisionChoice = "fp32",
    ) -> BenchCheckpoints:
        """Load the folder ``model`` both ways.

        Raises:
            IGDError: the engine cannot serve it.
        """
        return BenchCheckpoints(
            plain=load_checkpoint(model, device=device, dtype=dtype, packed=False),
            served=in_precision(load_checkpoint(model, device=device, dtype=dtype, forward=forward), precision),
        )


def bench_decode(
    checkpoints: BenchCheckpoints, datasets: Sequence[str], settings: DecodeSettings
) -> list[dict[str, object]]:
    """One object per data set; progress on standard error."""
    return [asdict(_bench_dataset(checkpoints, name, settings)) for name in datasets]


def compare(reference: ReferenceResult, ours: Recommendation, artifact: Artifact) -> Agreement:
    """Whether both rank the same paths in the same order; paths whose scores differ by less than 1e-3 may swap."""
    trie = artifact.trie
    paths = [tuple(trie.path(LeafIndex(int(artifact.leaf_of_item[found.item])))) for found in ours.items]
    scores = [found.score for found in ours.items]
    gap = max((abs(a - b) for a, b in zip(reference.scores, scores, strict=False)), default=0.0)
    same = paths == reference.paths[: len(paths)]
    near = not same and gap <= SWAP_TOLERANCE and _differ_by_swaps(paths, scores, reference)
    return Agreement(same=same, near_tie=near, worst_gap=gap)


def _differ_by_swaps(paths: list[tuple[int, ...]], scores: list[float], reference: ReferenceResult) -> bool:
    """Whether every path in another place has a neighbour, or the cut after the last rank, within the tolerance."""
    expected = dict(zip(reference.paths, reference.scores, strict=True))
    last = min(scores[-1], reference.scores[len(scores) - 1])
    return all(
        abs(expected.get(path, last) - score) <= SWAP_TOLERANCE for path, score in zip(paths, scores, strict=True)
    )


def _bench_dataset(checkpoints: BenchCheckpoints, name: str, settings: DecodeSettings) -> DecodeResult:
    data = load_dataset(name, histories=settings.histories + 1, video_games=settings.video_games)
    artifact = data.artifact(checkpoints.plain.tokenizer)
    paths = [artifact.trie.path(LeafIndex(int(leaf))) for leaf in artifact.leaf_of_item]
    root = build_dict_trie(paths, prior(data.catalogue.frequency).tolist())
    queries = [settings.query(history) for history in data.histories]
    vllm = None if settings.vllm is None else _start_vllm(settings.vllm)
    with asyncio.Runner() as runner:
        engines: _Engines | _VLLM = _Engines(checkpoints) if vllm is None else _VLLM(checkpoints.plain, vllm)
        runner.run(engines.load(artifact))
        _measure(runner, engines, root, queries[0])  # warm-up, not counted
        samples = [_measure(runner, engines, root, query) for query in tqdm(queries[1:], desc=name, unit="prompt")]
        runner.run(engines.close())
    return _summarise(name, samples)


class _Engines:
    """Our engine twice on one checkpoint: with the prefix cache, and without."""

    def __init__(self, checkpoints: BenchCheckpoints) -> None:
        self.plain = checkpoints.plain
        self._engines = (TreeEngine(checkpoints.served), TreeEngine(checkpoints.served, cache_bytes=0))

    async def load(self, artifact: Artifact) -> None:
        self.artifact = artifact
        for engine in self._engines:
            await engine.load(artifact)
        self._warm, self._cold = (Recommender(artifact, engine) for engine in self._engines)

    async def warm(self, query: Query) -> Recommendation:
        return await self._warm.recommend(query)

    async def cold(self, query: Query) -> Recommendation:
        return await self._cold.recommend(query)

    async def close(self) -> None:
        for engine in self._engines:
            await engine.close()


def _start_vllm(options: VLLMOptions) -> VLLMEngine:
    from igd_core.engines.vllm.engine import VLLMEngine

    return VLLMEngine.start(options)


class _VLLM:
    """Our engine on vLLM: warm, and after emptying its prefix cache. Belongs to one event loop, so to one data set."""

    def __init__(self, plain: Checkpoint, engine: VLLMEngine) -> None:
        self.plain = plain
        self._engine = engine

    async def load(self, artifact: Artifact) -> None:
        self.artifact = artifact
        await self._engine.load(artifact)
        self._recommender = Recommender(artifact, self._engine)

    async def warm(self, query: Query) -> Recommendation:
        return await self._recommender.recommend(query)

    async def cold(self, query: Query) -> Recommendation:
        await self._engine.forget_prompts()
        return await self._recommender.recommend(query)

    async def close(self) -> None:
        await self._engine.close()


def _measure(runner: asyncio.Runner, engines: _Engines | _VLLM, root: DictNode, query: Query) -> _Sample:
    artifact, model = engines.artifact, engines.plain.model
    settings = ReferenceSettings(
        beams=max(query.beams or DEFAULT_BEAMS, query.k),
        alpha=query.alpha or 0.0,
        forced_weight=query.forced_weight,
        eos_id=artifact.manifest.eos_id,
        max_new_tokens=artifact.trie.depth,
    )
    started = time.perf_counter()
    reference = reference_generate(model, root, artifact.prompt(query.history), settings)
    generated = time.perf_counter()
    answer = runner.run(engines.warm(query))
    warm = time.perf_counter()
    cold = runner.run(engines.cold(query))
    cold_end = time.perf_counter()
    stats = answer.stats
    scored = stats.model_tokens - (stats.prompt_tokens - stats.cached_tokens) + 1
    _plain_prefill(engines.plain, stats.model_tokens, scored)
    floor_end = time.perf_counter()
    del cold
    return _Sample(
        reference_s=generated - started,
        ours_s=warm - generated,
        cold_s=cold_end - warm,
        floor_s=floor_end - cold_end,
        agreement=compare(reference, answer, artifact),
        reference_calls=reference.model_calls,
        answer=answer,
    )


@torch.inference_mode()
def _plain_prefill(checkpoint: Checkpoint, tokens: int, scored: int) -> None:
    ids = torch.arange(tokens, device=checkpoint.model.device)[None] % checkpoint.tokenizer.vocab_size
    checkpoint.model(input_ids=ids, use_cache=True, logits_to_keep=scored)


def _summarise(name: str, samples: list[_Sample]) -> DecodeResult:
    def median(values: list[float]) -> float:
        return round(statistics.median(values), 4)

    stats = [sample.answer.stats for sample in samples]
    return DecodeResult(
        dataset=name,
        histories=len(samples),
        reference_s=median([s.reference_s for s in samples]),
        ours_s=median([s.ours_s for s in samples]),
        ours_cold_s=median([s.cold_s for s in samples]),
        floor_s=median([s.floor_s for s in samples]),
        speedup=median([s.reference_s / s.ours_s for s in samples]),
        speedup_cold=median([s.reference_s / s.cold_s for s in samples]),
        floor_ratio=median([s.ours_s / s.floor_s for s in samples]),
        reference_calls=median([s.reference_calls for s in samples]),
        rounds=median([s.rounds for s in stats]),
        prompt_tokens=median([s.prompt_tokens for s in stats]),
        cached_tokens=median([s.cached_tokens for s in stats]),
        model_tokens=median([s.model_tokens for s in stats]),
        same_items=sum(s.agreement.same for s in samples),
        near_ties=sum(s.agreement.near_tie for s in samples),
        worst_score_gap=max(s.agreement.worst_gap for s in samples),
    )
