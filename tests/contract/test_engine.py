"""What every engine promises (`igd_core.engines.base`): one suite, run against each implementation.

bfloat16 keeps 8 bits: where fp32 engines must agree to 1e-5, it must agree to a few hundredths of a nat.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import oracles
import pytest
from factories import MODEL_KINDS, make_catalogue

from igd_core.artifact import BuildOptions, build_artifact
from igd_core.bench.reference import ReferenceSettings, build_dict_trie, reference_generate
from igd_core.decoding.beam import BeamSearch, Hypothesis
from igd_core.decoding.filters import ItemFilter
from igd_core.decoding.session import Scoring
from igd_core.engines.fake import FakeEngine
from igd_core.engines.tree import TreeEngine
from igd_core.errors import ArtifactError, EngineClosed, EngineError
from igd_core.ids import ROOT, ItemIndex, LeafIndex, NodeId
from igd_core.tokenization import TitleTokenizer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from typing import Any

    from oracles import Path

    from igd_core.artifact import Artifact
    from igd_core.decoding.filters import LeafFilter
    from igd_core.decoding.session import ChildScores, Session
    from igd_core.engines.base import Engine
    from igd_core.engines.checkpoint import Checkpoint

FP32 = 1e-5
KINDS = ("fake", *MODEL_KINDS)


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
    yield Subject(kind=kind, engine=engine, tolerance=0.08 if kind.endswith("bf16") else FP32)
    await engine.close()


@pytest.fixture(params=KINDS)
async def subject(
    request: pytest.FixtureRequest, artifact: Artifact, checkpoint_of: Callable[[str], Checkpoint]
) -> AsyncIterator[Subject]:
    async with started(request.param, artifact, checkpoint_of) as made:
        yield made


@pytest.fixture(params=MODEL_KINDS)
async def tree(
    request: pytest.FixtureRequest, artifact: Artifact, checkpoint_of: Callable[[str], Checkpoint]
) -> AsyncIterator[Subject]:
    async with started(request.param, artifact, checkpoint_of) as made:
        yield made


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
    children = {NodeId(edge + 1) for scores in scored.values() for edge in scores.edges.tolist()}
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
    for node, scores in one.items():
        first, second = np.argsort(scores.edges), np.argsort(other[node].edges)
        assert np.array_equal(scores.edges[first], other[node].edges[second])
        np.testing.assert_allclose(scores.logprobs[first], other[node].logprobs[second], atol=tolerance, rtol=0)
        np.testing.assert_allclose(scores.scores[first], other[node].scores[second], atol=tolerance, rtol=0)


async def search(
    subject: Subject,
    artifact: Artifact,
    prompt: list[int],
    *,
    beams: int = 10,
    length_penalty: float = 0.0,
    **scoring: Any,
) -> list[Hypothesis]:
    session = await subject.engine.open(artifact.version, prompt, Scoring(keep=2 * beams, **scoring))
    try:
        return await BeamSearch(artifact.trie, beams=beams, length_penalty=length_penalty).run(session)
    finally:
        await session.close()


@asynccontextmanager
async def busy(subject: Subject) -> AsyncIterator[None]:
    """While inside, calls of a tree engine's model wait; the fake engine has no queue."""
    if not isinstance(subject.engine, TreeEngine):
        yield
        return
    release, running = threading.Event(), threading.Event()

    def hold() -> None:
        running.set()
        assert release.wait(20)

    call = asyncio.ensure_future(subject.engine._thread.call(0, hold))
    await asyncio.to_thread(running.wait, 20)
    try:
        yield
    finally:
        release.set()
        await call


# -- expand -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("barred", [[], list(range(0, 150, 2)), list(range(3, 150))])
async def test_expanding_scores_the_nodes_asked_for_and_the_forced_chains_below_them(
    subject: Subject, artifact: Artifact, barred: list[int]
) -> None:
    paths = {path for row, path in enumerate(paths_of(artifact)) if row not in barred}
    leaves = leaves_of(artifact, barred=barred)
    session = await subject.engine.open(artifact.version, prompt_of(artifact, 1), Scoring(keep=500, leaves=leaves))
    asked = [ROOT]
    for _ in range(3):
        result = await session.expand(asked)
        expected: dict[NodeId, list[int]] = {}
        for node in asked:
            prefix = tuple(artifact.trie.edge_token[artifact.trie.edges_to(node)].tolist())
            while following := oracles.next_tokens(paths, prefix):
                expected[node] = following
                if len(following) > 1:
                    break
                prefix = (*prefix, following[0])
                child = artifact.trie.child(node, following[0])
                assert child is not None
                node = child  # noqa: PLW2901 - walking down
        found = {node: sorted(artifact.trie.edge_token[scores.edges].tolist()) for node, scores in result.items()}
        assert found == expected
        asked = unscored_below(artifact, result)
        if not asked:
            break
    await session.close()


