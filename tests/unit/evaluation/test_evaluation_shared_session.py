"""Many settings from one session of the model give what each alone would."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from subjects import expand_everything

from igd_core.engines.embedded.engine import TreeEngine
from igd_core.engines.fake import FakeEngine
from igd_core.errors import EngineError, InputError
from igd_core.evaluation.decode import RowDecoder
from igd_core.evaluation.methods import DecodingSetting, decoding_settings, with_mixings
from igd_core.ids import ItemIndex, NodeId
from igd_core.scorers.counting import transition_rows
from igd_core.scorers.sparse import SparseScorer
from igd_core.search.normalisation import Normalisation
from igd_core.search.query import Query
from igd_core.search.recommender import Recommender
from igd_core.search.session import Scoring

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from igd_core.artifact import Artifact
    from igd_core.engines.embedded.checkpoint import Checkpoint
    from igd_core.engines.fake import FakeSession
    from igd_core.search.engine import Engine
    from igd_core.search.session import ChildScores

HISTORIES = [[3, 8, 8, 21], [0], list(range(40, 50)), [149, 77, 12, 5]]
SETTINGS = decoding_settings(
    alphas=[0.0, 0.2, 0.4], length_penalties=[0.0, 1.0], beams=[4, 10], seen=["allowed", "excluded"]
)


def _engine(kind: str, checkpoint_of: Callable[[str], Checkpoint]) -> Engine:
    return FakeEngine() if kind == "fake" else TreeEngine(checkpoint_of("llama-fp32"))


async def _alone(recommender: Recommender, history: Sequence[ItemIndex], setting: DecodingSetting) -> tuple[int, ...]:
    query = Query(
        history=history,
        k=setting.beams,
        beams=setting.beams,
        alpha=setting.alpha,
        length_penalty=setting.length_penalty,
        forced_weight=setting.forced_weight,
        normalise=setting.scored.normalise,
        temperature=setting.scored.temperature,
        gamma=setting.mixing.gamma,
        mixture=setting.mixing.mixture,
        exclude_seen=setting.seen == "excluded",
    )
    return tuple(found.item for found in (await recommender.recommend(query)).items)


def _normalised(*ways: Normalisation) -> list[DecodingSetting]:
    return decoding_settings(
        alphas=[0.0, 0.2], length_penalties=[0.0, 1.0], beams=[6], seen=["allowed", "excluded"], scored=ways
    )


OVER_VOCABULARY, WARM = Normalisation(), Normalisation(temperature=0.5)
OVER_CHILDREN = [Normalisation(normalise="children", temperature=each) for each in (1.0, 0.5)]
UNMIXED = decoding_settings(
    alphas=[0.0, 0.2],
    length_penalties=[0.0],
    beams=[6],
    seen=["allowed", "excluded"],
    scored=[OVER_VOCABULARY, *OVER_CHILDREN[:1]],
)
MIXED = with_mixings(UNMIXED, gammas=[0.0, 0.4], mixtures=["log-linear", "linear"])


@pytest.fixture(scope="module")
def artifact(artifact: Artifact) -> Artifact:
    """With a scorer that knows what follows every second item."""
    rows = transition_rows([np.arange(0, 150, 2, dtype=np.int32)], num_items=150, most=5)
    return replace(artifact, scorer=SparseScorer(rows=rows, decay=0.5, backoff=1.0, fingerprint="twos"))


def test_a_linear_mixture_is_of_scores_over_children_and_gamma_0_is_one_setting() -> None:
    names = [each.name for each in MIXED]
    assert len(set(names)) == len(names) / 2  # seen items allowed, and excluded
    assert not any("mixture=linear" in name and "normalise=children" not in name for name in names)
    assert sum("gamma" not in name for name in names) == len(UNMIXED)
    assert {each.known_as for each in MIXED if each.mixing.gamma} == {""}
    with pytest.raises(InputError, match="mixtures: linear is of probabilities over the children"):
        with_mixings(SETTINGS, gammas=[0.5], mixtures=["linear"])
    with pytest.raises(InputError, match=r"gammas: 1.5 is not in 0..1"):
        with_mixings(SETTINGS, gammas=[1.5], mixtures=["log-linear"])


@pytest.mark.parametrize("kind", ["fake", "tree"])
@pytest.mark.parametrize(
    "settings",
    [SETTINGS, _normalised(WARM, *OVER_CHILDREN), _normalised(*OVER_CHILDREN), MIXED],
    ids=["method", "both", "children", "mixed"],
)
async def test_every_setting_gives_what_it_gives_alone(
    kind: str, settings: list[DecodingSetting], artifact: Artifact, checkpoint_of: Callable[[str], Checkpoint]
) -> None:
    engine = _engine(kind, checkpoint_of)
    await engine.load(artifact)
    decoder, recommender = RowDecoder(engine, artifact, settings), Recommender(artifact, engine)
    different = set()
    for history in HISTORIES:
        rows = [ItemIndex(item) for item in history]
        answer = await decoder.answer(rows)
        for setting, found in zip(settings, answer.lists, strict=True):
            assert found == await _alone(recommender, rows, setting), setting
        different.add(answer.lists[0] != answer.lists[1])
    assert engine.stats().sessions == 0
    await engine.close()
    assert True in different  # alpha changes something, or this test would show nothing


async def test_one_session_cannot_serve_two_temperatures_over_the_vocabulary(artifact: Artifact) -> None:
    engine = FakeEngine()
    await engine.load(artifact)
    with pytest.raises(InputError, match=r"temperature: 0\.5, 1; one run scores over the vocabulary at one"):
        await RowDecoder(engine, artifact, _normalised(OVER_VOCABULARY, WARM)).answer([ItemIndex(3)])


async def test_normalised_over_children_alone_no_forced_token_is_asked_about(artifact: Artifact) -> None:
    asked: list[Scoring] = []

    class Recording(FakeEngine):
        async def open(self, version: str, prompt_ids: Sequence[int], scoring: Scoring) -> FakeSession:
            asked.append(scoring)
            return await super().open(version, prompt_ids, scoring)

    engine = Recording()
    await engine.load(artifact)
    for settings in (_normalised(*OVER_CHILDREN), _normalised(OVER_VOCABULARY, *OVER_CHILDREN)):
        await RowDecoder(engine, artifact, settings).answer([ItemIndex(3)])
    assert [scoring.normalise for scoring in asked] == ["children", "vocabulary"]


async def test_without_forced_tokens_a_title_is_scored_by_its_decisions_alone(
    artifact: Artifact, checkpoint_of: Callable[[str], Checkpoint]
) -> None:
    engine = TreeEngine(checkpoint_of("llama-fp32"))
    await engine.load(artifact)
    settings = decoding_settings(
        alphas=[0.3], length_penalties=[0.0], beams=[150], seen=["allowed", "excluded"], forced_weights=[0.0]
    )
    trie, history = artifact.trie, [ItemIndex(3), ItemIndex(8)]
    session = await engine.open(artifact.version, artifact.prompt(history), Scoring(keep=400, alpha=0.3))
    scored = await expand_everything(session, artifact, together=True)
    await session.close()
    by_hand = np.zeros(trie.num_leaves)
    for leaf in range(trie.num_leaves):
        for edge in trie.edges_to(NodeId(int(trie.leaf_node[leaf]))):
            parent = NodeId(int(trie.parents(np.array([edge + 1]))[0]))
            if len(trie.children(parent)) > 1:
                by_hand[leaf] += scored[parent].scores[scored[parent].edges.index(edge)]
    best = np.argsort(-by_hand, kind="stable")
    answer = await RowDecoder(engine, artifact, settings).answer(history)
    for found, barred in zip(answer.lists, ([], history), strict=True):
        expected = [leaf for leaf in best if not set(trie.items_of(leaf).tolist()) <= set(barred)]
        np.testing.assert_allclose(
            by_hand[[int(artifact.leaf_of_item[item]) for item in found]], by_hand[expected], atol=1e-4
        )
    await engine.close()


class CountingEngine(FakeEngine):
    """Counts how often each node is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []
        self.calls = 0
        self.fails_at: int | None = None

    async def open(self, version: str, prompt_ids: Sequence[int], scoring: Scoring) -> FakeSession:
        session = await super().open(version, prompt_ids, scoring)
        expand = session.expand

        async def counted(nodes: Sequence[NodeId]) -> Mapping[NodeId, ChildScores]:
            self.calls += 1
            if self.calls == self.fails_at:
                raise EngineError("the model failed")
            scored = await expand(nodes)
            self.asked += scored
            return scored

        session.expand = counted  # type: ignore[method-assign]
        return session


