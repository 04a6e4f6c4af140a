"""What only an engine with a model can promise: the scores of that model, to the digit."""

from __future__ import annotations

import asyncio
import itertools
import math
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np
import oracles
import pytest
import torch
from factories import EOS, MODEL_KINDS, POSITIONS, make_catalogue
from subjects import (
    Subject,
    assert_same_scores,
    busy,
    expand_everything,
    leaves_of,
    paths_of,
    prior_of,
    prompt_of,
    search,
    started,
)

from igd_core.artifact import BuildOptions, build_artifact
from igd_core.bench.reference import ReferenceSettings, TrieProcessor, admit, build_dict_trie, reference_generate
from igd_core.catalogue.tokenization import TitleTokenizer
from igd_core.engines.embedded import pooled_llama
from igd_core.engines.embedded.engine import TreeEngine
from igd_core.engines.embedded.output_layer import OutputLayer
from igd_core.engines.embedded.pooled_llama import PooledLlama
from igd_core.errors import ArtifactError, EngineClosed, EngineError
from igd_core.ids import ROOT
from igd_core.scorers.mass import ItemMass
from igd_core.search.prior import LeafCounts, Mixing, PriorMixer, TriePrior
from igd_core.search.session import Scoring

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from typing import Any

    from transformers import PreTrainedModel

    from igd_core.artifact import Artifact
    from igd_core.engines.embedded.checkpoint import Checkpoint
    from igd_core.scorers.options import Mixture
    from igd_core.search.normalisation import Normalise


@pytest.fixture(params=MODEL_KINDS)
async def tree(
    request: pytest.FixtureRequest, artifact: Artifact, checkpoint_of: Callable[[str], Checkpoint]
) -> AsyncIterator[Subject]:
    async with started(request.param, artifact, checkpoint_of) as made:
        yield made


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


async def test_an_artifact_of_another_tokenizer_is_refused(
    tree: Subject, definition: dict[str, Any], artifact: Artifact
) -> None:
    foreign_definition = {**definition, "added_tokens": definition["added_tokens"][:-1]}
    foreign = build_artifact(make_catalogue(5), TitleTokenizer(foreign_definition, EOS), BuildOptions())
    with pytest.raises(ArtifactError, match="tokenizer: the artifact was built with"):
        await tree.engine.load(foreign)
    assert tree.engine.stats().versions == (artifact.version,)


async def test_an_artifact_whose_paths_end_with_another_token_is_refused(tree: Subject, artifact: Artifact) -> None:
    other = replace(artifact, version="other", manifest=replace(artifact.manifest, eos_id=artifact.manifest.eos_id + 1))
    with pytest.raises(ArtifactError, match="eos: paths end with token"):
        await tree.engine.load(other)


async def test_token_ids_outside_the_models_vocabulary_are_refused(tree: Subject, artifact: Artifact) -> None:
    larger = replace(artifact, version="larger", manifest=replace(artifact.manifest, vocab_size=5000))
    with pytest.raises(ArtifactError, match=r"vocabulary: the artifact needs 5000, the model has \d+"):
        await tree.engine.load(larger)


async def test_the_longest_prompt_leaves_room_for_the_longest_path(tree: Subject, artifact: Artifact) -> None:
    assert tree.engine.context_tokens == POSITIONS
    longest = POSITIONS - artifact.trie.depth
    paths = paths_of(artifact)
    deepest = max(range(150), key=lambda row: len(paths[row]))
    found = await search(tree, artifact, [5] * longest, leaves=leaves_of(artifact, allowed=[deepest]))
    assert [len(hypothesis.steps) for hypothesis in found] == [artifact.trie.depth]
    for length in (0, longest + 1):
        with pytest.raises(EngineError, match=f"the prompt has {length} tokens; 1 to {longest} fit"):
            await tree.engine.open(artifact.version, [5] * length, Scoring())


@pytest.mark.parametrize("token", [-1, 10**6])
async def test_a_token_that_the_model_does_not_have_is_refused_before_it_reaches_the_device(
    tree: Subject, artifact: Artifact, token: int
) -> None:
    with pytest.raises(EngineError, match=rf"the prompt holds token {token}; the model has 0 to \d+"):
        await tree.engine.open(artifact.version, [5, token, 6], Scoring())
    assert len(await search(tree, artifact, [5])) == 10


