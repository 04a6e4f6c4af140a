"""Both of vLLM's processors against the score kernel, row by row, while their batches change."""

from __future__ import annotations

import itertools
import math
import random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from factories import make_catalogue
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm_parts import require_vllm

require_vllm()

from vllm import SamplingParams  # noqa: E402
from vllm.v1.sample.logits_processor import BatchUpdateBuilder, MoveDirectionality  # noqa: E402
from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcRequestState  # noqa: E402

from igd_core.artifact import BuildOptions, build_artifact  # noqa: E402
from igd_core.engines.vllm import runner_v1  # noqa: E402
from igd_core.engines.vllm.processors import TrieConstraint, TrieProcessorV1, TrieProcessorV2  # noqa: E402
from igd_core.engines.vllm.question import EXTRA_ARG, NO_NODE, Ask, NodeQuestion, Round  # noqa: E402
from igd_core.search.scores import TrieWeights  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    from igd_core.artifact import Artifact
    from igd_core.catalogue.tokenization import TitleTokenizer

CPU = torch.device("cpu")
VOCAB = 400
SLOTS = 8


@pytest.fixture(scope="module")
def artifacts(artifact: Artifact, tokenizer: TitleTokenizer) -> list[Artifact]:
    return [artifact, build_artifact(make_catalogue(40, seed=9), tokenizer, BuildOptions(name="other"))]


def v1(artifacts: list[Artifact]) -> TrieProcessorV1:
    processor = TrieProcessorV1(None, CPU, False)
    load_all(processor.constraint, artifacts)
    return processor


def v2(artifacts: list[Artifact]) -> TrieProcessorV2:
    nothing: Any = None  # the buffers of a GPU's model runner, which this processor does not read
    state = LogitsProcRequestState(
        device=CPU,
        max_num_reqs=SLOTS,
        vocab_size=VOCAB,
        all_token_ids=nothing,
        prompt_len=nothing,
        prefill_len=nothing,
        total_len=nothing,
    )
    processor = TrieProcessorV2(nothing, state)
    load_all(processor.constraint, artifacts)
    return processor


def load_all(constraint: TrieConstraint, artifacts: list[Artifact]) -> None:
    for each in artifacts:
        constraint.load(each.version, TrieWeights.of(each))


def context(slots: list[int]) -> LogitsContext:
    """A step whose row i belongs to ``slots[i]``; what this processor does not read is left empty."""
    mapping = torch.tensor(slots, dtype=torch.int32)
    empty = torch.empty(0)
    return LogitsContext(
        expanded_idx_mapping=mapping,
        idx_mapping=mapping,
        idx_mapping_np=np.array(slots, dtype=np.int32),
        expanded_local_pos=empty,
        input_ids=empty,
        pos=empty,
        seq_lens_upper_bound_np=np.empty(0),
    )


def question(artifact: Artifact, rng: random.Random) -> NodeQuestion:
    trie = artifact.trie
    inner = [node for node in range(trie.num_nodes) if trie.row_start[node] < trie.row_start[node + 1]]
    node = rng.choice(inner)
    degree = int(trie.row_start[node + 1] - trie.row_start[node])
    only = rng.random() < 0.5
    listed = sorted(rng.sample(range(degree), rng.randint(1, degree) if only else rng.randint(0, degree - 1)))
    has_prior = rng.random() < 0.5
    return NodeQuestion(
        version=artifact.version,
        node=node,
        alpha=rng.choice([0.0, 0.2, 1.0]),
        temperature=rng.choice([1.0, 1.0, 0.5]),
        over_children=rng.random() < 0.4,
        keep=rng.randint(1, 6),
        listed=np.array(listed, dtype=np.int32),
        only_listed=only,
        prior=np.array([-rng.random() for _ in range(degree if has_prior else 0)], dtype=np.float32),
        prior_model=0.5 if has_prior else 1.0,
        prior_linear=has_prior and rng.random() < 0.5,
    )


def asking(asked: NodeQuestion) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=1, logprobs=asked.keep + 1, extra_args={EXTRA_ARG: asked})


def ordinary() -> SamplingParams:
    return SamplingParams(temperature=0.7, max_tokens=12)


def some_params(artifacts: list[Artifact], rng: random.Random) -> SamplingParams:
    return ordinary() if rng.random() < 0.3 else asking(question(rng.choice(artifacts), rng))


