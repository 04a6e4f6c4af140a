"""Rounds of several sessions in one pass: no answer depends on who else was in it, or on what became of them."""

from __future__ import annotations

import asyncio
import random
import threading
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from factories import laned_forward, own_forward, plain_forward, pooled_forward, tiny_checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from subjects import Subject, busy, by_edge, leaves_of, prompt_of, unscored_below

from igd_core.engines.embedded import children, llama
from igd_core.engines.embedded.engine import TreeEngine
from igd_core.engines.embedded.llama import MOST_TOKENS
from igd_core.errors import EngineClosed, EngineError
from igd_core.ids import ROOT, NodeId
from igd_core.scorers.mass import ItemMass
from igd_core.search.prior import LeafCounts, Mixing, PriorMixer, TriePrior
from igd_core.search.session import Scoring

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from transformers import PreTrainedModel

    from igd_core.artifact import Artifact
    from igd_core.catalogue.tokenization import TitleTokenizer
    from igd_core.engines.embedded.checkpoint import Checkpoint
    from igd_core.engines.embedded.forward import Forward
    from igd_core.search.session import ChildScores

TOLERANCE = 1e-5
ADAPTER = "bold"


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """A session to come: the round in which it begins, and the one before which it leaves, if it does."""

    history: tuple[int, ...]
    barred: tuple[int, ...]
    alpha: float
    normalise: Any
    temperature: float
    mixing: Mixing
    adapter: str | None
    seed: int
    begins: int
    leaves: int | None

    def scoring(self, artifact: Artifact) -> Scoring:
        leaves = leaves_of(artifact, barred=self.barred)
        mass = ItemMass(background=0.5, items=np.arange(2), mass=np.array([0.1, 0.4]))
        mixes = self.mixing.gamma > 0 and (self.mixing.mixture == "log-linear" or self.normalise == "children")
        prior = TriePrior(LeafCounts.of(artifact), mass, leaves)
        return Scoring(
            alpha=self.alpha,
            temperature=self.temperature,
            leaves=leaves,
            normalise=self.normalise,
            mixer=PriorMixer(prior, self.mixing) if mixes else None,
            adapter=self.adapter,
            keep=artifact.trie.num_nodes,
        )

    def nodes(self, artifact: Artifact, scored: dict[NodeId, ChildScores]) -> list[NodeId]:
        """What is asked for next: at first the root, then a few nodes of those that can be, by this person's dice."""
        if not scored:
            return [ROOT]
        frontier = unscored_below(artifact, scored)
        dice = random.Random(self.seed + len(scored))
        return sorted(dice.sample(frontier, min(len(frontier), dice.randint(1, 6))))


def people() -> st.SearchStrategy[list[Person]]:
    row = st.integers(0, 39)
    person = st.builds(
        Person,
        history=st.lists(row, min_size=0, max_size=3).map(tuple),
        barred=st.lists(row, max_size=20).map(tuple),
        alpha=st.sampled_from([0.0, 0.2]),
        normalise=st.sampled_from(["vocabulary", "children"]),
        temperature=st.sampled_from([1.0, 1.0, 1.7]),
        mixing=st.builds(
            Mixing, gamma=st.sampled_from([0.0, 0.7, 1.0]), mixture=st.sampled_from(["log-linear", "linear"])
        ),
        adapter=st.sampled_from([None, None, ADAPTER]),
        seed=st.integers(0, 9),
        begins=st.integers(0, 2),
        leaves=st.none() | st.integers(1, 4),
    )
    return st.lists(person, min_size=2, max_size=5)


ROUNDS = 5


@pytest.fixture(scope="module")
def checkpoints(tokenizer: TitleTokenizer) -> dict[str, Checkpoint]:
    """The same weights run by each forward, and an adapter, for which a model of other weights stands."""
    made: dict[str, Checkpoint] = {}
    ways: dict[str, Callable[[PreTrainedModel], Forward]] = {
        "own": own_forward,
        "own in lanes": laned_forward,
        "own, plainly": plain_forward,
        "pooled": pooled_forward,
    }
    for way in (*ways, "transformers"):
        base, other = tiny_checkpoint("llama-fp32", tokenizer), tiny_checkpoint("llama-fp32", tokenizer).model
        for weight in other.parameters():
            weight.mul_(1.1)
        forwards = {None: ways[way](base.model), ADAPTER: ways[way](other)} if way in ways else {}
        made[way] = replace(base, adapted={ADAPTER: other}, forwards=forwards)
    return made


