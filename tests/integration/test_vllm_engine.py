"""A real vLLM on the CPU: exact against the embedded engine, alone and in a crowd; nothing hangs when it dies.

One engine serves the module, since a start takes half a minute of both cores. The last tests end theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import os
import random
import shutil
import signal
import time
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest
import pytest_asyncio
import torch
from adapters import save_adapter
from factories import EOS, make_catalogue
from prometheus_client import CollectorRegistry, generate_latest
from subjects import (
    Subject,
    assert_same_scores,
    expand_everything,
    leaves_of,
    paths_of,
    prompt_of,
    search,
    unscored_below,
)
from vllm_parts import GIVEN, TOLERANCE, is_called, require_vllm, save_tiny_llama

require_vllm()

from vllm import SamplingParams  # noqa: E402
from vllm.exceptions import VLLMValidationError  # noqa: E402
from vllm.inputs import tokens_input  # noqa: E402

from igd_core.artifact import BuildOptions, build_artifact  # noqa: E402
from igd_core.bench.vllm import engine_steps  # noqa: E402
from igd_core.bench.vllm_ways import driven, our_way, vllms_way  # noqa: E402
from igd_core.catalogue.tokenization import TitleTokenizer  # noqa: E402
from igd_core.engines.embedded.checkpoint import load_checkpoint  # noqa: E402
from igd_core.engines.embedded.engine import TreeEngine  # noqa: E402
from igd_core.engines.open import EngineOptions, open_beside  # noqa: E402
from igd_core.engines.tuned_prompt import TunedPrompt  # noqa: E402
from igd_core.engines.vllm.engine import VLLMEngine  # noqa: E402
from igd_core.engines.vllm.metrics import VLLMMetrics  # noqa: E402
from igd_core.engines.vllm.options import VLLMOptions  # noqa: E402
from igd_core.engines.vllm.question import Ask, NodeQuestion, Round, RoundAnswers  # noqa: E402
from igd_core.engines.vllm.session import round_params  # noqa: E402
from igd_core.errors import ArtifactError, EngineClosed, EngineError, ModelError  # noqa: E402
from igd_core.evaluation.decode import RowDecoder  # noqa: E402
from igd_core.evaluation.methods import DecodingSetting, Seen  # noqa: E402
from igd_core.ids import ROOT, ItemIndex, NodeId  # noqa: E402
from igd_core.scorers.mass import ItemMass  # noqa: E402
from igd_core.search.beam import BeamSearch  # noqa: E402
from igd_core.search.fairness import Turn  # noqa: E402
from igd_core.search.normalisation import Normalisation  # noqa: E402
from igd_core.search.prior import LeafCounts, Mixing, PriorMixer, TriePrior  # noqa: E402
from igd_core.search.session import Scoring  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
    from pathlib import Path

    from igd_core.artifact import Artifact
    from igd_core.scorers.options import Mixture
    from igd_core.search.beam import Hypothesis
    from igd_core.search.normalisation import Normalise

needs_worker = pytest.mark.skipif(torch.cuda.is_available(), reason="on one GPU the engine's process is the worker")
pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),
    # A vLLM that does not start leaves its ZeroMQ context to the garbage collector.
    pytest.mark.filterwarnings("ignore:Exception ignored in. <function Context.__del__"),
]

BESIDE = (None, "narrow")
ALL = 400  # children of any node here, and the most that an engine for 200 beams returns
SEEN: tuple[Seen, ...] = ("allowed", "excluded")
OPTIONS: dict[str, Any] = {"kv_cache_bytes": 16 << 20, "max_num_seqs": 64, "max_num_batched_tokens": 512, **GIVEN}


@pytest.fixture(scope="module")
def checkpoint_dir(
    tmp_path_factory: pytest.TempPathFactory, definition: dict[str, Any], tokenizer: TitleTokenizer, artifact: Artifact
) -> Path:
    directory = save_tiny_llama(tmp_path_factory.mktemp("checkpoint"), definition, tokenizer)
    TunedPrompt.of(artifact.manifest.template).write(directory)
    return directory


@pytest.fixture(scope="module")
def other_artifact(tokenizer: TitleTokenizer) -> Artifact:
    return build_artifact(make_catalogue(60, seed=9), tokenizer, BuildOptions(name="other"))


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, checkpoint_dir: Path) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {
        "narrow": save_adapter(root / "narrow", checkpoint_dir, seed=1, rank=4),
        "attention": save_adapter(root / "attention", checkpoint_dir, seed=2, rank=12, targets=["q_proj", "v_proj"]),
    }


@contextlib.asynccontextmanager
async def started(directory: Path, *artifacts: Artifact, **options: Any) -> AsyncIterator[Subject]:
    engine = await asyncio.to_thread(VLLMEngine.start, VLLMOptions(model=directory, **{**OPTIONS, **options}))
    try:
        for artifact in artifacts:
            await engine.load(artifact)
        yield Subject(kind="vllm", engine=engine, tolerance=TOLERANCE)
    finally:
        await asyncio.wait_for(engine.close(), 60)


@pytest.fixture(scope="module", autouse=True)
def _quiet_ends() -> Iterator[None]:
    """A vLLM that was killed leaves its ZeroMQ context to the garbage collector; let it be collected here."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def vllm(checkpoint_dir: Path, artifact: Artifact, adapters: dict[str, Path]) -> AsyncIterator[Subject]:
    async with started(checkpoint_dir, artifact, adapters=adapters, published_adapters=2, max_lora_rank=16) as subject:
        yield subject


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tree(
    checkpoint_dir: Path, artifact: Artifact, other_artifact: Artifact, adapters: dict[str, Path]
) -> AsyncIterator[Subject]:
    engine = TreeEngine(load_checkpoint(checkpoint_dir, device="cpu", adapters=adapters))
    await engine.load(artifact)
    await engine.load(other_artifact)
    yield Subject(kind="tree", engine=engine, tolerance=TOLERANCE)
    await engine.close()