def alone(logits: torch.Tensor, params: SamplingParams, artifacts: list[Artifact]) -> torch.Tensor:
    """The row as a processor that holds nothing else leaves it, ``(vocab,)``."""
    fresh = v1(artifacts)
    builder = BatchUpdateBuilder(added=[(0, params, [1], [])])
    fresh.update_state(builder.get_and_reset(1))
    return fresh.apply(logits[None].clone())[0]


class Batch:
    """Rows as vLLM's persistent batch keeps them: removed ones are filled by new ones, or by the last."""

    def __init__(self) -> None:
        self.rows: list[SamplingParams] = []
        self.builder = BatchUpdateBuilder()

    def step(self, rng: random.Random, new: list[SamplingParams]) -> None:
        gone = [row for row in range(len(self.rows)) if rng.random() < 0.4]
        kept: list[SamplingParams | None] = list(self.rows)
        for row in gone:
            kept[row] = None
            self.builder.removed_append(row)
        for params in new:
            row = self.builder.pop_removed()
            if row is None:
                row = len(kept)
                kept.append(None)
            kept[row] = params
            self.builder.added.append((row, params, [1, 2], []))
        while None in kept:  # condense
            hole, last = kept.index(None), kept.pop()
            if last is None:
                continue
            kept[hole] = last
            self.builder.moved.append((len(kept), hole, MoveDirectionality.UNIDIRECTIONAL))
        self.rows = [params for params in kept if params is not None]
        if len(self.rows) > 1 and rng.random() < 0.5:  # some attention back ends sort their batch
            a, b = rng.sample(range(len(self.rows)), 2)
            self.rows[a], self.rows[b] = self.rows[b], self.rows[a]
            self.builder.moved.append((a, b, MoveDirectionality.SWAP))


@given(seed=st.integers(0, 10**6))
@settings(max_examples=40)
def test_v1_answers_every_row_as_if_it_were_alone_however_the_batch_moves(seed: int, artifacts: list[Artifact]) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    processor, batch = v1(artifacts), Batch()
    for _ in range(6):
        new = [some_params(artifacts, rng) for _ in range(rng.randint(0, 4))]
        batch.step(rng, new)
        processor.update_state(batch.builder.get_and_reset(len(batch.rows)))
        logits = torch.randn(len(batch.rows), VOCAB) * 3
        expected = [alone(row, params, artifacts) for row, params in zip(logits, batch.rows, strict=True)]
        answered = processor.apply(logits.clone())
        for row, params in enumerate(batch.rows):
            torch.testing.assert_close(answered[row], expected[row])
            if params.extra_args is None:
                assert torch.equal(answered[row], logits[row])


def test_logits_cut_from_a_padded_vocabulary_are_answered_as_whole_ones_are(artifacts: list[Artifact]) -> None:
    rng, padded = random.Random(3), torch.randn(4, VOCAB + 59)
    params = [asking(question(artifacts[row % 2], rng)) for row in range(4)]
    processor = v1(artifacts)
    builder = BatchUpdateBuilder(added=[(row, each, [1], []) for row, each in enumerate(params)])
    processor.update_state(builder.get_and_reset(4))
    cut = padded[:, :VOCAB]
    expected = [alone(row, each, artifacts) for row, each in zip(cut, params, strict=True)]
    assert not cut.is_contiguous()
    torch.testing.assert_close(processor.apply(cut), torch.stack(expected))


@given(seed=st.integers(0, 10**6))
@settings(max_examples=40)
def test_v2_answers_as_v1_does_while_slots_are_used_again_and_rows_change_places(
    seed: int, artifacts: list[Artifact]
) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    processor = v2(artifacts)
    slots: dict[int, SamplingParams] = {}
    for _ in range(6):
        for slot in rng.sample(range(SLOTS), rng.randint(0, 4)):
            slots[slot] = some_params(artifacts, rng)
            assert processor.add_request(slot, slots[slot]) == (slots[slot].extra_args is not None)
        step = rng.sample(sorted(slots), rng.randint(0, len(slots)))
        logits = torch.randn(len(step), VOCAB) * 3
        answered = processor.apply(logits.clone(), context(step))
        for row, slot in enumerate(step):
            torch.testing.assert_close(answered[row], alone(logits[row], slots[slot], artifacts))