async def test_children_come_best_first_weighted_and_no_more_than_kept(subject: Subject, artifact: Artifact) -> None:
    prompt = prompt_of(artifact, 1, 2)
    session = await subject.engine.open(artifact.version, prompt, Scoring(alpha=0.6, keep=500))
    scored = await expand_everything(session, artifact, together=True)
    few = await subject.engine.open(artifact.version, prompt, Scoring(alpha=0.6, keep=2))
    for node in (await few.expand([ROOT])).keys() & scored.keys():
        kept = (await few.expand([ROOT]))[node] if subject.kind == "fake" else None
        assert kept is None or np.array_equal(kept.edges, scored[node].edges[:2])
    for scores in scored.values():
        assert np.all(np.diff(scores.scores) <= 0)
        weights = 1.0 - 0.6 * artifact.gains.sibling_gain[scores.edges].astype(np.float64)
        np.testing.assert_allclose(scores.scores, scores.logprobs * weights, atol=FP32)
        assert np.exp(scores.logprobs).sum() <= 1 + 1e-6, "probabilities over the full vocabulary"
        assert scores.edges.dtype == np.int64
        assert scores.logprobs.dtype == scores.scores.dtype == np.float64
    await few.close()
    await session.close()


@pytest.mark.parametrize("keep", [1, 2, 3])
async def test_keeping_fewer_children_keeps_the_best(subject: Subject, artifact: Artifact, keep: int) -> None:
    prompt = prompt_of(artifact, 1, 2)
    all_children, best_children = [
        await (await subject.engine.open(artifact.version, prompt, Scoring(keep=kept))).expand([ROOT])
        for kept in (500, keep)
    ]
    assert all_children.keys() == best_children.keys()
    for node, best in best_children.items():
        assert len(best.edges) == min(keep, len(all_children[node].edges))
        np.testing.assert_allclose(best.scores, all_children[node].scores[:keep], atol=subject.tolerance)


async def test_nodes_score_the_same_together_and_one_by_one(subject: Subject, artifact: Artifact) -> None:
    prompt = prompt_of(artifact, 3, 4, 5)
    together, alone = [
        await expand_everything(
            await subject.engine.open(artifact.version, prompt, Scoring(keep=500)), artifact, together=way
        )
        for way in (True, False)
    ]
    inner = artifact.trie.num_nodes - artifact.trie.num_leaves
    assert len(together) == len(alone) == inner
    assert_same_scores(together, alone, subject.tolerance)


async def test_a_filter_changes_which_children_come_back_and_no_score(subject: Subject, artifact: Artifact) -> None:
    prompt = prompt_of(artifact, 3, 4)
    leaves = leaves_of(artifact, allowed=range(0, 150, 5))
    free, filtered = [
        await expand_everything(await subject.engine.open(artifact.version, prompt, scoring), artifact, together=True)
        for scoring in (Scoring(keep=500), Scoring(keep=500, leaves=leaves))
    ]
    assert 0 < len(filtered) < len(free)
    for node, scores in filtered.items():
        assert sorted(scores.edges.tolist()) == leaves.open_edges(artifact.trie, node).tolist()
        everything = dict(zip(free[node].edges.tolist(), free[node].scores.tolist(), strict=True))
        expected = [everything[edge] for edge in scores.edges.tolist()]
        np.testing.assert_allclose(scores.scores, expected, atol=subject.tolerance)


# -- sessions --------------------------------------------------------------------------------------------


async def test_interleaved_sessions_score_as_each_alone(subject: Subject, artifact: Artifact) -> None:
    prompts = [prompt_of(artifact, *rows) for rows in ((1, 2, 3), (1, 2, 4), (9,), (1, 2, 3))]
    settings = [Scoring(keep=500, alpha=alpha) for alpha in (0.2, 0.2, 0.7, 0.0)]

    async def score(prompt: list[int], scoring: Scoring) -> dict[NodeId, ChildScores]:
        session = await subject.engine.open(artifact.version, prompt, scoring)
        scored = await expand_everything(session, artifact, together=True, limit=300)
        await session.close()
        return scored

    alone = [await score(*request) for request in zip(prompts, settings, strict=True)]
    at_once = await asyncio.gather(*(score(*request) for request in zip(prompts, settings, strict=True)))
    for one, other in zip(alone, at_once, strict=True):
        assert_same_scores(one, other, subject.tolerance)