@contextmanager
def failing(model: PreTrainedModel, error: Exception) -> Iterator[None]:
    """While inside, the model's passes end with ``error``."""

    def fail(*_: object) -> None:
        raise error

    hook = model.get_input_embeddings().register_forward_pre_hook(fail)
    try:
        with mock.patch.object(PooledLlama, "_logits", fail):  # which calls no modules
            yield
    finally:
        hook.remove()


async def test_a_failure_of_the_model_is_an_engine_error_and_the_engine_lives_on(
    tree: Subject, artifact: Artifact, checkpoint_of: Callable[[str], Checkpoint]
) -> None:
    session = await tree.engine.open(artifact.version, [5], Scoring())
    with (
        failing(checkpoint_of(tree.kind).model, torch.OutOfMemoryError("out of memory")),
        pytest.raises(EngineError, match="the model failed: out of memory"),
    ):
        await session.expand([ROOT])
    await session.close()
    assert tree.engine.stats().healthy
    assert len(await search(tree, artifact, [5])) == 10


async def test_an_engine_whose_device_failed_says_so_and_takes_nothing_more(
    tree: Subject, artifact: Artifact, checkpoint_of: Callable[[str], Checkpoint]
) -> None:
    """As CUDA does after an error in a kernel: what comes next in the process fails too (seen on an H200)."""
    first, second = [await tree.engine.open(artifact.version, [5], Scoring()) for _ in range(2)]
    with (
        failing(checkpoint_of(tree.kind).model, torch.AcceleratorError("CUDA error: misaligned address\nMore")),
        pytest.raises(EngineClosed, match=r"the device failed: CUDA error: misaligned address$"),
    ):
        await first.expand([ROOT])
    assert not tree.engine.stats().healthy
    with pytest.raises(EngineClosed, match=r"the device failed: CUDA error: misaligned address$"):
        await second.expand([ROOT])
    with pytest.raises(EngineClosed, match=r"the device failed: CUDA error: misaligned address$"):
        await tree.engine.open(artifact.version, [5], Scoring())


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


@pytest.mark.parametrize("kind", ["llama-fp32", "llama-fp32-own"])
async def test_the_prefix_cache_stays_within_its_budget(
    artifact: Artifact, checkpoint_of: Callable[[str], Checkpoint], kind: str
) -> None:
    one_prompt = 2 * 2 * 2 * 8 * 4 * len(prompt_of(artifact, 1, 2, 3))  # layers, keys and values, heads, width, bytes
    async with started(kind, artifact, checkpoint_of, cache_bytes=2 * one_prompt) as subject:
        for row in range(12):
            await search(subject, artifact, prompt_of(artifact, row, row + 1, row + 2))
            assert 0 < subject.engine.stats().cache_bytes <= 2 * one_prompt
    async with started(kind, artifact, checkpoint_of) as subject:
        await search(subject, artifact, prompt_of(artifact, 1, 2, 3), leaves=leaves_of(artifact, allowed=[5]))
        assert subject.engine.stats().cache_bytes == one_prompt, "the prompt alone, without the tree below it"


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
        tolerance = 0.5 if "bf16" in tree.kind else 1e-4  # up to 16 tokens, each off by some hundredths
        for path, score in ranked:
            assert score == pytest.approx(expected[path], abs=tolerance)
        if "bf16" not in tree.kind:
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
        assert hypothesis.score == pytest.approx(sum(steps), abs=1.0 if "bf16" in tree.kind else 1e-4)


@pytest.mark.parametrize("kind", [kind for kind in MODEL_KINDS if "fp32" in kind])
@pytest.mark.parametrize("alpha", [0.0, 0.2])
@pytest.mark.parametrize(("length_penalty", "forced_weight"), [(0.0, 1.0), (1.0, 1.0), (0.0, 0.0), (0.0, 0.5)])
async def test_the_items_their_order_and_scores_are_those_of_transformers_generate(
    artifact: Artifact,
    checkpoint_of: Callable[[str], Checkpoint],
    kind: str,
    alpha: float,
    length_penalty: float,
    forced_weight: float,
) -> None:
    root = build_dict_trie(paths_of(artifact), prior_of(artifact))
    search_settings: dict[str, Any] = {"alpha": alpha, "length_penalty": length_penalty, "forced_weight": forced_weight}
    settings = ReferenceSettings(beams=10, eos_id=artifact.manifest.eos_id, **search_settings)
    async with started(kind, artifact, checkpoint_of) as subject:
        for rows in ((1, 2, 3), (20,), (5, 60, 100, 8)):
            prompt = prompt_of(artifact, *rows)
            expected = reference_generate(checkpoint_of(kind).model, root, prompt, settings)
            found = await search(subject, artifact, prompt, **search_settings)
            assert [tuple(artifact.trie.path(hypothesis.leaf)) for hypothesis in found] == expected.paths
            assert [hypothesis.score for hypothesis in found] == pytest.approx(expected.scores, abs=1e-4)