def test_v2_answers_every_row_of_a_request_that_has_several(artifacts: list[Artifact]) -> None:
    processor, asked = v2(artifacts), asking(question(artifacts[0], random.Random(1)))
    processor.add_request(3, asked)
    processor.add_request(5, ordinary())
    logits = torch.randn(3, VOCAB)
    step = context([3, 3, 5])
    several = LogitsContext(**{**vars(step), "idx_mapping_np": np.array([3, 5])})
    answered = processor.apply(logits.clone(), several)
    for row in (0, 1):
        torch.testing.assert_close(answered[row], alone(logits[row], asked, artifacts))
    assert torch.equal(answered[2], logits[2])


@pytest.mark.parametrize("processor", [TrieProcessorV1, TrieProcessorV2])
def test_a_bad_request_is_refused_at_admission_and_a_good_one_is_not(
    processor: type[TrieProcessorV1 | TrieProcessorV2], artifacts: list[Artifact]
) -> None:
    good = Round(asks=[Ask(path=[], question=question(artifacts[0], random.Random(1)))]).to_extra_args()
    processor.validate_params(SamplingParams(temperature=0.0, max_tokens=1, extra_args=good))
    processor.validate_params(ordinary())
    with pytest.raises(ValueError, match="has not exactly the fields"):
        processor.validate_params(SamplingParams(temperature=0.0, max_tokens=1, extra_args={"igd": {"node": 3}}))
    with pytest.raises(ValueError, match="max_tokens: 5 with igd"):
        processor.validate_params(SamplingParams(temperature=0.0, max_tokens=5, extra_args=good))


@given(seed=st.integers(0, 10**6))
@settings(max_examples=40)
def test_answers_beside_the_logits_are_those_in_them(seed: int, artifacts: list[Artifact]) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    processor, asked = v1(artifacts), [question(rng.choice(artifacts), rng) for _ in range(rng.randint(1, 6))]
    added: list[Any] = [(row, asking(each), [1], []) for row, each in enumerate(asked)]
    processor.update_state(BatchUpdateBuilder(added=added).get_and_reset(len(asked)))
    logits = torch.randn(len(asked), VOCAB) * 3
    answers = processor.answers(logits)
    assert answers is not None
    expected = processor.apply(logits.clone())
    for row, each in enumerate(asked):
        tokens = set(artifact_of(each, artifacts).trie.edge_token[slice_of(each, artifacts)].tolist())
        shown = {token: float(expected[row, token]) for token in tokens if torch.isfinite(expected[row, token])}
        found = dict(zip(answers.tokens[row].tolist(), answers.logprobs[row].tolist(), strict=True))
        assert {token for token in found if token >= 0} == set(shown)
        assert [found[token] for token in shown] == pytest.approx(list(shown.values()), abs=1e-6)
        assert found.get(-1, -math.inf) == -math.inf
        assert answers.tokens[row, 0] == -1, "vLLM's place for the sampled token"


def artifact_of(asked: NodeQuestion, artifacts: list[Artifact]) -> Artifact:
    return next(each for each in artifacts if each.version == asked.version)


def slice_of(asked: NodeQuestion, artifacts: list[Artifact]) -> slice:
    start, end = artifact_of(asked, artifacts).trie.row_start[asked.node : asked.node + 2].tolist()
    return slice(start, end)


def test_a_step_with_a_row_that_asks_nothing_goes_through_vllms_own_sampler(artifacts: list[Artifact]) -> None:
    processor, asked = v1(artifacts), asking(question(artifacts[0], random.Random(3)))
    assert processor.answers(torch.randn(1, VOCAB)) is None
    processor.update_state(BatchUpdateBuilder(added=[(1, asked, [1], [])]).get_and_reset(2))
    assert processor.answers(torch.randn(2, VOCAB)) is None


def test_a_question_that_no_trie_can_answer_has_no_child_beside_the_logits_either(artifacts: list[Artifact]) -> None:
    good, bad = question(artifacts[0], random.Random(3)), unanswerable(artifacts[0])[0]
    processor = v1(artifacts)
    processor.update_state(
        BatchUpdateBuilder(added=[(0, asking(bad), [1], []), (1, asking(good), [1], [])]).get_and_reset(2)
    )
    answers = processor.answers(torch.randn(2, VOCAB))
    assert answers is not None
    assert not torch.isfinite(answers.logprobs[0]).any()
    assert torch.isfinite(answers.logprobs[1]).any()


