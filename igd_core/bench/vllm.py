"""Cost of a recommendation in vLLM: ours, ours with a request for each token, and vLLM's own beam search.

All three run on one engine, one after the other on the same prompts, each from an empty prefix cache. vLLM's own search
is unconstrained, so most of its results are not items; it gets as many tokens as our longest answer to the prompt,
which it could not know.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from tqdm import tqdm

from igd_core.bench.datasets import load_dataset
from igd_core.bench.vllm_overhead import measure_overhead
from igd_core.bench.vllm_ways import Cost, driven, our_way, vllms_way
from igd_core.engines.vllm.metrics import VLLMMetrics
from igd_core.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from igd_core.bench.vllm_ways import Way
    from igd_core.engines.vllm.engine import VLLMEngine


@dataclass(frozen=True, slots=True, kw_only=True)
class VLLMBenchSettings:
    """What to measure.

    Attributes:
        video_games: where the Video Games data lie.
        histories: prompts at concurrency 1; at others, at least as many as run at once.
        concurrency: recommendations at once, one measurement each.
        beams: width of all searches.
        alpha: for ours.
    """

    video_games: Path
    histories: int = 4
    concurrency: tuple[int, ...] = (1, 8, 32)
    beams: int = 10
    alpha: float = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class WayResult:
    """One way on one data set at one concurrency; requests, rounds, steps and tokens are means a recommendation.

    Attributes:
        way: ``ours``, ``decisions`` (ours with a forced weight of 0), ``tokenwise`` or ``vllm``.
        engine_steps: of the whole engine, divided by the recommendations; those that completed a request or a round.
        most_extra_steps: largest number of engine steps beyond the rounds of a recommendation alone; None for crowds.
        computed_tokens: prompt tokens that went through the model, however often.
        recomputed_tokens: of those, what had been computed before for the same recommendation.
        not_items: share of the answers that are not items.
    """

    dataset: str
    way: str
    concurrency: int
    recommendations: int
    per_second: float
    p50_s: float
    p99_s: float
    requests: float
    rounds: float
    engine_steps: float
    most_extra_steps: int | None
    generated_tokens: float
    computed_tokens: float
    recomputed_tokens: float
    not_items: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    costs: list[Cost]
    seconds: float
    steps: list[int]


def bench_vllm(
    runner: asyncio.Runner, engine: VLLMEngine, datasets: Sequence[str], settings: VLLMBenchSettings
) -> Iterator[dict[str, object]]:
    """First one object for the processor's share of a step, then one for each way, concurrency and data set."""
    most = max(settings.histories, *settings.concurrency)
    loaded = [load_dataset(name, histories=most + 1, video_games=settings.video_games) for name in datasets]
    artifacts = [data.artifact(engine.tokenizer) for data in loaded]
    for artifact in artifacts:
        runner.run(engine.load(artifact))
    yield runner.run(measure_overhead(engine, artifacts))
    for name, data, artifact in zip(datasets, loaded, artifacts, strict=True):
        prompts = [artifact.prompt(history) for history in data.histories]
        max_tokens: dict[tuple[int, ...], int] = {}
        ways: dict[str, Way] = {
            "ours": our_way(engine, artifact, beams=settings.beams, alpha=settings.alpha),
            "decisions": our_way(engine, artifact, beams=settings.beams, alpha=settings.alpha, forced_weight=0.0),
            "tokenwise": our_way(engine, artifact, beams=settings.beams, alpha=settings.alpha, tokenwise=True),
            "vllm": vllms_way(engine, artifact, beams=settings.beams, max_tokens=max_tokens),
        }
        for way in ways.values():  # warm-up, not counted
            costs = runner.run(driven(way, prompts[-1:], concurrency=1))
            max_tokens.setdefault(tuple(prompts[-1]), costs[0].longest_path)
        for concurrency in settings.concurrency:
            group = prompts[: max(concurrency, settings.histories)]
            runs = _interleaved(_Bench(runner, engine, ways, max_tokens), group, concurrency=concurrency)
            for way_name, run in runs.items():
                yield asdict(_summarise(name, way_name, concurrency, run))


@dataclass(frozen=True, slots=True)
class _Bench:
    """What measurements on one data set share; ``max_tokens`` is the length of our longest answer, by prompt."""

    runner: asyncio.Runner
    engine: VLLMEngine
    ways: dict[str, Way]
    max_tokens: dict[tuple[int, ...], int]


def _interleaved(bench: _Bench, prompts: list[list[int]], *, concurrency: int) -> dict[str, _Run]:
    """A recommendation at a time, or ``concurrency`` at once, each way in turn."""
    groups = [[prompt] for prompt in prompts] if concurrency == 1 else [prompts]
    runs = {name: _Run(costs=[], seconds=0.0, steps=[]) for name in bench.ways}
    for group in tqdm(groups, desc=f"{concurrency} at once", unit="turn"):
        for name, way in bench.ways.items():
            if not bench.runner.run(bench.engine.forget_prompts()):
                raise EngineError("vLLM's prefix cache could not be emptied")
            steps, started = engine_steps(), time.perf_counter()
            costs = bench.runner.run(driven(way, group, concurrency=concurrency))
            run = runs[name]
            runs[name] = _Run(
                costs=run.costs + costs,
                seconds=run.seconds + time.perf_counter() - started,
                steps=[*run.steps, engine_steps() - steps],
            )
            if name == "ours":
                for prompt, cost in zip(group, costs, strict=True):
                    bench.max_tokens[tuple(prompt)] = cost.longest_path
    return runs


def engine_steps() -> int:
    """Steps of this process's engines that completed a request or a round of ours, from vLLM's own metrics."""
    samples = [sample for metric in VLLMMetrics().collect() for sample in metric.samples]
    return round(sum(sample.value for sample in samples if sample.name == "vllm:iteration_tokens_total_count"))


def _summarise(dataset: str, way: str, concurrency: int, run: _Run) -> WayResult:
    costs = run.costs
    seconds = sorted(cost.seconds for cost in costs)

    def mean(values: list[int]) -> float:
        return round(statistics.fmean(values), 2)

    alone = zip(run.steps, costs, strict=True) if concurrency == 1 else None
    return WayResult(
        dataset=dataset,
        way=way,
        concurrency=concurrency,
        recommendations=len(costs),
        per_second=round(len(costs) / run.seconds, 4),
        p50_s=round(statistics.median(seconds), 3),
        p99_s=round(seconds[min(len(seconds) - 1, int(0.99 * len(seconds)))], 3),
        requests=mean([cost.requests for cost in costs]),
        rounds=mean([cost.rounds for cost in costs]),
        engine_steps=round(sum(run.steps) / len(costs), 2),
        most_extra_steps=None if alone is None else max(steps - cost.rounds for steps, cost in alone),
        generated_tokens=mean([cost.generated_tokens for cost in costs]),
        computed_tokens=mean([cost.computed_tokens for cost in costs]),
        recomputed_tokens=mean([max(0, cost.computed_tokens - cost.distinct_tokens) for cost in costs]),
        not_items=round(sum(cost.not_items for cost in costs) / sum(cost.answers for cost in costs), 4),
    )
