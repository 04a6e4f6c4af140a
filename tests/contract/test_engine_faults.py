"""Numbers that are none: an engine with a model never makes an answer of them."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from factories import own_forward
from subjects import Subject, prompt_of, search

from igd_core.engines.embedded.engine import TreeEngine
from igd_core.errors import EngineError, ModelFault
from igd_core.ids import ROOT
from igd_core.search.session import Scoring

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from transformers import PreTrainedModel

    from igd_core.artifact import Artifact
    from igd_core.engines.embedded.checkpoint import Checkpoint

NAN, INF = float("nan"), float("inf")


def row_of_the_embedding(model: PreTrainedModel, token: int, value: float) -> None:
    embeddings: Any = model.get_input_embeddings()
    embeddings.weight.data[token] = value


def row_of_the_output_layer(model: PreTrainedModel, token: int, value: float) -> None:
    head: Any = model.get_output_embeddings()
    head.weight.data[token] = value


def norm(model: PreTrainedModel, _: int, value: float) -> None:
    model.model.norm.weight.data[3] = value


@pytest.fixture(params=["transformers", "own"])
def make(
    request: pytest.FixtureRequest, checkpoint_of: Callable[[str], Checkpoint]
) -> Callable[[Callable[[PreTrainedModel], None]], Subject]:
    def made(damage: Callable[[PreTrainedModel], None]) -> Subject:
        checkpoint = checkpoint_of("qwen2-fp32")  # its output layer is its own
        model = copy.deepcopy(checkpoint.model)
        damage(model)
        damaged = replace(
            checkpoint, model=model, forwards={None: own_forward(model)} if request.param == "own" else {}
        )
        return Subject(kind="tree", engine=TreeEngine(damaged), tolerance=1e-5)

    return made


@pytest.fixture
async def opened() -> AsyncIterator[list[Subject]]:
    subjects: list[Subject] = []
    yield subjects
    for subject in subjects:
        await subject.engine.close()


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("place", [row_of_the_embedding, row_of_the_output_layer, norm])
async def test_a_model_that_computes_no_numbers_gives_an_error_that_names_model_and_weights(
    artifact: Artifact,
    make: Callable[[Callable[[PreTrainedModel], None]], Subject],
    opened: list[Subject],
    place: Callable[[PreTrainedModel, int, float], None],
    value: float,
) -> None:
    prompt = prompt_of(artifact, 1, 2)
    subject = make(lambda model: place(model, prompt[-2], value))
    opened.append(subject)
    await subject.engine.load(artifact)
    for _ in range(2):
        with pytest.raises(ModelFault, match=r"^model qwen2-fp32: \d+ of \d+ scores are not finite; not finite: \S+t$"):
            await search(subject, artifact, prompt)
    assert subject.engine.stats().cache_bytes == 0, "nothing of such a prompt is used again"
    assert subject.engine.stats().sessions == 0


async def test_one_bad_row_of_the_embedding_spoils_no_other_prompt(
    artifact: Artifact,
    make: Callable[[Callable[[PreTrainedModel], None]], Subject],
    opened: list[Subject],
    checkpoint_of: Callable[[str], Checkpoint],
) -> None:
    sound = make(lambda _: None)
    token = model_vocabulary(checkpoint_of) - 1  # no title holds it
    subject = make(lambda model: row_of_the_embedding(model, token, NAN))
    opened += [sound, subject]
    prompt = prompt_of(artifact, 1, 2)
    for each in (sound, subject):
        await each.engine.load(artifact)
    expected = await search(sound, artifact, prompt)
    with pytest.raises(ModelFault):
        await search(subject, artifact, [*prompt[:-1], token, prompt[-1]])
    assert await search(subject, artifact, prompt) == expected
    with pytest.raises(ModelFault):
        await search(subject, artifact, [*prompt, token])


def model_vocabulary(checkpoint_of: Callable[[str], Checkpoint]) -> int:
    return int(checkpoint_of("qwen2-fp32").model.config.vocab_size)


async def test_a_session_whose_filter_bars_the_bad_child_fails_too(
    artifact: Artifact, make: Callable[[Callable[[PreTrainedModel], None]], Subject], opened: list[Subject]
) -> None:
    first = int(artifact.trie.edge_token[artifact.trie.children(ROOT)[0]])
    subject = make(lambda model: row_of_the_output_layer(model, first, NAN))
    opened.append(subject)
    await subject.engine.load(artifact)
    session = await subject.engine.open(artifact.version, prompt_of(artifact, 1), Scoring())
    with pytest.raises(EngineError):
        await session.expand([ROOT])
    await session.close()