def subject_of(engine: TreeEngine) -> Subject:
    return Subject(kind="tree", engine=engine, tolerance=TOLERANCE)


def assert_same(one: dict[NodeId, ChildScores], other: dict[NodeId, ChildScores]) -> None:
    """Children in the same order unless their scores are alike, and the same scores."""
    assert one.keys() == other.keys()
    for ours, theirs in zip(by_edge(one.values()), by_edge(other.values()), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=TOLERANCE, rtol=TOLERANCE)


async def alone(engine: TreeEngine, artifact: Artifact, person: Person) -> dict[NodeId, ChildScores]:
    """The person's whole tree, with nobody else there."""
    session = await engine.open(artifact.version, prompt_of(artifact, *person.history), person.scoring(artifact))
    scored: dict[NodeId, ChildScores] = {}
    for _ in range(ROUNDS):
        if nodes := person.nodes(artifact, scored):
            scored.update(await session.expand(nodes))
    await session.close()
    return scored


async def together(
    subject: Subject, artifact: Artifact, people: Sequence[Person]
) -> list[dict[NodeId, ChildScores] | None]:
    """Trees of all who stay; rounds that are due wait together. Those who leave are cancelled while they wait."""
    sessions: dict[int, Any] = {}
    trees: list[dict[NodeId, ChildScores]] = [{} for _ in people]
    gone: set[int] = set()
    for number in range(ROUNDS + 2):
        due: dict[int, asyncio.Future[Any]] = {}
        async with busy(subject):
            for place, person in enumerate(people):
                if person.begins <= number < person.begins + ROUNDS and place not in gone:
                    if place not in sessions:
                        prompt = prompt_of(artifact, *person.history)
                        sessions[place] = await subject.engine.open(artifact.version, prompt, person.scoring(artifact))
                    if nodes := person.nodes(artifact, trees[place]):
                        due[place] = asyncio.ensure_future(sessions[place].expand(nodes))
            await asyncio.sleep(0)
            for place in [place for place in due if people[place].leaves == number]:
                due.pop(place).cancel()
                await sessions[place].close()
                gone.add(place)
        for place, found in zip(due, await asyncio.gather(*due.values()), strict=True):
            trees[place].update(found)
    for session in sessions.values():
        await session.close()
    return [None if place in gone else tree for place, tree in enumerate(trees)]


@pytest.mark.parametrize("way", ["own", "own in lanes", "own, plainly", "pooled"])
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=people(), most=st.sampled_from([MOST_TOKENS, 6]))
def test_no_answer_depends_on_who_else_was_in_the_pass(
    checkpoints: dict[str, Checkpoint], artifact: Artifact, way: str, drawn: list[Person], most: int
) -> None:
    """With 6 tokens a pass, prompts are fed in parts, beside others' rounds and parts."""

    async def check() -> None:
        engines = {
            "joined": TreeEngine(checkpoints[way], most_tokens=most),
            "alone": TreeEngine(checkpoints[way], most_tokens=0, cache_bytes=0),
            "transformers": TreeEngine(checkpoints["transformers"], cache_bytes=0),
        }
        for engine in engines.values():
            await engine.load(artifact)
        subject = subject_of(engines["joined"])
        for person, found in zip(drawn, await together(subject, artifact, drawn), strict=True):
            if found is None:
                continue
            for other in ("alone", "transformers"):
                assert_same(found, await alone(engines[other], artifact, person))
        for engine in engines.values():
            assert engine.stats().sessions == 0
            assert engine.stats().passes_split == 0
            await engine.close()

    asyncio.run(check())


@pytest.fixture
async def joined(checkpoints: dict[str, Checkpoint], artifact: Artifact) -> AsyncIterator[Subject]:
    engine = TreeEngine(checkpoints["own"])
    await engine.load(artifact)
    yield subject_of(engine)
    await engine.close()