FP32_KINDS = [kind for kind in MODEL_KINDS if "fp32" in kind]


@pytest.mark.parametrize("kind", FP32_KINDS)
@pytest.mark.parametrize("alpha", [0.0, 0.2])
@pytest.mark.parametrize("barred", [range(0), range(0, 150, 3)], ids=["everything", "filtered"])
async def test_normalised_over_children_the_answer_is_that_of_transformers_generate(
    artifact: Artifact, checkpoint_of: Callable[[str], Checkpoint], kind: str, alpha: float, barred: range
) -> None:
    root = build_dict_trie(paths_of(artifact), prior_of(artifact))
    admit(root, set(range(150)) - set(barred))
    leaves, eos = leaves_of(artifact, barred=barred), artifact.manifest.eos_id
    async with started(kind, artifact, checkpoint_of) as subject:
        for temperature, length_penalty in ((1.0, 0.0), (0.7, 0.0), (1.0, 1.0)):
            asked: dict[str, Any] = {
                "alpha": alpha, "normalise": "children", "temperature": temperature, "length_penalty": length_penalty
            }  # fmt: skip
            settings = ReferenceSettings(beams=10, eos_id=eos, **asked)
            for rows in ((1, 2, 3), (20,)):
                prompt = prompt_of(artifact, *rows)
                expected = reference_generate(checkpoint_of(kind).model, root, prompt, settings)
                found = await search(subject, artifact, prompt, leaves=leaves, **asked)
                assert [tuple(artifact.trie.path(hypothesis.leaf)) for hypothesis in found] == expected.paths
                assert [hypothesis.score for hypothesis in found] == pytest.approx(expected.scores, abs=1e-4)


@pytest.mark.parametrize("alpha", [0.0, 0.2])
@pytest.mark.parametrize("barred", [range(0), range(0, 150, 3)], ids=["everything", "filtered"])
@pytest.mark.parametrize(
    ("mixture", "normalise"), [("log-linear", "vocabulary"), ("log-linear", "children"), ("linear", "children")]
)
async def test_with_a_prior_mixed_in_the_answer_is_that_of_transformers_generate(
    artifact: Artifact,
    checkpoint_of: Callable[[str], Checkpoint],
    alpha: float,
    barred: range,
    mixture: Mixture,
    normalise: Normalise,
) -> None:
    root, paths, counts = (
        build_dict_trie(paths_of(artifact), prior_of(artifact)),
        paths_of(artifact),
        LeafCounts.of(artifact),
    )
    admit(root, set(range(150)) - set(barred))
    leaves, settings = (
        leaves_of(artifact, barred=barred),
        ReferenceSettings(beams=10, eos_id=artifact.manifest.eos_id, alpha=alpha, normalise=normalise),
    )
    mass = ItemMass(background=0.3, items=np.arange(40, 110, 7), mass=np.full(10, 0.07))
    of_path: dict[tuple[int, ...], float] = {}
    for row, path in enumerate(paths):
        counted = 0.3 * (artifact.catalogue.frequency[row] + 1) / int(counts.below[-1])
        of_path[path] = of_path.get(path, 0.0) + counted + 0.07 * (row in range(40, 110, 7))
    model = checkpoint_of(FP32_KINDS[0]).model
    async with started(FP32_KINDS[0], artifact, checkpoint_of) as subject:
        for rows, gamma in itertools.product(((1, 2, 3), (20,)), (0.2, 0.7)):
            prompt = prompt_of(artifact, *rows)
            plain = TrieProcessor(root, len(prompt), settings)
            processor = oracles.MixedProcessor(plain, len(prompt), of_path, gamma, mixture)
            expected = reference_generate(model, root, prompt, settings, processor=processor)
            mixing = Mixing(gamma=gamma, mixture=mixture)
            mixer = PriorMixer(TriePrior(counts, mass), mixing)
            found = await search(
                subject,
                artifact,
                prompt,
                leaves=leaves,
                alpha=alpha,
                normalise=normalise,
                mixer=mixer,
                forced_weight=mixing.model_weight,
            )
            assert [tuple(artifact.trie.path(hypothesis.leaf)) for hypothesis in found] == expected.paths
            assert [hypothesis.score for hypothesis in found] == pytest.approx(expected.scores, abs=1e-4)


