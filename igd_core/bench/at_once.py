"""Recommendations of several people at once by the embedded engine: how long each waits, and what for."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from igd_core.bench.datasets import load_dataset
from igd_core.engines.embedded.engine import TreeEngine
from igd_core.engines.embedded.pooled_llama import PooledLlama
from igd_core.search.recommender import Recommender

if TYPE_CHECKING:
    from collections.abc import Sequence

    from igd_core.artifact import Artifact
    from igd_core.bench.decode import DecodeSettings
    from igd_core.engines.embedded.checkpoint import Checkpoint
    from igd_core.search.engine import EngineStats
    from igd_core.search.query import Query
    from igd_core.search.session import SessionStats


@dataclass(frozen=True, slots=True, kw_only=True)
class AtOnceResult:
    """One number of people who ask at once, each again as soon as answered.

    Attributes:
        forward, why_forward: how the model was run, and why not otherwise, as `EngineStats` has them.
        per_second: recommendations.
        p50_s, p95_s: of one, from asking to its answer.
        rounds: a recommendation, median.
        passes: of the model, a recommendation.
        people_a_pass, tokens_a_pass: means.
        filled_up: share of a pass's tokens that only fill it up to a fixed size; 0 but on a GPU.
        queue_share, model_share, search_share: of the time from asking to the answer, all recommendations together:
            waiting for the model, in its passes, and in the search around them.
    """

    dataset: str
    at_once: int
    histories: int
    forward: str
    why_forward: str
    per_second: float
    p50_s: float
    p95_s: float
    rounds: float
    passes: float
    people_a_pass: float
    tokens_a_pass: float
    filled_up: float
    queue_share: float
    model_share: float
    search_share: float


def bench_at_once(
    checkpoint: Checkpoint, datasets: Sequence[str], settings: DecodeSettings, at_once: Sequence[int]
) -> list[dict[str, object]]:
    """One object for each data set and number of people; progress on standard error."""
    results: list[dict[str, object]] = []
    for name in datasets:
        data = load_dataset(name, histories=settings.histories + 1, video_games=settings.video_games)
        artifact = data.artifact(checkpoint.tokenizer)
        queries = [settings.query(history) for history in data.histories]
        results += [asdict(asyncio.run(_measure(name, checkpoint, artifact, queries, people))) for people in at_once]
    return results


async def _measure(
    name: str, checkpoint: Checkpoint, artifact: Artifact, queries: Sequence[Query], people: int
) -> AtOnceResult:
    """All queries but the first, which warms up and leaves the instruction's keys and values to the others."""
    engine = TreeEngine(checkpoint)
    await engine.load(artifact)
    recommender = Recommender(artifact, engine)
    await recommender.recommend(queries[0])
    answers: list[tuple[float, SessionStats]] = []
    waiting = iter(tqdm(queries[1:], desc=f"{name}, {people} at once", unit="prompt"))

    async def person() -> None:
        for query in waiting:
            asked = time.perf_counter()
            answer = await recommender.recommend(query)
            answers.append((time.perf_counter() - asked, answer.stats))

    before, room = engine.stats(), _room(checkpoint)
    started = time.perf_counter()
    await asyncio.gather(*(person() for _ in range(people)))
    wall_s = time.perf_counter() - started
    after = engine.stats()
    await engine.close()
    return _result((name, people), wall_s, answers, (before, after), _room(checkpoint) - room)


def _room(checkpoint: Checkpoint) -> Counter[str]:
    """Tokens fed so far, and the room for them, where passes have fixed sizes."""
    forward = checkpoint.forward_of(None)
    return forward.counts.copy() if isinstance(forward, PooledLlama) else Counter()


def _result(
    asked: tuple[str, int],
    wall_s: float,
    answers: Sequence[tuple[float, SessionStats]],
    passes: tuple[EngineStats, EngineStats],
    room: Counter[str],
) -> AtOnceResult:
    """The answers' seconds and stats, and the engine's counts before and after them, as one object."""
    seconds, stats = [each for each, _ in answers], [each for _, each in answers]
    before, after = passes
    count = after.passes - before.passes
    queue_s, model_s = sum(each.queue_s for each in stats), sum(each.model_s for each in stats)

    def share(part_s: float) -> float:
        return round(part_s / sum(seconds), 3)

    name, people = asked
    return AtOnceResult(
        dataset=name,
        at_once=people,
        histories=len(answers),
        forward=after.forward,
        why_forward=after.why_forward,
        per_second=round(len(answers) / wall_s, 3),
        p50_s=round(float(np.percentile(seconds, 50)), 4),
        p95_s=round(float(np.percentile(seconds, 95)), 4),
        rounds=statistics.median(each.rounds for each in stats),
        passes=round(count / len(answers), 2),
        people_a_pass=round((after.pass_sessions - before.pass_sessions) / count, 2),
        tokens_a_pass=round((after.pass_tokens - before.pass_tokens) / count, 1),
        filled_up=round(1 - room["tokens"] / room["room"], 3) if room["room"] else 0.0,
        queue_share=share(queue_s),
        model_share=share(model_s),
        search_share=share(sum(seconds) - queue_s - model_s),
    )
