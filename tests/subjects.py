"""Engines under test, and how to drive them."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from igd_core.engines.embedded.engine import TreeEngine
from igd_core.engines.embedded.parts import Outcome, Part
from igd_core.engines.fake import FakeEngine
from igd_core.ids import ROOT, ItemIndex, LeafIndex, NodeId
from igd_core.search.beam import BeamSearch, Hypothesis
from igd_core.search.fairness import Turn
from igd_core.search.filters import ItemFilter
from igd_core.search.session import Scoring

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
    from typing import Any

    from numpy.typing import NDArray
    from oracles import Path

    from igd_core.artifact import Artifact
    from igd_core.engines.embedded.checkpoint import Checkpoint
    from igd_core.search.engine import Engine
    from igd_core.search.filters import LeafFilter
    from igd_core.search.normalisation import Normalise
    from igd_core.search.session import ChildScores, Session

FP32 = 1e-5
FP32_ON_CUDA = 1e-4  # sums are taken in another order for each shape of a batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """An engine under test, and how closely its scores must agree (nats)."""

    kind: str
    engine: Engine
    tolerance: float

    @property
    def is_tree(self) -> bool:
        return isinstance(self.engine, TreeEngine)


def make_engine(kind: str, checkpoint_of: Callable[[str], Checkpoint], *, cache_bytes: int = 1 << 20) -> Engine:
    return FakeEngine() if kind == "fake" else TreeEngine(checkpoint_of(kind), cache_bytes=cache_bytes)


@asynccontextmanager
async def started(
    kind: str, artifact: Artifact, checkpoint_of: Callable[[str], Checkpoint], *, cache_bytes: int = 1 << 20
) -> AsyncIterator[Subject]:
    engine = make_engine(kind, checkpoint_of, cache_bytes=cache_bytes)
    await engine.load(artifact)
    yield Subject(kind=kind, engine=engine, tolerance=_tolerance(kind))
    await engine.close()


def _tolerance(kind: str) -> float:
    if "bf16" in kind:
        return 0.08
    return FP32_ON_CUDA if kind.endswith("cuda") else FP32


def prompt_of(artifact: Artifact, *rows: int) -> list[int]:
    return artifact.prompt([ItemIndex(row) for row in rows])


def paths_of(artifact: Artifact) -> list[Path]:
    """The path of every item."""
    return [tuple(artifact.trie.path(LeafIndex(leaf))) for leaf in artifact.leaf_of_item.tolist()]


def prior_of(artifact: Artifact) -> list[float]:
    counts = artifact.catalogue.frequency
    return [float(count) for count in counts / counts.sum()]


def leaves_of(artifact: Artifact, *, allowed: Sequence[int] | None = None, barred: Sequence[int] = ()) -> LeafFilter:
    return ItemFilter.of(allowed=allowed, barred=barred).leaves(artifact.trie, artifact.leaf_of_item)


def unscored_below(artifact: Artifact, scored: Mapping[NodeId, ChildScores]) -> list[NodeId]:
    """The next frontier: children of scored nodes that are neither scored nor leaves."""
    children = {NodeId(edge + 1) for scores in scored.values() for edge in scores.edges}
    return sorted(node for node in children if node not in scored and not artifact.trie.is_leaf(node))


async def expand_everything(
    session: Session, artifact: Artifact, *, together: bool, limit: int = 10**9
) -> dict[NodeId, ChildScores]:
    """Scores of the trie's nodes down to the leaves, a whole frontier at a time or node by node."""
    scored: dict[NodeId, ChildScores] = dict(await session.expand([ROOT]))
    while (frontier := unscored_below(artifact, scored)) and len(scored) < limit:
        if together:
            scored.update(await session.expand(frontier))
        else:
            for node in frontier:
                scored.update(await session.expand([node]))
    return scored


def assert_same_scores(
    one: Mapping[NodeId, ChildScores], other: Mapping[NodeId, ChildScores], tolerance: float
) -> None:
    assert one.keys() == other.keys()
    (edges, values), (other_edges, other_values) = by_edge(one.values()), by_edge(other.values())
    assert np.array_equal(edges, other_edges)
    np.testing.assert_allclose(values, other_values, atol=tolerance, rtol=FP32)


def by_edge(scores: Iterable[ChildScores]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """All edges ascending, and ``(2, n)`` log-probabilities and scores in that order."""
    listed = list(scores)
    edges = np.array([edge for children in listed for edge in children.edges], dtype=np.int64)
    logprobs = np.concatenate([children.logprobs for children in listed])
    weighted = np.concatenate([children.scores for children in listed])
    order = np.argsort(edges)
    return edges[order], np.stack([logprobs, weighted])[:, order]


async def search(
    subject: Subject,
    artifact: Artifact,
    prompt: list[int],
    *,
    beams: int = 10,
    length_penalty: float = 0.0,
    forced_weight: float = 1.0,
    normalise: Normalise = "vocabulary",
    **scoring: Any,
) -> list[Hypothesis]:
    asked = Scoring(keep=2 * beams, normalise=normalise, **scoring)
    session = await subject.engine.open(artifact.version, prompt, asked)
    try:
        beam_search = BeamSearch(
            artifact.trie,
            beams=beams,
            length_penalty=length_penalty,
            forced_weight=forced_weight,
            normalise=normalise,
        )
        return await beam_search.run(session)
    finally:
        await session.close()


@dataclass(frozen=True, slots=True)
class _Hold:
    """A pass that lasts until its part is set."""

    running: threading.Event
    most_tokens: int = 0

    def run(self, parts: Sequence[threading.Event]) -> list[Outcome[None]]:
        self.running.set()
        return [Outcome(error=None if part.wait(20) else TimeoutError("nobody let go")) for part in parts]


@asynccontextmanager
async def busy(subject: Subject) -> AsyncIterator[None]:
    """While inside, calls of a tree engine's model wait; the fake engine has no queue."""
    if not isinstance(subject.engine, TreeEngine):
        yield
        return
    release, running = threading.Event(), threading.Event()

    call = asyncio.ensure_future(subject.engine._thread.call(Turn(), 0, Part(passes=_Hold(running), what=release)))
    await asyncio.to_thread(running.wait, 20)
    try:
        yield
    finally:
        release.set()
        await call