def engine_of(subject: Subject) -> VLLMEngine:
    assert isinstance(subject.engine, VLLMEngine)
    return subject.engine


def assert_same_answers(found: list[Hypothesis], expected: list[Hypothesis]) -> None:
    assert [hypothesis.leaf for hypothesis in found] == [hypothesis.leaf for hypothesis in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.score == pytest.approx(other.score, abs=TOLERANCE)
        for step, expected_step in zip(one.steps, other.steps, strict=True):
            assert step.logprob == pytest.approx(expected_step.logprob, abs=TOLERANCE)


FILTERS: dict[str, dict[str, Any]] = {
    "all items": {},
    "half barred": {"barred": range(0, 150, 2)},
    "few allowed": {"allowed": [3, 4, 5, 60, 61, 62, 63]},
    "one allowed": {"allowed": [7]},
}


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize(("alpha", "forced_weight"), [(0.0, 1.0), (0.2, 1.0), (1.0, 1.0), (0.2, 0.0)])
async def test_items_and_scores_are_the_embedded_engines(
    vllm: Subject, tree: Subject, artifact: Artifact, alpha: float, forced_weight: float, name: str
) -> None:
    for rows in ((1, 2, 3), (20,), (5, 60, 100, 8)):
        scoring: dict[str, Any] = {
            "alpha": alpha,
            "forced_weight": forced_weight,
            "leaves": leaves_of(artifact, **FILTERS[name]),
        }
        found, expected = [
            await search(subject, artifact, prompt_of(artifact, *rows), **scoring) for subject in (vllm, tree)
        ]
        assert_same_answers(found, expected)


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize(
    ("mixture", "normalise"), [("log-linear", "vocabulary"), ("log-linear", "children"), ("linear", "children")]
)
async def test_a_prior_is_mixed_in_before_children_are_left_out_as_the_embedded_engine_does(
    vllm: Subject, tree: Subject, artifact: Artifact, name: str, mixture: Mixture, normalise: Normalise
) -> None:
    """Two beams keep four children: most first tokens are left out by vLLM's worker, which ranks with the prior."""
    mass = ItemMass(background=0.3, items=np.arange(40, 110, 7), mass=np.full(10, 0.07))
    leaves, counts = leaves_of(artifact, **FILTERS[name]), LeafCounts.of(artifact)
    assert len(artifact.trie.children(ROOT)) > 4
    for rows, gamma, beams in (((1, 2, 3), 0.3, 2), ((20,), 0.9, 2)):
        mixing = Mixing(gamma=gamma, mixture=mixture)

        async def mixed(subject: Subject, mixing: Mixing, rows: tuple[int, ...], beams: int) -> list[Hypothesis]:
            mixer = PriorMixer(TriePrior(counts, mass, leaves), mixing)
            scoring: dict[str, Any] = {"leaves": leaves, "alpha": 0.2, "normalise": normalise, "mixer": mixer}
            prompt = prompt_of(artifact, *rows)
            return await search(subject, artifact, prompt, beams=beams, forced_weight=mixing.model_weight, **scoring)

        found = [await mixed(subject, mixing, rows, beams) for subject in (vllm, tree)]
        assert [each.leaf for each in found[0]] == [each.leaf for each in found[1]]
        assert [each.score for each in found[0]] == pytest.approx([each.score for each in found[1]], abs=1e-3)


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("weights", [{"alpha": 0.0}, {"alpha": 0.2, "temperature": 0.7}], ids=["plain", "weighted"])
async def test_over_children_items_and_scores_are_the_embedded_engines_and_no_forced_token_is_asked_about(
    vllm: Subject,
    tree: Subject,
    artifact: Artifact,
    monkeypatch: pytest.MonkeyPatch,
    weights: dict[str, float],
    name: str,
) -> None:
    asked: list[SamplingParams] = []
    add_request = engine_of(vllm).llm.add_request

    def recorded(request_id: str, prompt: Any, params: SamplingParams, **more: Any) -> Any:
        asked.append(params)
        return add_request(request_id, prompt, params, **more)

    monkeypatch.setattr(engine_of(vllm).llm, "add_request", recorded)
    scoring: dict[str, Any] = {"normalise": "children", "leaves": leaves_of(artifact, **FILTERS[name]), **weights}
    for rows in ((1, 2, 3), (20,), (5, 60, 100, 8)):
        prompt = prompt_of(artifact, *rows)
        assert_same_answers(*[await search(each, artifact, prompt, **scoring) for each in (vllm, tree)])
    assert asked
    asks = [ask for params in asked for ask in rounds_of(params).asks]
    assert {ask.question.forced for ask in asks} == {0}
    assert all(ask.question.over_children for ask in asks)
    assert all(len(artifact.trie.children(NodeId(ask.question.node))) > 1 for ask in asks)


def rounds_of(params: SamplingParams) -> Round:
    found = Round.from_extra_args(params.extra_args)
    assert found is not None
    return found


async def test_over_children_the_probabilities_of_all_titles_sum_to_one(vllm: Subject, artifact: Artifact) -> None:
    for rows in ((1, 2, 3), (20,)):
        found = await search(
            vllm, artifact, prompt_of(artifact, *rows), beams=len(artifact.catalogue), alpha=0.0, normalise="children"
        )
        assert len(found) == artifact.trie.num_leaves
        assert sum(each.probability for each in found) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
async def test_titles_ranked_by_their_decisions_need_no_log_probability_of_a_forced_token(
    vllm: Subject, tree: Subject, artifact: Artifact, temperature: float
) -> None:
    for leaves in (leaves_of(artifact), leaves_of(artifact, allowed=range(0, 150, 7))):
        scoring: dict[str, Any] = {"forced_weight": 0.0, "leaves": leaves, "temperature": temperature}
        prompt = prompt_of(artifact, 2, 9)
        found = await search(vllm, artifact, prompt, forced=False, **scoring)
        expected = await search(tree, artifact, prompt, forced=True, **scoring)
        assert [hypothesis.leaf for hypothesis in found] == [hypothesis.leaf for hypothesis in expected]
        for one, other in zip(found, expected, strict=True):
            assert one.score == pytest.approx(other.score, abs=TOLERANCE)
            for step, expected_step in zip(one.steps, other.steps, strict=True):
                if step.logprob is not None:
                    assert step.logprob == pytest.approx(expected_step.logprob, abs=TOLERANCE)
        assert any(step.logprob is None for hypothesis in found for step in hypothesis.steps)


async def test_adapters_and_the_model_itself_share_a_step_and_each_answers_as_in_the_embedded_engine(
    vllm: Subject, tree: Subject, artifact: Artifact
) -> None:
    requests = [(row, adapter) for row in range(8) for adapter in (None, "narrow", "attention")]
    answers = []
    for subject in (vllm, tree):
        searches = [
            search(subject, artifact, prompt_of(artifact, row, 40), adapter=adapter) for row, adapter in requests
        ]
        answers.append(await asyncio.gather(*searches))
    for found, expected in zip(*answers, strict=True):
        assert_same_answers(found, expected)
    leaves = [tuple(hypothesis.leaf for hypothesis in found) for found in answers[0][:3]]
    assert len(set(leaves)) == 3, "adapters that change nothing would prove nothing"


async def joined(vllm: Subject, checkpoint_dir: Path, directory: Path, seed: int, artifact: Artifact) -> Subject:
    """A published adapter on the engine that runs, with a version loaded."""
    folder = save_adapter(directory / f"seed-{seed}", checkpoint_dir, seed=seed, rank=8)
    options = EngineOptions(model=checkpoint_dir, engine="vllm", name=f"seed-{seed}")
    engine: Any = (await asyncio.to_thread(open_beside, options, vllm.engine, merged=folder)).engine
    await engine.load(artifact)
    return Subject(kind="vllm", engine=engine, tolerance=TOLERANCE)


async def test_a_published_adapter_joins_answers_as_in_the_embedded_engine_and_leaves(
    vllm: Subject, tree: Subject, artifact: Artifact, tokenizer: TitleTokenizer, checkpoint_dir: Path, tmp_path: Path
) -> None:
    """While the model itself and its own adapters answer beside it; its place is free afterwards, however often."""
    late = build_artifact(make_catalogue(70, seed=11), tokenizer, BuildOptions(name="late"))
    expected_beside = {each: await search(tree, artifact, prompt_of(artifact, 3, 40), adapter=each) for each in BESIDE}

    async def beside() -> None:
        for adapter, expected in expected_beside.items():
            assert_same_answers(await search(vllm, artifact, prompt_of(artifact, 3, 40), adapter=adapter), expected)

    leaves = set()
    for seed in (21, 22, 23, 24):  # more than there are places
        published = await joined(vllm, checkpoint_dir, tmp_path, seed, late)
        embedded = TreeEngine(
            load_checkpoint(checkpoint_dir, device="cpu", adapters={"late": tmp_path / f"seed-{seed}"})
        )
        await embedded.load(late)
        own = Subject(kind="tree", engine=embedded, tolerance=TOLERANCE)
        prompts = [prompt_of(late, row, 40) for row in range(4)]
        expected = [await search(own, late, prompt, adapter="late") for prompt in prompts]
        found, _ = await asyncio.gather(asyncio.gather(*(search(published, late, each) for each in prompts)), beside())
        for one, other in zip(found, expected, strict=True):
            assert_same_answers(one, other)
        leaves.add(tuple(hypothesis.leaf for hypothesis in found[0]))
        assert published.engine.identity.checkpoint == vllm.engine.identity.checkpoint
        assert published.engine.identity.fingerprint() != vllm.engine.identity.fingerprint()
        await published.engine.unload(late.version)
        await published.engine.close()
        await embedded.close()
        with pytest.raises(EngineError, match="has left the engine"):
            await published.engine.open(late.version, [5], Scoring())
    assert len(leaves) > 1, "adapters that change nothing would prove nothing"
    engine: Any = vllm.engine
    loaded = await engine.llm.collective_rpc("list_loras")
    assert [set(of_worker) for of_worker in loaded] == [{1, 2}], "those that it was started with"
    await beside()


async def test_a_published_adapter_without_a_place_or_that_vllm_cannot_run_is_refused(
    vllm: Subject, tree: Subject, artifact: Artifact, checkpoint_dir: Path, tmp_path: Path
) -> None:
    taken = [await joined(vllm, checkpoint_dir, tmp_path, seed, artifact) for seed in (31, 32)]
    with pytest.raises(ModelError, match="all 2 places for published adapters are taken"):
        await joined(vllm, checkpoint_dir, tmp_path, 33, artifact)
    options = EngineOptions(model=checkpoint_dir, engine="vllm", name="odd")
    wide = save_adapter(tmp_path / "wide", checkpoint_dir, seed=1, rank=32)
    with pytest.raises(ModelError, match="a rank of 32; vLLM was started with max_lora_rank 16"):
        await asyncio.to_thread(open_beside, options, vllm.engine, merged=wide)
    with pytest.raises(ModelError, match="runs the one checkpoint that it was started with"):
        await asyncio.to_thread(open_beside, options, vllm.engine)
    broken = save_adapter(tmp_path / "broken", checkpoint_dir, seed=1)
    for subject in taken:
        await subject.engine.close()
    made: Any = (await asyncio.to_thread(open_beside, options, vllm.engine, merged=broken)).engine
    (broken / "adapter_model.safetensors").write_bytes(b"not what was hashed")
    with pytest.raises(ModelError):
        await made.load(artifact)
    await made.close()
    after = await joined(vllm, checkpoint_dir, tmp_path, 34, artifact)  # its place is free again
    await after.engine.close()
    expected = await search(tree, artifact, prompt_of(artifact, 3, 40))
    assert_same_answers(await search(vllm, artifact, prompt_of(artifact, 3, 40)), expected)


async def test_an_adapter_that_is_not_there_is_refused(vllm: Subject, artifact: Artifact) -> None:
    with pytest.raises(EngineError, match="adapter 'wide': this engine has narrow, attention"):
        await vllm.engine.open(artifact.version, [5], Scoring(adapter="wide"))


@pytest.mark.parametrize("barred", [range(0), range(0, 150, 2)], ids=["all items", "half barred"])
@pytest.mark.parametrize("alpha", [0.0, 0.2])
async def test_forty_histories_at_once_are_answered_as_by_the_embedded_engine_one_by_one(
    vllm: Subject, tree: Subject, artifact: Artifact, alpha: float, barred: range
) -> None:
    scoring: dict[str, Any] = {"alpha": alpha, "leaves": leaves_of(artifact, barred=barred)}
    prompts = histories_of(artifact, 40)
    found = await asyncio.gather(*(search(vllm, artifact, prompt, **scoring) for prompt in prompts))
    for answer, prompt in zip(found, prompts, strict=True):
        assert_same_answers(answer, await search(tree, artifact, prompt, **scoring))


def histories_of(artifact: Artifact, count: int) -> list[list[int]]:
    rng = random.Random(11)
    return [prompt_of(artifact, *rng.sample(range(150), rng.randint(1, 6))) for _ in range(count)]


@pytest.mark.parametrize("adapter", [None, "narrow"])
async def test_rows_are_evaluated_as_on_the_embedded_engine(
    vllm: Subject, tree: Subject, artifact: Artifact, adapter: str | None
) -> None:
    settings = [
        DecodingSetting(alpha=alpha, length_penalty=penalty, beams=10, seen=seen)
        for alpha in (0.0, 0.2, 0.4)
        for penalty in (0.0, 1.0)
        for seen in SEEN
    ]
    settings.append(replace(settings[0], scored=Normalisation(normalise="children", temperature=0.5)))
    rng = random.Random(12)
    histories = [[ItemIndex(row) for row in rng.sample(range(150), rng.randint(1, 6))] for _ in range(20)]
    answers = [
        await asyncio.gather(*(decoder.answer(history) for history in histories))
        for decoder in (RowDecoder(subject.engine, artifact, settings, adapter=adapter) for subject in (vllm, tree))
    ]
    for found, expected in zip(*answers, strict=True):
        assert found.lists == expected.lists
    assert len({answer.lists for answer in answers[0]}) == 20
    assert any(len(set(answer.lists)) > 2 for answer in answers[0]), "settings that change nothing would prove nothing"


@pytest.mark.parametrize("temperature", [0.5, 2.0])
async def test_temperature_divides_the_logits_of_forced_tokens_too(
    vllm: Subject, tree: Subject, artifact: Artifact, temperature: float
) -> None:
    found, expected = [
        await search(subject, artifact, prompt_of(artifact, 4, 5), temperature=temperature) for subject in (vllm, tree)
    ]
    assert_same_answers(found, expected)


@pytest.mark.parametrize("keep", [1, 3, 400])
async def test_every_node_of_the_trie_scores_as_in_the_embedded_engine(
    vllm: Subject, tree: Subject, artifact: Artifact, keep: int
) -> None:
    prompt, leaves = prompt_of(artifact, 1, 2), leaves_of(artifact, barred=range(0, 150, 3))
    scored = []
    for subject in (vllm, tree):
        session = await subject.engine.open(artifact.version, prompt, Scoring(keep=keep, alpha=0.6, leaves=leaves))
        scored.append(await expand_everything(session, artifact, together=True))
        await session.close()
    if keep == ALL:
        assert_same_scores(scored[0], scored[1], TOLERANCE)
    else:  # at equal scores either child may be kept
        for node in scored[0].keys() & scored[1].keys():
            np.testing.assert_allclose(scored[0][node].scores, scored[1][node].scores, atol=TOLERANCE)


async def test_a_round_is_one_step_of_the_engine(vllm: Subject, artifact: Artifact) -> None:
    prompt = prompt_of(artifact, 101, 102, 103)
    session = await vllm.engine.open(artifact.version, prompt, Scoring(keep=ALL))
    before = engine_steps()
    scored = dict(await session.expand([ROOT]))
    scored.update(await session.expand(unscored_below(artifact, scored)[:20]))
    assert engine_steps() - before == session.stats.rounds == 2
    await session.close()


async def test_the_bench_counts_what_vllm_itself_counts_and_ours_asks_for_least(
    vllm: Subject, artifact: Artifact
) -> None:
    engine, prompt = engine_of(vllm), prompt_of(artifact, 7, 8, 9)
    lengths: dict[tuple[int, ...], int] = {}
    ways = {
        "ours": our_way(engine, artifact, beams=4, alpha=0.2),
        "decisions": our_way(engine, artifact, beams=4, alpha=0.2, forced_weight=0.0),
        "tokenwise": our_way(engine, artifact, beams=4, alpha=0.2, tokenwise=True),
        "vllm": vllms_way(engine, artifact, beams=4, max_tokens=lengths),
    }
    costs, steps = {}, {}
    for name, way in ways.items():
        assert await engine.forget_prompts()
        before = engine_steps()
        costs[name] = (await driven(way, [prompt], concurrency=1))[0]
        steps[name] = engine_steps() - before
        lengths.setdefault(tuple(prompt), costs[name].longest_path)
    ours, decisions, tokenwise, theirs = costs.values()
    assert decisions.requests < ours.requests < tokenwise.requests
    assert ours.rounds == steps["ours"] < tokenwise.rounds
    assert theirs.rounds == ours.longest_path == tokenwise.longest_path
    assert theirs.requests == theirs.generated_tokens
    assert len(prompt) <= ours.distinct_tokens <= ours.computed_tokens
    assert (ours.answers, theirs.answers, ours.not_items) == (4, 4, 0)
    assert theirs.not_items > 0, "nothing tells a random model what an item is"


def ends_shortly_before_a_block_does(artifact: Artifact, start: int) -> list[int]:
    """A prompt whose forced tokens fall into a block that is cached once they have been asked for."""
    prompts = (prompt_of(artifact, *range(row, row + shown)) for shown in (2, 3, 4) for row in range(start, start + 20))
    return next(prompt for prompt in prompts if 22 <= len(prompt) % 32 <= 28)


async def test_a_prompt_that_comes_back_costs_less_and_no_more_rounds(vllm: Subject, artifact: Artifact) -> None:
    prompt = ends_shortly_before_a_block_does(artifact, 100)
    first: list[Any] = []
    again: list[Any] = []
    for stats in (first, again):
        session = await vllm.engine.open(artifact.version, prompt, Scoring(keep=ALL))
        stats.append(await expand_everything(session, artifact, together=True))
        stats.append(session.stats)
        await session.close()
    assert_same_scores(first[0], again[0], TOLERANCE)
    assert again[1].rounds == first[1].rounds
    assert first[1].model_tokens > again[1].model_tokens
    assert again[1].cached_tokens == (len(prompt) - 1) // 32 * 32


async def test_rows_that_vllm_skipped_and_nobody_remembers_are_asked_for_again(
    vllm: Subject, tree: Subject, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_of(vllm).forced, "get", lambda *_: None)
    prompt = ends_shortly_before_a_block_does(artifact, 120)
    runs = []
    for subject in (vllm, vllm, tree):
        session = await subject.engine.open(artifact.version, prompt, Scoring(keep=ALL))
        runs.append((await expand_everything(session, artifact, together=True), session.stats.rounds))
        await session.close()
    assert runs[1][1] > runs[0][1], "some rows lay in cached blocks"
    assert_same_scores(runs[0][0], runs[2][0], TOLERANCE)
    assert_same_scores(runs[1][0], runs[2][0], TOLERANCE)


async def test_a_crowd_of_mixed_requests_gets_the_answers_that_each_gets_alone(
    vllm: Subject, artifact: Artifact, other_artifact: Artifact
) -> None:
    await vllm.engine.load(other_artifact)
    rng = random.Random(4)
    crowd: list[Callable[[], Coroutine[Any, Any, list[Any]]]] = []
    for number in range(32):
        if number % 4 == 3:
            prompt = [rng.randrange(260) for _ in range(rng.randint(1, 60))]
            crowd.append(functools.partial(ordinary_text, engine_of(vllm), prompt))
            continue
        version = (artifact, other_artifact)[number % 2]
        rows = rng.sample(range(60), rng.randint(1, 5))
        barred = rng.sample(range(60), rng.choice([0, 30]))
        scoring: dict[str, Any] = {"alpha": rng.choice([0.0, 0.2, 0.7]), "leaves": leaves_of(version, barred=barred)}
        prompt = prompt_of(version, *rows)
        crowd.append(functools.partial(search, vllm, version, prompt, **scoring))
    alone = [await request() for request in crowd]
    together = await asyncio.gather(*(request() for request in crowd))
    for number, (one, other) in enumerate(zip(alone, together, strict=True)):
        if number % 4 == 3:
            assert one == other
        else:
            assert_same_answers(other, one)
    await vllm.engine.unload(other_artifact.version)


async def test_a_light_request_is_answered_before_the_heavy_ones_of_another_that_came_first(
    vllm: Subject, artifact: Artifact
) -> None:
    engine, ended = engine_of(vllm), []

    async def one(caller: str, *, beams: int, items: Sequence[int]) -> None:
        turn = Turn(callers=(caller,), cost=beams / 10)
        session = await engine.open(artifact.version, prompt_of(artifact, *items), Scoring(keep=2 * beams, turn=turn))
        try:
            await BeamSearch(artifact.trie, beams=beams).run(session)
        finally:
            await session.close()
        ended.append(caller)

    heavy = [asyncio.create_task(one("heavy", beams=100, items=[number, 2, 3])) for number in range(6)]
    await until(lambda: engine.stats().waiting > 0)
    await asyncio.gather(one("light", beams=5, items=[9, 8]), one("light", beams=5, items=[7, 8]))
    assert ended.count("heavy") <= 1
    await asyncio.gather(*heavy)


async def ordinary_text(engine: VLLMEngine, prompt: list[int], request_id: str | None = None) -> list[int]:
    """What any other user of the same vLLM gets: greedy text, several steps long."""
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, detokenize=False, logprobs=2)
    request_id = request_id or f"text-{random.random()}"
    async for output in engine.llm.generate(tokens_input(prompt), params, request_id):
        tokens = list(output.outputs[0].token_ids)
    return tokens