async def test_sessions_count_what_they_cost(subject: Subject, artifact: Artifact) -> None:
    prompt = prompt_of(artifact, 1, 2, 3)
    session = await subject.engine.open(artifact.version, prompt, Scoring(keep=500))
    assert (session.stats.rounds, session.stats.prompt_tokens) == (0, len(prompt))
    scored = dict(await session.expand([ROOT]))
    scored.update(await session.expand(unscored_below(artifact, scored)))
    stats = session.stats
    assert stats.rounds == 2
    assert stats.cached_tokens <= len(prompt) - 1
    if subject.is_tree:  # the root's logits come with the prompt's last token
        assert stats.model_tokens + stats.cached_tokens == len(prompt) + len(scored) - 1
        assert stats.model_s > 0
    await session.close()


async def test_closing_a_session_frees_it_once_and_ends_it(subject: Subject, artifact: Artifact) -> None:
    first, second = [await subject.engine.open(artifact.version, [5], Scoring()) for _ in range(2)]
    assert subject.engine.stats().sessions == 2
    await first.expand([ROOT])
    await first.close()
    await first.close()
    assert subject.engine.stats().sessions == 1
    with pytest.raises(EngineError, match="session is closed"):
        await first.expand([ROOT])
    assert (await second.expand([ROOT])).keys()
    await second.close()
    assert subject.engine.stats().sessions == 0


