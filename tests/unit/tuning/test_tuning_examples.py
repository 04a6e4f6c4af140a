from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from factories import make_catalogue
from hypothesis import given
from hypothesis import strategies as st

from igd_core.artifact import BuildOptions, build_artifact
from igd_core.datasets.rows import HistoryRows
from igd_core.errors import DataError
from igd_core.ids import ItemIndex
from igd_core.tuning.batches import StepSampler, by_length, collate
from igd_core.tuning.examples import PackLimits, make_examples
from igd_core.tuning.loss import LossSettings, response_losses
from igd_core.tuning.weights import TokenWeights

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import PreTrainedModel

    from igd_core.artifact import Artifact
    from igd_core.catalogue.tokenization import TitleTokenizer
    from igd_core.engines.embedded.checkpoint import Checkpoint
    from igd_core.tuning.examples import Examples, Pack

ALONE = PackLimits(rows=1)
WEIGHTS = TokenWeights()
TOGETHER = PackLimits(rows=8)


def history_rows_of(rows: Sequence[tuple[Sequence[int], int]]) -> HistoryRows:
    return HistoryRows(
        history_start=np.cumsum([0, *(len(history) for history, _ in rows)]).astype(np.int64),
        history_item=np.array([item for history, _ in rows for item in history], dtype=np.int32),
        item=np.array([target for _, target in rows], dtype=np.int32),
    )


GROWING = [([1], 2), ([1, 2], 3), ([1, 2, 3], 4), ([1, 2, 3], 9), ([7, 7], 8), ([30], 31), ([], 5)]


def cross_entropies(model: PreTrainedModel, packs: Sequence[Pack]) -> torch.Tensor:
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    return response_losses(decoder, head, collate(packs), LossSettings()).cross_entropy


def contexts(pack: Pack) -> list[tuple[tuple[int, ...], int, bool]]:
    """What each response token is predicted from, by walking the tree; order does not matter."""
    visible = pack.visible()
    found = []
    for position, target, zero_ig in zip(pack.position, pack.target, pack.zero_ig, strict=True):
        seen = np.flatnonzero(visible[position])
        assert pack.depth[seen].tolist() == list(range(len(seen)))
        found.append((tuple(pack.tokens[seen].tolist()), int(target), bool(zero_ig)))
    return found


def all_contexts(examples: Examples) -> list[tuple[tuple[int, ...], int, bool]]:
    return sorted(context for pack in examples.packs for context in contexts(pack))


@pytest.fixture(scope="module")
def bulleted(tokenizer: TitleTokenizer) -> Artifact:
    """Lines that begin with two tokens, and something behind them."""
    return build_artifact(make_catalogue(60), tokenizer, BuildOptions(bullet="<|im_start|>-", suffix=" "))


@pytest.fixture(params=["artifact", "bulleted"])
def prompted(request: pytest.FixtureRequest) -> Artifact:
    found: Artifact = request.getfixturevalue(request.param)
    return found


def test_prompt_and_response_are_what_serving_uses(prompted: Artifact) -> None:
    artifact = prompted
    rows = [([3, 14, 15], 9), (list(range(20, 33)), 40)]
    expected = []
    for history, target in rows:
        prompt = artifact.prompt([ItemIndex(item) for item in history])
        path = artifact.trie.path(artifact.leaf_of_item[target])
        expected += [((*prompt, *path[:at]), token) for at, token in enumerate(path)]
    made = make_examples(artifact, history_rows_of(rows), ALONE, WEIGHTS)
    assert [context[:2] for pack in made.packs for context in contexts(pack)] == expected


@given(rows=st.lists(st.tuples(st.lists(st.integers(0, 5), max_size=13), st.integers(0, 20)), min_size=1, max_size=25))
@pytest.mark.parametrize("kind", ["artifact", "bulleted"])
def test_rows_computed_together_predict_the_same_tokens_from_the_same_contexts(
    artifact: Artifact, bulleted: Artifact, kind: str, rows: list[tuple[list[int], int]]
) -> None:
    artifact = {"artifact": artifact, "bulleted": bulleted}[kind]
    data = history_rows_of(rows)
    alone, together = make_examples(artifact, data, ALONE, WEIGHTS), make_examples(artifact, data, TOGETHER, WEIGHTS)
    assert all_contexts(together) == all_contexts(alone)
    assert sum(pack.rows for pack in together.packs) == len(rows)
    assert together.tokens <= alone.tokens == together.row_tokens


def test_growing_histories_share_their_tokens(artifact: Artifact) -> None:
    together = make_examples(artifact, history_rows_of(GROWING), TOGETHER, WEIGHTS)
    assert together.tokens < 0.6 * together.row_tokens
    assert max(pack.rows for pack in together.packs) >= 4