async def test_versions_come_and_go_under_running_sessions(
    vllm: Subject,
    tree: Subject,
    artifact: Artifact,
    other_artifact: Artifact,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine, prompt = engine_of(vllm), prompt_of(other_artifact, 1, 2)
    with pytest.raises(EngineError, match=f"version '{other_artifact.version}' is not loaded"):
        await engine.open(other_artifact.version, prompt, Scoring())
    await engine.load(other_artifact)
    await engine.load(other_artifact)
    warned = [record.getMessage() for record in caplog.records if record.name == "igd_core.engines.tuned_prompt"]
    assert len(warned) == 1
    assert f"of catalogue other, version {other_artifact.version}" in warned[0]
    assert engine.stats().versions == (artifact.version, other_artifact.version)
    session = await engine.open(other_artifact.version, prompt, Scoring(keep=ALL))
    scored = dict(await session.expand([ROOT]))
    await engine.unload(other_artifact.version)
    await engine.unload(other_artifact.version)
    assert engine.stats().versions == (artifact.version,)
    with pytest.raises(EngineError, match="is not loaded"):
        await engine.open(other_artifact.version, prompt, Scoring())
    scored.update(await session.expand(unscored_below(other_artifact, scored)))
    other_session = await tree.engine.open(other_artifact.version, prompt, Scoring(keep=ALL))
    expected = dict(await other_session.expand([ROOT]))
    expected.update(await other_session.expand(unscored_below(other_artifact, expected)))
    assert_same_scores(scored, expected, TOLERANCE)
    assert sorted((await engine.llm.collective_rpc("catalogue_versions"))[0]) == sorted(
        [artifact.version, other_artifact.version]
    )
    await session.close()
    await until(lambda: len(engine._versions) == 1)
    assert (await engine.llm.collective_rpc("catalogue_versions"))[0] == [artifact.version]


async def until(condition: Callable[[], bool], timeout_s: float = 20.0, pause_s: float = 0.01) -> None:
    """``pause_s`` of 0 looks at every turn of the loop: for what may last no longer than a step of a tiny model."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - what another process does sets no event here
            await asyncio.sleep(pause_s)


async def test_artifacts_that_do_not_fit_the_model_are_refused(
    vllm: Subject, artifact: Artifact, definition: dict[str, Any]
) -> None:
    foreign_definition = {**definition, "added_tokens": definition["added_tokens"][:-1]}
    foreign = build_artifact(make_catalogue(5), TitleTokenizer(foreign_definition, EOS), BuildOptions())
    with pytest.raises(ArtifactError, match="tokenizer: the artifact was built with"):
        await vllm.engine.load(foreign)
    eos = replace(artifact, version="eos", manifest=replace(artifact.manifest, eos_id=artifact.manifest.eos_id + 1))
    with pytest.raises(ArtifactError, match="eos: paths end with token"):
        await vllm.engine.load(eos)
    larger = replace(artifact, version="larger", manifest=replace(artifact.manifest, vocab_size=5000))
    with pytest.raises(ArtifactError, match=r"vocabulary: the artifact needs 5000, the model has \d+"):
        await vllm.engine.load(larger)
    assert vllm.engine.stats().versions == (artifact.version,)


async def test_prompts_and_widths_that_do_not_fit_are_refused(vllm: Subject, artifact: Artifact) -> None:
    assert vllm.engine.context_tokens == 256
    longest = 256 - artifact.trie.depth
    deepest = max(range(150), key=lambda row: len(paths_of(artifact)[row]))
    found = await search(vllm, artifact, [5] * longest, leaves=leaves_of(artifact, allowed=[deepest]))
    assert [len(hypothesis.steps) for hypothesis in found] == [artifact.trie.depth]
    for length in (0, longest + 1):
        with pytest.raises(EngineError, match=f"the prompt has {length} tokens; 1 to {longest} fit"):
            await vllm.engine.open(artifact.version, [5] * length, Scoring())
    with pytest.raises(EngineError, match="401 children a node are asked for; the engine was started for 400"):
        await vllm.engine.open(artifact.version, [5], Scoring(keep=ALL + 1))


async def test_a_bad_request_fails_alone(vllm: Subject, artifact: Artifact) -> None:
    engine = engine_of(vllm)
    expected = await search(vllm, artifact, prompt_of(artifact, 1))
    running = asyncio.ensure_future(search(vllm, artifact, prompt_of(artifact, 1)))
    params = SamplingParams(temperature=0.0, max_tokens=1, logprobs=3, extra_args={"igd": {"version": "x", "node": -1}})
    with pytest.raises(VLLMValidationError, match="has not exactly the fields"):
        async for _ in engine.llm.generate(tokens_input([5]), params, "bad"):
            pass
    nobodys = NodeQuestion(version="of another day", node=0, alpha=0.2, temperature=1.0, keep=2)
    asked = Round(asks=[Ask(path=[], question=nobodys)])
    async for output in engine.llm.generate(tokens_input([5]), round_params(asked), "unknown"):
        found = RoundAnswers.from_params(output.kv_transfer_params)
    assert found is not None
    assert not np.isfinite(found.answers[0].logprobs).any(), "no child shows"
    for outside in (-1, 10**6):  # vLLM checks them against its tokenizer only, and its worker would die of them
        with pytest.raises(EngineError, match=rf"the prompt holds token {outside}; the model has 0 to \d+"):
            await engine.open(artifact.version, [5, outside], Scoring())
    assert_same_answers(await running, expected)
    assert engine.stats().healthy


async def test_vllms_metrics_join_a_registry_of_ours(vllm: Subject, artifact: Artifact) -> None:
    await search(vllm, artifact, prompt_of(artifact, 1))
    registry = CollectorRegistry()
    registry.register(VLLMMetrics())
    text = generate_latest(registry).decode()
    assert 'vllm:request_success_total{engine="0",finished_reason="length"' in text
    assert "vllm:kv_cache_usage_perc" in text
    assert "python_info" not in text


async def test_a_session_counts_what_it_cost_and_ends_once(vllm: Subject, artifact: Artifact) -> None:
    prompt = prompt_of(artifact, 131, 132, 133)
    session = await vllm.engine.open(artifact.version, prompt, Scoring(keep=ALL))
    assert (session.stats.rounds, session.stats.prompt_tokens) == (0, len(prompt))
    scored = dict(await session.expand([ROOT]))
    assert session.stats.model_tokens + session.stats.cached_tokens == len(prompt) + len(scored) - 1
    await session.expand(unscored_below(artifact, scored))
    assert session.stats.rounds == 2
    assert session.stats.model_s > 0
    assert vllm.engine.stats().sessions == 1
    await session.close()
    await session.close()
    with pytest.raises(EngineError, match="session is closed"):
        await session.expand([ROOT])
    stats = vllm.engine.stats()
    assert (stats.sessions, stats.waiting, stats.cache_bytes) == (0, 0, OPTIONS["kv_cache_bytes"])


async def test_cancelled_and_closed_calls_leave_nothing_running(vllm: Subject, artifact: Artifact) -> None:
    engine = engine_of(vllm)
    cancelled, closed = [await engine.open(artifact.version, [5, 6], Scoring()) for _ in range(2)]
    calls = [asyncio.ensure_future(session.expand([ROOT])) for session in (cancelled, closed)]
    await until(lambda: engine.stats().waiting == 2, pause_s=0)
    calls[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await calls[0]
    await closed.close()
    with pytest.raises(EngineError, match="session is closed"):
        await calls[1]
    assert engine.stats().waiting == 0
    assert (cancelled.stats.rounds, closed.stats.rounds) == (0, 0)
    await cancelled.close()
    assert engine.stats().sessions == 0
    await engine_is_idle(engine)


async def test_a_round_that_is_given_up_halfway_leaves_nothing_behind(vllm: Subject, artifact: Artifact) -> None:
    """More rows than a step takes: some of its rows have ended, others run or wait, when nobody wants it any more."""
    engine = engine_of(vllm)
    version, prompt = artifact.version, prompt_of(artifact, 1, 2, 3)
    question = NodeQuestion(version=version, node=0, alpha=0.2, temperature=1.0, keep=4)
    asked = Round(asks=[Ask(path=[token % 200] * 30, question=question) for token in range(400)])

    async def whole(request_id: str) -> int:
        async for output in engine.llm.generate(tokens_input(prompt), round_params(asked), request_id):
            found = RoundAnswers.from_params(output.kv_transfer_params)
        assert found is not None
        return len(found.answers)

    took_s = []
    for number in range(2):  # the first one also warms up
        started = time.monotonic()
        assert await whole(f"whole-{number}") == 400
        took_s.append(time.monotonic() - started)
        assert await engine.forget_prompts()
    before = engine_steps()
    for number, share in enumerate((0.0, 0.05, 0.2, 0.4)):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(whole(f"given-up-{number}"), share * min(took_s))
    assert engine_steps() == before, "none of them was answered"
    assert len(await search(vllm, artifact, prompt_of(artifact, 1))) == 10
    await engine_is_idle(engine)


async def test_a_round_is_one_message_each_way(
    vllm: Subject, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(vllm)
    client, sent = engine.llm.engine_core, []
    add = client.add_request_async

    async def recorded(request: Any) -> None:
        sent.append(request)
        await add(request)

    monkeypatch.setattr(client, "add_request_async", recorded)
    session = await engine.open(artifact.version, prompt_of(artifact, 71, 72), Scoring(keep=ALL))
    scored = dict(await session.expand([ROOT]))
    nodes = unscored_below(artifact, scored)
    assert len(nodes) > 1
    await session.expand(nodes)
    assert [len(rounds_of(each.sampling_params).asks) for each in sent] == [1, len(nodes)]
    assert session.stats.rounds == 2
    await session.close()


async def engine_is_idle(engine: VLLMEngine) -> None:
    """vLLM's engine process itself, not only its front, has no request left."""
    async with asyncio.timeout(20):
        assert await engine.llm.reset_prefix_cache(), "blocks are still held by a request"


async def test_random_cancellations_leave_memory_flat(vllm: Subject, artifact: Artifact) -> None:
    engine, rng = engine_of(vllm), random.Random(2)
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]

    async def one() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(rng.choice([0.0, 0.005, 0.02, 0.1, 5.0])):
                await search(vllm, artifact, prompt_of(artifact, *rng.sample(range(150), 3)))

    async def wave(count: int) -> float:
        pending: set[asyncio.Task[None]] = set()
        for _ in range(count):
            pending.add(asyncio.ensure_future(one()))
            if len(pending) == 10:
                _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.gather(*pending)
        await engine_is_idle(engine)
        return sum(process.memory_info().rss for process in processes) / 2**20

    before = await wave(300)  # fills the key-value cache and oneDNN's
    after = await wave(200)
    assert after - before < 20, f"{before:.0f} MiB before, {after:.0f} MiB after 200 requests"
    assert (engine.stats().sessions, engine.stats().waiting) == (0, 0)
    assert len(await search(vllm, artifact, prompt_of(artifact, 1))) == 10