async def test_a_cancelled_call_that_waits_never_runs(subject: Subject, artifact: Artifact) -> None:
    session = await subject.engine.open(artifact.version, prompt_of(artifact, 1), Scoring())
    other = await subject.engine.open(artifact.version, prompt_of(artifact, 2), Scoring())
    async with busy(subject):
        cancelled = asyncio.ensure_future(session.expand([ROOT]))
        kept = asyncio.ensure_future(other.expand([ROOT]))
        await asyncio.sleep(0)
        assert subject.engine.stats().waiting == (2 if subject.is_tree else 0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        await session.close()
    assert ROOT in await kept
    assert (session.stats.rounds, other.stats.rounds) == (0, 1)
    await other.close()
    assert subject.engine.stats().sessions == 0


async def test_a_session_closed_while_its_call_waits_never_runs(subject: Subject, artifact: Artifact) -> None:
    session = await subject.engine.open(artifact.version, prompt_of(artifact, 1), Scoring())
    async with busy(subject):
        waiting = asyncio.ensure_future(session.expand([ROOT]))
        if subject.is_tree:
            await asyncio.sleep(0)
        await session.close()
    with pytest.raises(EngineError, match="session is closed"):
        await waiting
    assert session.stats.rounds == 0


# -- versions --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other_artifact(tokenizer: TitleTokenizer) -> Artifact:
    return build_artifact(make_catalogue(20, seed=9), tokenizer, BuildOptions(name="other"))


async def test_a_version_that_is_not_loaded_is_refused(
    subject: Subject, artifact: Artifact, other_artifact: Artifact
) -> None:
    with pytest.raises(EngineError, match=f"version '{other_artifact.version}' is not loaded"):
        await subject.engine.open(other_artifact.version, [5], Scoring())
    await subject.engine.load(other_artifact)
    await subject.engine.load(other_artifact)
    assert sorted(subject.engine.stats().versions) == sorted([artifact.version, other_artifact.version])
    for served in (artifact, other_artifact):
        assert len(await search(subject, served, prompt_of(served, 1))) == 10


async def test_a_session_goes_on_while_its_version_is_unloaded(subject: Subject, artifact: Artifact) -> None:
    prompt = prompt_of(artifact, 1, 2)
    session = await subject.engine.open(artifact.version, prompt, Scoring(keep=500))
    scored = dict(await session.expand([ROOT]))
    await subject.engine.unload(artifact.version)
    await subject.engine.unload(artifact.version)
    assert subject.engine.stats().versions == ()
    with pytest.raises(EngineError, match="is not loaded"):
        await subject.engine.open(artifact.version, prompt, Scoring())
    scored.update(await session.expand(unscored_below(artifact, scored)))
    await subject.engine.load(artifact)
    again = await subject.engine.open(artifact.version, prompt, Scoring(keep=500))
    expected = dict(await again.expand([ROOT]))
    expected.update(await again.expand(unscored_below(artifact, expected)))
    assert_same_scores(scored, expected, subject.tolerance)


async def test_a_closed_engine_refuses_everything(subject: Subject, artifact: Artifact) -> None:
    session = await subject.engine.open(artifact.version, [5], Scoring())
    assert subject.engine.stats().healthy
    await subject.engine.close()
    await subject.engine.close()
    assert not subject.engine.stats().healthy
    with pytest.raises(EngineClosed):
        await subject.engine.open(artifact.version, [5], Scoring())
    with pytest.raises(EngineClosed):
        await session.expand([ROOT])
    await session.close()
    assert subject.engine.stats().sessions == 0


async def test_waiting_calls_of_a_closing_engine_end_with_engine_closed(tree: Subject, artifact: Artifact) -> None:
    assert isinstance(tree.engine, TreeEngine)
    session = await tree.engine.open(artifact.version, [5], Scoring())
    async with busy(tree):
        waiting = asyncio.ensure_future(session.expand([ROOT]))
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(asyncio.to_thread(tree.engine._thread.close))
        with pytest.raises(EngineClosed):
            await waiting
    await closing


async def test_an_engine_says_which_model_it_runs(subject: Subject) -> None:
    assert subject.engine.model_id == subject.kind


# -- what only an engine with a model can promise -----------------------------------------------------


async def test_an_artefact_of_another_tokenizer_is_refused(
    tree: Subject, definition: dict[str, Any], artifact: Artifact
) -> None:
    foreign_definition = {**definition, "added_tokens": definition["added_tokens"][:-1]}
    foreign = build_artifact(make_catalogue(5), TitleTokenizer(foreign_definition, "<|im_end|>"), BuildOptions())
    with pytest.raises(ArtifactError, match="tokenizer: the artefact was built with"):
        await tree.engine.load(foreign)
    assert tree.engine.stats().versions == (artifact.version,)


async def test_token_ids_outside_the_models_vocabulary_are_refused(tree: Subject, artifact: Artifact) -> None:
    larger = replace(artifact, version="larger", manifest=replace(artifact.manifest, vocab_size=5000))
    with pytest.raises(ArtifactError, match=r"vocabulary: the artefact needs 5000, the model has \d+"):
        await tree.engine.load(larger)


async def test_the_longest_prompt_leaves_room_for_the_longest_path(tree: Subject, artifact: Artifact) -> None:
    longest = tree.engine.max_prompt_tokens
    assert longest == 256 - artifact.trie.depth
    deepest = max(range(150), key=lambda row: len(paths_of(artifact)[row]))
    found = await search(tree, artifact, [5] * longest, leaves=leaves_of(artifact, allowed=[deepest]))
    assert [len(hypothesis.steps) for hypothesis in found] == [artifact.trie.depth]
    for length in (0, longest + 1):
        with pytest.raises(EngineError, match=f"the prompt has {length} tokens; 1 to {longest} fit"):
            await tree.engine.open(artifact.version, [5] * length, Scoring())


async def test_a_failure_of_the_model_is_an_engine_error_and_the_engine_lives_on(
    tree: Subject, artifact: Artifact
) -> None:
    session = await tree.engine.open(artifact.version, [10**6], Scoring())
    with pytest.raises(EngineError, match="the model failed"):
        await session.expand([ROOT])
    await session.close()
    assert len(await search(tree, artifact, [5])) == 10


async def test_a_cached_prefix_changes_nothing_and_is_counted(
    tree: Subject, artifact: Artifact, checkpoint_of: Callable[[str], Checkpoint]
) -> None:
    prompts = [prompt_of(artifact, *rows) for rows in ((1, 2, 3), (1, 2, 3, 4), (1, 2, 3), (1, 2, 9), (40, 41))]
    expected_cached = [
        max((oracle_common_prefix(prompt[:-1], earlier) for earlier in prompts[:at]), default=0)
        for at, prompt in enumerate(prompts)
    ]
    assert expected_cached[:2] == [0, len(prompts[0])]
    async with started(tree.kind, artifact, checkpoint_of, cache_bytes=0) as cold:
        for prompt, cached in zip(prompts, expected_cached, strict=True):
            runs = []
            for subject in (tree, cold):
                session = await subject.engine.open(artifact.version, prompt, Scoring(keep=500))
                runs.append(await expand_everything(session, artifact, together=True, limit=200))
                assert session.stats.cached_tokens == (cached if subject is tree else 0)
                await session.close()
            assert_same_scores(runs[0], runs[1], tree.tolerance)
        assert cold.engine.stats().cache_bytes == 0
    assert 0 < tree.engine.stats().cache_bytes <= 1 << 20


def oracle_common_prefix(one: list[int], other: list[int]) -> int:
    length = 0
    while length < min(len(one), len(other)) and one[length] == other[length]:
        length += 1
    return length


async def test_the_prefix_cache_stays_within_its_budget(
    artifact: Artifact, checkpoint_of: Callable[[str], Checkpoint]
) -> None:
    one_prompt = 2 * 2 * 2 * 8 * 4 * len(prompt_of(artifact, 1, 2, 3))  # layers, keys and values, heads, width, bytes
    async with started("llama-fp32", artifact, checkpoint_of, cache_bytes=2 * one_prompt) as subject:
        for row in range(12):
            await search(subject, artifact, prompt_of(artifact, row, row + 1, row + 2))
            assert 0 < subject.engine.stats().cache_bytes <= 2 * one_prompt


@pytest.mark.parametrize("alpha", [0.0, 0.2])
async def test_with_beams_for_every_item_the_ranking_is_that_of_scoring_each_item_in_full(
    tree: Subject, artifact: Artifact, checkpoint_of: Callable[[str], Checkpoint], alpha: float
) -> None:
    prompt, paths, prior = prompt_of(artifact, 7, 8, 9), paths_of(artifact), prior_of(artifact)
    scored = oracles.exhaustive_scores(checkpoint_of(tree.kind).model, prompt, paths, prior, alpha)
    for length_penalty in (0.0, 1.0):
        found = await search(
            tree, artifact, prompt, beams=len(artifact.catalogue), length_penalty=length_penalty, alpha=alpha
        )
        expected = {path: score / len(path) ** length_penalty for path, score in scored.items()}
        ranked = [(tuple(artifact.trie.path(hypothesis.leaf)), hypothesis.score) for hypothesis in found]
        assert {path for path, _ in ranked} == set(paths)
        tolerance = 1e-4 if tree.tolerance == FP32 else 0.5  # up to 16 tokens, each off by some hundredths
        for path, score in ranked:
            assert score == pytest.approx(expected[path], abs=tolerance)
        if tree.tolerance == FP32:
            assert [path for path, _ in ranked] == sorted(expected, key=lambda path: -expected[path])


@pytest.mark.parametrize("temperature", [0.5, 2.0])
async def test_temperature_divides_the_logits(
    tree: Subject, artifact: Artifact, checkpoint_of: Callable[[str], Checkpoint], temperature: float
) -> None:
    prompt, root = prompt_of(artifact, 7), build_dict_trie(paths_of(artifact), prior_of(artifact))
    found = await search(tree, artifact, prompt, beams=4, alpha=0.2, temperature=temperature)
    for hypothesis in found:
        path = tuple(artifact.trie.path(hypothesis.leaf))
        weights = oracles.weights_on(root, path, 0.2)
        steps = oracles.path_scores(checkpoint_of(tree.kind).model, prompt, path, weights, temperature)
        assert hypothesis.score == pytest.approx(sum(steps), abs=1e-4 if tree.tolerance == FP32 else 1.0)


@pytest.mark.parametrize("kind", [kind for kind in MODEL_KINDS if kind.endswith("fp32")])
@pytest.mark.parametrize("alpha", [0.0, 0.2])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
async def test_the_items_their_order_and_scores_are_those_of_transformers_generate(
    artifact: Artifact,
    checkpoint_of: Callable[[str], Checkpoint],
    kind: str,
    alpha: float,
    length_penalty: float,
) -> None:
    root = build_dict_trie(paths_of(artifact), prior_of(artifact))
    settings = ReferenceSettings(beams=10, alpha=alpha, length_penalty=length_penalty, eos_id=artifact.manifest.eos_id)
    async with started(kind, artifact, checkpoint_of) as subject:
        for rows in ((1, 2, 3), (20,), (5, 60, 100, 8)):
            prompt = prompt_of(artifact, *rows)
            expected = reference_generate(checkpoint_of(kind).model, root, prompt, settings)
            found = await search(subject, artifact, prompt, alpha=alpha, length_penalty=length_penalty)
            assert [tuple(artifact.trie.path(hypothesis.leaf)) for hypothesis in found] == expected.paths
            assert [hypothesis.score for hypothesis in found] == pytest.approx(expected.scores, abs=1e-4)


async def test_a_search_takes_fewer_calls_than_tokens(
    tree: Subject, artifact: Artifact, checkpoint_of: Callable[[str], Checkpoint]
) -> None:
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    hook = checkpoint_of(tree.kind).model.register_forward_pre_hook(count)
    try:
        found = await search(tree, artifact, prompt_of(artifact, 1, 2, 3))
    finally:
        hook.remove()
    assert calls < max(len(hypothesis.steps) for hypothesis in found)