async def opened(subject: Subject, artifact: Artifact, *histories: tuple[int, ...]) -> list[Any]:
    """Sessions whose root is scored."""
    sessions = [
        await subject.engine.open(artifact.version, prompt_of(artifact, *each), Scoring()) for each in histories
    ]
    for session in sessions:
        await session.expand([ROOT])
    return sessions


HISTORIES = ((1, 2), (3,), (4, 5, 6))


async def second_round(subject: Subject, artifact: Artifact, sessions: Sequence[Any]) -> list[Any]:
    """Results or errors of a round of each, asked for at the same moment."""
    first = [NodeId(edge + 1) for edge in artifact.trie.children(ROOT)[:3]]
    async with busy(subject):
        calls = [asyncio.ensure_future(session.expand(first)) for session in sessions]
        await asyncio.sleep(0)
    return await asyncio.gather(*calls, return_exceptions=True)


async def alone_in_second_round(checkpoint: Checkpoint, artifact: Artifact) -> list[Any]:
    engine = TreeEngine(checkpoint, most_tokens=0)
    await engine.load(artifact)
    subject = subject_of(engine)
    found = await second_round(subject, artifact, await opened(subject, artifact, *HISTORIES))
    await engine.close()
    return found


async def test_rounds_that_wait_share_one_pass_and_are_counted(
    joined: Subject, checkpoints: dict[str, Checkpoint], artifact: Artifact
) -> None:
    sessions = await opened(joined, artifact, *HISTORIES)
    before = joined.engine.stats()
    found = await second_round(joined, artifact, sessions)
    after = joined.engine.stats()
    assert (after.passes - before.passes, after.pass_sessions - before.pass_sessions) == (2, 4)  # `busy` is one
    assert after.pass_tokens - before.pass_tokens == sum(len(each) for each in found)
    for ours, theirs in zip(found, await alone_in_second_round(checkpoints["own"], artifact), strict=True):
        assert_same(ours, theirs)


async def test_a_round_that_cannot_be_computed_fails_alone(
    joined: Subject, checkpoints: dict[str, Checkpoint], artifact: Artifact
) -> None:
    """One cannot be placed in its tree, one has a token that the model does not have, and the pass fails with it."""
    sessions = await opened(joined, artifact, *HISTORIES, (7,), (8,))
    sessions[3]._tree._seen.clear()
    sessions[4]._tree._prompt = [*sessions[4]._tree._prompt, 10**6]
    *sound, unplaced, bad = await second_round(joined, artifact, sessions)
    assert isinstance(unplaced, KeyError)
    assert isinstance(bad, EngineError)
    assert joined.engine.stats().passes_split == 1
    for ours, theirs in zip(sound, await alone_in_second_round(checkpoints["own"], artifact), strict=True):
        assert_same(ours, theirs)


