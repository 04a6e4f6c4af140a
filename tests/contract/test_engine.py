"""What every engine promises (`igd_core.search.engine`): one suite, run against each implementation.

bfloat16 keeps 8 bits: where fp32 engines must agree to 1e-5 (nats, and of the value), it must to hundredths of a nat.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import numpy as np
import oracles
import pytest
from factories import MODEL_KINDS, make_catalogue
from subjects import (
    FP32,
    Subject,
    assert_same_scores,
    busy,
    expand_everything,
    leaves_of,
    paths_of,
    prompt_of,
    search,
    started,
    unscored_below,
)

from igd_core.artifact import BuildOptions, build_artifact
from igd_core.errors import EngineClosed, EngineError
from igd_core.ids import ROOT, NodeId
from igd_core.search.session import Scoring

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from igd_core.artifact import Artifact
    from igd_core.catalogue.tokenization import TitleTokenizer
    from igd_core.engines.embedded.checkpoint import Checkpoint
    from igd_core.search.session import ChildScores

KINDS = ("fake", *MODEL_KINDS)


@pytest.fixture(params=KINDS)
async def subject(
    request: pytest.FixtureRequest, artifact: Artifact, checkpoint_of: Callable[[str], Checkpoint]
) -> AsyncIterator[Subject]:
    async with started(request.param, artifact, checkpoint_of) as made:
        yield made


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


async def test_children_come_best_first_weighted_over_the_full_vocabulary(subject: Subject, artifact: Artifact) -> None:
    prompt = prompt_of(artifact, 1, 2)
    session = await subject.engine.open(artifact.version, prompt, Scoring(alpha=0.6, keep=500))
    scored = await expand_everything(session, artifact, together=True)
    for scores in scored.values():
        assert np.all(np.diff(scores.scores) <= 0)
        weights = 1.0 - 0.6 * artifact.gains.sibling_gain[scores.edges].astype(np.float64)
        np.testing.assert_allclose(scores.scores, scores.logprobs * weights, atol=FP32, rtol=0)
        assert np.exp(scores.logprobs).sum() <= 1 + 1e-6, "probabilities over the full vocabulary"
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
        assert sorted(scores.edges) == leaves.open_edges(artifact.trie, node).tolist()
        everything = dict(zip(free[node].edges, free[node].scores, strict=True))
        expected = [everything[edge] for edge in scores.edges]
        np.testing.assert_allclose(scores.scores, expected, atol=3 * subject.tolerance, rtol=0)


@pytest.mark.parametrize("allowed", [None, range(0, 150, 7)], ids=["all items", "few allowed"])
async def test_forced_tokens_may_be_left_out_where_they_do_not_count_and_nothing_else(
    subject: Subject, artifact: Artifact, allowed: range | None
) -> None:
    prompt, leaves = prompt_of(artifact, 3, 4), leaves_of(artifact, allowed=allowed)
    whole, decisions = [
        await expand_everything(
            await subject.engine.open(artifact.version, prompt, Scoring(keep=500, leaves=leaves, forced=forced)),
            artifact,
            together=True,
        )
        for forced in (True, False)
    ]
    assert whole.keys() == decisions.keys()
    left_out = {node for node, scores in decisions.items() if np.isnan(scores.logprobs).any()}
    assert left_out
    for node in left_out:
        assert len(artifact.trie.children(node)) == 1, "what only the filter forces still counts"
        assert decisions[node].edges == whole[node].edges
        assert decisions[node].scores == [0.0]
    counted = decisions.keys() - left_out
    assert_same_scores(
        {node: whole[node] for node in counted}, {node: decisions[node] for node in counted}, subject.tolerance
    )


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


async def test_an_engine_says_which_model_it_runs(subject: Subject) -> None:
    assert subject.engine.model_id == subject.kind