class Runner:
    """The parts of vLLM's V1 runner that forced tokens are read from: three requests over several steps."""

    def __init__(self, prompts: dict[str, list[int]], forced: int) -> None:
        nothing = NodeQuestion(version="x", node=NO_NODE, alpha=0.0, temperature=1.0, keep=1, forced=forced)
        plain = {"plain": SamplingParams(max_tokens=1)}
        asking_forced = SamplingParams(max_tokens=1, extra_args={EXTRA_ARG: nothing})
        self.requests = {
            name: SimpleNamespace(
                sampling_params=plain.get(name, asking_forced), prompt_token_ids=prompt, num_computed_tokens=0
            )
            for name, prompt in prompts.items()
        }
        generator = torch.Generator().manual_seed(1)
        self.weight = torch.randn(8, VOCAB, generator=generator)
        self.hidden = {name: torch.randn(len(prompt), 8, generator=generator) for name, prompt in prompts.items()}
        self.model = SimpleNamespace(compute_logits=lambda hidden: hidden @ self.weight)
        self.model_config = SimpleNamespace(get_vocab_size=lambda: VOCAB)

    def step(self, scheduled: dict[str, int]) -> torch.Tensor:
        """Lay the step's tokens out as V1 does; returns their hidden states."""
        starts = np.cumsum([0, *scheduled.values()])
        self.query_start_loc = SimpleNamespace(np=starts)
        self.input_batch = SimpleNamespace(req_id_to_index={name: row for row, name in enumerate(scheduled)})
        begins = {name: self.requests[name].num_computed_tokens for name in scheduled}
        return torch.cat([self.hidden[name][begins[name] :][:count] for name, count in scheduled.items()])

    def expected(self, name: str, forced: int) -> list[float]:
        logprobs = torch.log_softmax((self.hidden[name] @ self.weight).double(), dim=1)
        prompt = self.requests[name].prompt_token_ids
        return [float(logprobs[at - 1, prompt[at]]) for at in range(len(prompt) - forced, len(prompt))]


@pytest.mark.parametrize("chunk", [2, 5, 40])
def test_forced_tokens_are_scored_however_their_prompts_are_cut_into_steps(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_v1, "_BLOCK_LOGITS_CPU", 2 * VOCAB)  # two rows a pass
    rng = random.Random(chunk)
    lengths = {"one": 9, "plain": 7, "other": 12, "given up": 12}
    runner = Runner({name: [rng.randrange(VOCAB) for _ in range(size)] for name, size in lengths.items()}, forced=4)
    scored = runner_v1.ForcedTokens(runner)
    found: dict[str, Any] = {}
    while runner.requests.keys() - found.keys() - {"plain"}:
        left = {
            name: min(chunk, len(each.prompt_token_ids) - each.num_computed_tokens)
            for name, each in runner.requests.items()
        }
        scheduled = {name: count for name, count in left.items() if count}
        found |= scored.of_step(runner.step(scheduled), scheduled)
        for name, count in scheduled.items():
            runner.requests[name].num_computed_tokens += count
        if "given up" in runner.requests and "given up" not in found and runner.requests["one"].num_computed_tokens > 5:
            del runner.requests["given up"]
    for name in ("one", "other"):
        tensors = found[name]
        assert tensors.logprob_token_ids[:, 0].tolist() == runner.requests[name].prompt_token_ids[-4:]
        assert tensors.logprobs[:, 0].tolist() == pytest.approx(runner.expected(name, 4), abs=1e-5)
    assert "plain" not in found
    scored.of_step(torch.empty(0, 8), {})
    assert scored._begun == {}, "nothing is kept of who is gone"


def test_forced_tokens_whose_rows_lay_in_the_cache_have_no_number() -> None:
    runner = Runner({"one": list(range(10))}, forced=4)
    runner.requests["one"].num_computed_tokens = 7  # rows 5 and 6, which predict two of the four
    found = runner_v1.ForcedTokens(runner).of_step(runner.step({"one": 3}), {"one": 3})["one"].logprobs[:, 0].tolist()
    assert found[:2] == [math.inf, math.inf]
    assert found[2:] == pytest.approx(runner.expected("one", 4)[2:], abs=1e-5)