@pytest.mark.parametrize(("bullet", "contradicts"), [("", True), ("-", False)])
def test_a_bullet_keeps_rows_from_asking_for_two_things_at_a_titles_end(
    tokenizer: TitleTokenizer, bullet: str, *, contradicts: bool
) -> None:
    made = build_artifact(make_catalogue(60), tokenizer, BuildOptions(bullet=bullet))
    asked = defaultdict(set)
    for context, target, _ in all_contexts(make_examples(made, history_rows_of(GROWING), TOGETHER, WEIGHTS)):
        asked[context].add(target)
    assert any(tokenizer.eos_id in targets and len(targets) > 1 for targets in asked.values()) == contradicts


@pytest.mark.parametrize("kind", ["llama-fp32", "qwen2-fp32"])
def test_losses_computed_together_equal_those_of_rows_one_by_one(
    artifact: Artifact, checkpoint_of: Callable[[str], Checkpoint], kind: str
) -> None:
    model = checkpoint_of(kind).model
    losses = {}
    for name, limits in (("alone", ALONE), ("together", TOGETHER)):
        packs = make_examples(artifact, history_rows_of(GROWING), limits, WEIGHTS).packs
        found = cross_entropies(model, packs)
        keys = [context[:2] for pack in packs for context in contexts(pack)]
        losses[name] = dict(zip(keys, found.tolist(), strict=True))
    assert losses["together"] == pytest.approx(losses["alone"], abs=2e-5)


def test_losses_equal_those_of_the_whole_model_on_a_plain_row(
    artifact: Artifact, checkpoint_of: Callable[[str], Checkpoint]
) -> None:
    model = checkpoint_of("llama-fp32").model
    packs = make_examples(artifact, history_rows_of(GROWING), TOGETHER, WEIGHTS).packs
    ours = cross_entropies(model, packs)
    for loss, (context, target, _) in zip(ours, [found for pack in packs for found in contexts(pack)], strict=True):
        logits = model(input_ids=torch.tensor([context])).logits[0, -1]
        assert loss.item() == pytest.approx(-torch.log_softmax(logits, dim=-1)[target].item(), abs=2e-5)


def test_a_row_too_long_loses_its_oldest_items_and_is_counted(artifact: Artifact) -> None:
    long = make_examples(artifact, history_rows_of([(list(range(10)), 11)]), PackLimits(rows=1), WEIGHTS)
    limit = len(long.packs[0]) - 1
    short = make_examples(
        artifact, history_rows_of([(list(range(10)), 11)]), PackLimits(rows=1, max_tokens=limit), WEIGHTS
    )
    assert (long.shortened, short.shortened) == (0, 1)
    assert len(short.packs[0]) <= limit
    newest = make_examples(artifact, history_rows_of([(list(range(1, 10)), 11)]), PackLimits(rows=1), WEIGHTS)
    assert short.packs[0].tokens.tolist() == newest.packs[0].tokens.tolist()


def test_a_response_that_cannot_fit_is_an_error(artifact: Artifact) -> None:
    with pytest.raises(DataError, match="max_tokens: 8; row 1 takes"):
        make_examples(artifact, history_rows_of([([1], 2)]), PackLimits(max_tokens=8), WEIGHTS)


def test_no_rows_are_an_error(artifact: Artifact) -> None:
    with pytest.raises(DataError, match="no rows"):
        make_examples(artifact, history_rows_of([]), ALONE, WEIGHTS)


@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=60), micro_batches=st.integers(1, 4), epoch=st.integers(0, 3)
)
def test_an_epoch_meets_every_pack_once_in_steps_of_a_batch_or_some_more(
    artifact: Artifact, sizes: list[int], micro_batches: int, epoch: int
) -> None:
    pool = make_examples(artifact, history_rows_of([([1, 2], item) for item in range(4)]), TOGETHER, WEIGHTS).packs
    assert pool
    packs = [_with_rows(pool[0], rows) for rows in sizes]
    batch = 4 * micro_batches  # packs of at most batch / micro_batches rows, as the settings ensure
    sampler = StepSampler(packs, batch=batch, micro_batches=micro_batches, seed=5)
    sampler.set_epoch(epoch)
    made = list(sampler)
    assert len(made) == len(sampler) == sampler.steps_per_epoch * sampler.micro_batches
    assert sorted(index for part in made for index in part) == list(range(len(packs)))
    assert all(made)
    assert list(sampler) == made
    if sum(sizes) >= batch:
        for step in range(sampler.steps_per_epoch):
            rows = sum(sizes[i] for part in made[step * micro_batches : (step + 1) * micro_batches] for i in part)
            assert batch - 4 < rows < 2 * batch + 4


def test_evaluation_batches_hold_every_pack_once(artifact: Artifact) -> None:
    packs = make_examples(artifact, history_rows_of(GROWING), ALONE, WEIGHTS).packs
    batches = by_length(packs, 100)
    assert sorted(index for batch in batches for index in batch) == list(range(len(packs)))
    assert len(batches) > 1


def _with_rows(pack: Pack, rows: int) -> Pack:
    return type(pack)(**{name: getattr(pack, name) for name in type(pack).__slots__ if name != "rows"}, rows=rows)