async def test_a_round_comes_between_the_parts_of_a_long_prompt_and_does_not_wait_for_the_whole(
    checkpoints: dict[str, Checkpoint], artifact: Artifact
) -> None:
    engine = TreeEngine(checkpoints["own"], most_tokens=10, cache_bytes=0)
    await engine.load(artifact)
    subject = subject_of(engine)
    short, *_ = await opened(subject, artifact, (3,))
    prompt = prompt_of(artifact, *range(12))
    assert len(prompt) > 50
    long = await engine.open(artifact.version, prompt, Scoring())
    before = engine.stats()
    async with busy(subject):
        newcomer = asyncio.ensure_future(long.expand([ROOT]))
        await asyncio.sleep(0)
        calls = asyncio.ensure_future(short.expand([NodeId(int(artifact.trie.children(ROOT)[0]) + 1)]))
        await asyncio.sleep(0)
    found = await calls
    assert not newcomer.done()
    scored = await newcomer
    after = engine.stats()
    parts = -(-(len(prompt) - 10) // 10)  # the last pass feeds up to ten tokens of the prompt and the chain
    assert after.passes - before.passes == parts + 3  # the last, `busy`, and the short round's own
    alone_engine = TreeEngine(checkpoints["own"], most_tokens=0, cache_bytes=0)
    await alone_engine.load(artifact)
    alone_session = await alone_engine.open(artifact.version, prompt, Scoring())
    assert_same(dict(scored), dict(await alone_session.expand([ROOT])))
    assert found
    assert (long.stats.rounds, long.stats.model_tokens) == (
        alone_session.stats.rounds,
        alone_session.stats.model_tokens,
    )
    for each in (engine, alone_engine):
        await each.close()


async def test_numbers_that_are_none_stay_with_whose_they_are(
    joined: Subject, checkpoints: dict[str, Checkpoint], artifact: Artifact
) -> None:
    sessions = await opened(joined, artifact, *HISTORIES, (7,))
    with torch.inference_mode():
        for keys, values in sessions[3]._tree.prompt_layers().pairs:
            keys.fill_(float("nan"))
            values.fill_(float("nan"))
    *sound, bad = await second_round(joined, artifact, sessions)
    assert isinstance(bad, EngineError)
    assert "not finite" in str(bad)
    for ours, theirs in zip(sound, await alone_in_second_round(checkpoints["own"], artifact), strict=True):
        assert_same(ours, theirs)


class BrokenMixer:
    """A prior that cannot be mixed in."""

    is_linear = False

    def mixed_rows(self, *_: object) -> Any:
        raise ValueError("no prior")


def no_memory(*_: object) -> Any:
    raise RuntimeError("no memory")


async def test_what_fails_while_a_pass_is_read_stays_with_whose_it_is(
    joined: Subject, checkpoints: dict[str, Checkpoint], artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose prior fails; then the reading of all together, after which each is read alone."""
    for together_fails in (False, True):
        sessions = await opened(joined, artifact, *HISTORIES, (7,))
        prompt = sessions[3]._prompt
        sessions[3]._prompt = replace(prompt, scoring=replace(prompt.scoring, mixer=BrokenMixer()))
        if together_fails:
            monkeypatch.setattr(children._Children, "joined", no_memory)
        *sound, bad = await second_round(joined, artifact, sessions)
        assert isinstance(bad, ValueError | EngineError)
        assert "no prior" in str(bad)
        assert [each.stats.rounds for each in sessions[:3]] == [2, 2, 2]
        for ours, theirs in zip(sound, await alone_in_second_round(checkpoints["own"], artifact), strict=True):
            assert_same(ours, theirs)


@contextmanager
def slow_passes(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Passes of the own forward that say when they run, and go on when they are let."""
    running, release = threading.Event(), threading.Event()
    run = llama.LlamaForward._run

    def slow(*args: Any) -> Any:
        running.set()
        assert release.wait(20)
        return run(*args)

    with monkeypatch.context() as patched:
        patched.setattr(llama.LlamaForward, "_run", slow)
        yield running, release
        release.set()


@pytest.mark.parametrize("what", ["cancelled", "closed", "unloaded", "engine closed"])
async def test_what_happens_while_a_shared_pass_runs_changes_no_neighbours_answer(
    joined: Subject,
    checkpoints: dict[str, Checkpoint],
    artifact: Artifact,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    sessions = await opened(joined, artifact, *HISTORIES)
    first = [NodeId(edge + 1) for edge in artifact.trie.children(ROOT)[:3]]
    with slow_passes(monkeypatch) as (running, release):
        async with busy(joined):
            calls = [asyncio.ensure_future(session.expand(first)) for session in sessions]
            await asyncio.sleep(0)
        await asyncio.to_thread(running.wait, 20)
        closing = None
        if what == "cancelled":
            calls[1].cancel()
        elif what == "closed":
            await sessions[1].close()
        elif what == "unloaded":
            await joined.engine.unload(artifact.version)
        else:
            closing = asyncio.ensure_future(joined.engine.close())
            while joined.engine.stats().healthy:  # noqa: ASYNC110 - a thread closes it
                await asyncio.sleep(0)
            with pytest.raises(EngineClosed):
                await sessions[1].expand(first)
        release.set()
        found: list[Any] = await asyncio.gather(*calls, return_exceptions=True)
    if closing is not None:
        await closing
    assert isinstance(found[1], {"cancelled": asyncio.CancelledError, "closed": EngineError}.get(what, dict))
    expected = await alone_in_second_round(checkpoints["own"], artifact)
    for place in (0, 2) if what in ("cancelled", "closed") else (0, 1, 2):
        assert_same(found[place], expected[place])