def test_a_row_that_asks_nothing_is_left_as_it_is(artifacts: list[Artifact]) -> None:
    nothing = NodeQuestion(version=artifacts[0].version, node=NO_NODE, alpha=0.2, temperature=1.0, keep=3)
    logits = torch.randn(VOCAB)
    assert torch.equal(alone(logits, asking(nothing), artifacts), logits)


def unanswerable(artifact: Artifact) -> list[NodeQuestion]:
    trie = artifact.trie
    leaf, degree = int(trie.leaf_node[0]), len(trie.children(0))  # type: ignore[arg-type]
    common: dict[str, Any] = {"alpha": 0.2, "temperature": 1.0, "keep": 5}
    return [
        NodeQuestion(version="of another day", node=0, **common),
        NodeQuestion(version=artifact.version, node=trie.num_nodes, **common),
        NodeQuestion(version=artifact.version, node=leaf, **common),
        NodeQuestion(version=artifact.version, node=0, listed=np.array([degree], dtype=np.int32), **common),
    ]


@pytest.mark.parametrize("at", range(4), ids=["version", "node", "leaf", "child"])
def test_a_question_that_no_trie_can_answer_shows_no_child_and_harms_no_other_row(
    at: int, artifacts: list[Artifact]
) -> None:
    good = asking(question(artifacts[0], random.Random(3)))
    bad = asking(unanswerable(artifacts[0])[at])
    processor = v1(artifacts)
    processor.update_state(BatchUpdateBuilder(added=[(0, bad, [1], []), (1, good, [1], [])]).get_and_reset(2))
    logits = torch.randn(2, VOCAB)
    answered = processor.apply(logits.clone())
    assert torch.isfinite(answered[0]).nonzero().flatten().tolist() == [0]
    torch.testing.assert_close(answered[1], alone(logits[1], good, artifacts))


@pytest.mark.parametrize("make", [v1, v2])
def test_an_unloaded_version_still_answers_the_requests_that_began_with_it(
    make: Callable[[list[Artifact]], Any], artifacts: list[Artifact]
) -> None:
    processor = make(artifacts)
    asked = asking(question(artifacts[0], random.Random(5)))
    logits = torch.randn(1, VOCAB)
    if isinstance(processor, TrieProcessorV1):
        processor.update_state(BatchUpdateBuilder(added=[(0, asked, [1], [])]).get_and_reset(1))
    else:
        processor.add_request(0, asked)
    processor.constraint.unload(artifacts[0].version)
    processor.constraint.unload(artifacts[0].version)
    assert processor.constraint.versions == (artifacts[1].version,)
    arguments = () if isinstance(processor, TrieProcessorV1) else (context([0]),)
    answered = processor.apply(logits.clone(), *arguments)
    torch.testing.assert_close(answered[0], alone(logits[0], asked, artifacts))
    assert processor.constraint.accept(asked).trie is None, "a new request finds it gone"


def test_vllms_log_softmax_reads_the_models_own_log_probabilities(artifacts: list[Artifact]) -> None:
    from vllm.v1.sample.sampler import Sampler

    trie = artifacts[0].trie
    asked = NodeQuestion(version=artifacts[0].version, node=0, alpha=1.0, temperature=1.0, keep=400)
    logits = torch.randn(1, VOCAB) * 4
    expected = torch.log_softmax(logits.double(), dim=-1)[0]
    read = Sampler.compute_logprobs(alone(logits[0], asking(asked), artifacts)[None])[0]
    for edge in trie.children(0):  # type: ignore[arg-type]
        token = int(trie.edge_token[edge])
        assert float(read[token]) == pytest.approx(float(expected[token]), abs=2e-6)
    assert sum(math.isfinite(value) for value in read) == len(trie.children(0)) + 1  # type: ignore[arg-type]


def test_v1_decides_what_greedy_sampling_takes(artifacts: list[Artifact]) -> None:
    assert not v1(artifacts).is_argmax_invariant()
    assert list(itertools.chain(v1(artifacts).constraint.versions)) == [each.version for each in artifacts]