@pytest.mark.parametrize("kind", FP32_KINDS)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
async def test_probabilities_of_all_titles_are_those_of_scoring_each_in_full_and_sum_to_one(
    artifact: Artifact, checkpoint_of: Callable[[str], Checkpoint], kind: str, temperature: float
) -> None:
    prompt, paths = prompt_of(artifact, 7, 8, 9), paths_of(artifact)
    expected = oracles.path_probabilities(checkpoint_of(kind).model, prompt, paths, temperature)
    async with started(kind, artifact, checkpoint_of) as subject:
        asked: dict[str, Any] = {"beams": len(artifact.catalogue), "normalise": "children", "temperature": temperature}
        found = await search(subject, artifact, prompt, alpha=0.0, **asked)
        weighted = await search(subject, artifact, prompt, alpha=0.4, **asked)
    assert sum(each.probability for each in found) == pytest.approx(1.0, abs=1e-6)
    assert len(found) == len(expected)
    for each in found:
        assert each.probability == pytest.approx(expected[tuple(artifact.trie.path(each.leaf))], rel=1e-4)
        assert math.exp(each.score) == pytest.approx(each.probability), "the score is log p(title | history)"
    by_leaf = {each.leaf: each.probability for each in found}
    assert {each.leaf: each.probability for each in weighted} == pytest.approx(by_leaf, rel=1e-3), (
        "alpha is no part of it"
    )
    assert [each.leaf for each in weighted] != [each.leaf for each in found]


async def test_a_filter_takes_nothing_away_from_a_title_and_gives_it_nothing(tree: Subject, artifact: Artifact) -> None:
    """Renormalising at each node over what is left would hand a barred title's probability to its neighbours."""
    prompt, barred = prompt_of(artifact, 7), range(0, 150, 2)
    asked: dict[str, Any] = {"beams": len(artifact.catalogue), "normalise": "children", "alpha": 0.0}
    whole = {each.leaf: each.score for each in await search(tree, artifact, prompt, **asked)}
    left = await search(tree, artifact, prompt, leaves=leaves_of(artifact, barred=barred), **asked)
    assert 0 < len(left) < len(whole)
    assert {each.leaf: each.score for each in left} == pytest.approx(
        {each.leaf: whole[each.leaf] for each in left}, abs=1.0 if "bf16" in tree.kind else 1e-4
    )


@pytest.mark.parametrize("kind", FP32_KINDS)
async def test_over_children_only_decisions_are_asked_of_the_output_layer(
    artifact: Artifact, checkpoint_of: Callable[[str], Checkpoint], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, gather, product = 0, OutputLayer._picked, pooled_llama._float_product

    def count(_: object, inputs: tuple[torch.Tensor, ...]) -> None:
        nonlocal rows
        rows += inputs[0].shape[-2]

    def gathered(layer: OutputLayer, *of: torch.Tensor) -> torch.Tensor:
        count(layer, of)
        return gather(layer, *of)

    def multiplied(inputs: torch.Tensor, weights: Any) -> torch.Tensor:
        count(weights, (inputs,))
        return product(inputs, weights)

    monkeypatch.setattr(OutputLayer, "_picked", gathered)
    monkeypatch.setattr(pooled_llama, "_float_product", multiplied)
    head: Any = checkpoint_of(kind).model.get_output_embeddings()
    async with started(kind, artifact, checkpoint_of) as subject:
        session = await subject.engine.open(
            artifact.version, prompt_of(artifact, 1), Scoring(keep=500, normalise="children")
        )
        hook = head.register_forward_pre_hook(count)
        try:
            scored = await expand_everything(session, artifact, together=True)
        finally:
            hook.remove()
    branching = [node for node in scored if len(artifact.trie.children(node)) > 1]
    assert len(branching) <= rows <= len(branching) * 17 / 16 < len(scored)  # filled up: packed_linear.kernel_rows
    for node, children in scored.items():
        if node not in branching:
            assert (children.logprobs, children.scores) == ([0.0], [0.0])


async def test_a_search_takes_fewer_calls_than_tokens(
    tree: Subject, artifact: Artifact, checkpoint_of: Callable[[str], Checkpoint]
) -> None:
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    hook = checkpoint_of(tree.kind).model.get_input_embeddings().register_forward_pre_hook(count)
    try:
        found = await search(tree, artifact, prompt_of(artifact, 1, 2, 3))
    finally:
        hook.remove()
    assert calls < max(len(hypothesis.steps) for hypothesis in found)