@pytest.fixture
def foreign_dir(tmp_path: Path, checkpoint_dir: Path) -> Path:
    """A checkpoint of an architecture that nobody has."""
    directory = shutil.copytree(checkpoint_dir, tmp_path / "foreign")
    config = (directory / "config.json").read_text()
    (directory / "config.json").write_text(
        config.replace("LlamaForCausalLM", "NobodysModel").replace("llama", "nobody")
    )
    return directory


async def test_a_checkpoint_that_vllm_cannot_run_is_a_model_error(foreign_dir: Path) -> None:
    with pytest.raises(ModelError, match="vLLM does not start with"):
        await asyncio.to_thread(VLLMEngine.start, VLLMOptions(model=foreign_dir, **OPTIONS))
    gc.collect()


def newest_process(name: str) -> psutil.Process:
    """vLLM's ``EngineCore`` process, or the ``Worker`` below it, of the engine that was started last."""
    named = [process for process in psutil.Process().children(recursive=True) if is_called(process, name)]
    return max(named, key=psutil.Process.create_time)


async def dies_without_hanging(subject: Subject, artifact: Artifact, victim: psutil.Process) -> None:
    engine = engine_of(subject)
    load = [asyncio.ensure_future(search(subject, artifact, prompt_of(artifact, row, row + 1))) for row in range(24)]
    await until(lambda: engine.stats().waiting > 8)
    os.kill(victim.pid, signal.SIGKILL)
    async with asyncio.timeout(30):
        answers = await asyncio.gather(*load, return_exceptions=True)
        await until(lambda: not engine.stats().healthy)
    assert {type(answer) for answer in answers} <= {EngineClosed, list}
    assert EngineClosed in {type(answer) for answer in answers}
    async with asyncio.timeout(5):
        with pytest.raises(EngineClosed):
            await engine.open(artifact.version, [5], Scoring())
        with pytest.raises(EngineClosed):
            await engine.load(artifact)
    assert engine.stats().sessions == 0


async def test_closing_the_engine_ends_waiting_requests_with_engine_closed(
    checkpoint_dir: Path, artifact: Artifact
) -> None:
    async with started(checkpoint_dir, artifact) as subject:
        engine = engine_of(subject)
        load = [asyncio.ensure_future(search(subject, artifact, prompt_of(artifact, row))) for row in range(24)]
        await until(lambda: engine.stats().waiting > 8)
        await engine.close()
        async with asyncio.timeout(5):
            answers = await asyncio.gather(*load, return_exceptions=True)
        assert {type(answer) for answer in answers} == {EngineClosed}
        assert not engine.stats().healthy
        assert engine.stats().sessions == 0
        with pytest.raises(EngineClosed):
            await engine.open(artifact.version, [5], Scoring())
        with pytest.raises(EngineClosed):
            await engine.load(artifact)


@needs_worker
async def test_when_a_worker_is_killed_waiting_requests_end_with_engine_closed(
    vllm: Subject, artifact: Artifact
) -> None:
    await dies_without_hanging(vllm, artifact, newest_process("Worker"))