async def test_no_node_is_computed_twice_and_settings_share_rounds(artifact: Artifact) -> None:
    engine = CountingEngine()
    await engine.load(artifact)
    history = [ItemIndex(3), ItemIndex(8)]
    await RowDecoder(engine, artifact, SETTINGS).answer(history)
    assert len(engine.asked) == len(set(engine.asked))
    together, engine.calls, engine.asked = engine.calls, 0, []
    most = 0
    for setting in SETTINGS:
        before = engine.calls
        await RowDecoder(engine, artifact, [setting]).answer(history)
        most = max(most, engine.calls - before)
    assert together <= most + 3 < engine.calls / 4


async def test_a_failure_of_the_model_ends_every_search_and_the_session(artifact: Artifact) -> None:
    engine = CountingEngine()
    await engine.load(artifact)
    engine.fails_at = 2
    with pytest.raises(EngineError, match="the model failed"):
        await RowDecoder(engine, artifact, SETTINGS).answer([ItemIndex(3)])
    assert engine.stats().sessions == 0


async def test_cancelling_a_row_leaves_no_session_behind(artifact: Artifact) -> None:
    engine = FakeEngine(delay_s=30.0)
    await engine.load(artifact)
    task = asyncio.ensure_future(RowDecoder(engine, artifact, SETTINGS).answer([ItemIndex(3)]))
    while engine.stats().sessions == 0:  # noqa: ASYNC110 - the engine tells nobody
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.stats().sessions == 0


async def test_an_empty_history_is_answered_with_popularity(artifact: Artifact) -> None:
    engine = FakeEngine()
    await engine.load(artifact)
    answer = await RowDecoder(engine, artifact, SETTINGS[:1]).answer([])
    recommender = Recommender(artifact, engine)
    popular = recommender.popular(recommender.resolve(Query(history=[], k=4)))
    assert answer.lists[0] == tuple(found.item for found in popular.items)
    assert answer.rounds == 0


async def test_a_history_that_holds_everything_leaves_nothing_to_recommend(small_artifact: Artifact) -> None:
    engine = FakeEngine()
    await engine.load(small_artifact)
    everything = [ItemIndex(row) for row in range(24)]
    settings = decoding_settings(alphas=[0.2], length_penalties=[0.0], beams=[3], seen=["allowed", "excluded"])
    allowed, excluded = (await RowDecoder(engine, small_artifact, settings).answer(everything)).lists
    assert (len(allowed), len(excluded)) == (3, 0)
