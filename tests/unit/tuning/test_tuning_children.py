"""The masked softmax against loops over tokens in float64: losses, gradients, BEAR's weights, rows as packs."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from factories import artifact_of_paths
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import next_tokens
from peft import LoraConfig, get_peft_model
from strategies import catalogues
from torch import nn

from igd_core.datasets.rows import HistoryRows
from igd_core.errors import DataError, InputError
from igd_core.ids import NodeId
from igd_core.tuning import children
from igd_core.tuning.batches import collate
from igd_core.tuning.bear import BearSettings
from igd_core.tuning.children import Decisions, bear_weights, child_cross_entropy, child_logits
from igd_core.tuning.examples import PackLimits, make_examples
from igd_core.tuning.loss import LossSettings, ResponseLosses, igd_loss, response_losses
from igd_core.tuning.settings import TuningSettings
from igd_core.tuning.weights import TokenWeights

if TYPE_CHECKING:
    from collections.abc import Callable

    from oracles import Path
    from transformers import PreTrainedModel

    from igd_core.artifact import Artifact
    from igd_core.catalogue.trie import TokenTrie
    from igd_core.engines.embedded.checkpoint import Checkpoint

WIDTH, VOCAB, PLACES = 5, 9, 7


def targets_of(trie: TokenTrie, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions, each of one node with children, and an edge of that node for each."""
    inner = np.flatnonzero(np.diff(trie.row_start))
    node_of = rng.choice(inner, size=PLACES)
    position = rng.integers(0, PLACES, size=count)
    node = node_of[position]
    edge = trie.row_start[node] + rng.integers(0, 1 << 30, size=count) % np.diff(trie.row_start)[node]
    return position.astype(np.int64), edge.astype(np.int64)


def by_hand(hidden: torch.Tensor, weight: torch.Tensor, trie: TokenTrie, position: Any, edge: Any, t: float) -> Any:
    """Cross-entropy of each target, and the log-probabilities of all of its siblings: one token after another."""
    losses, siblings = [], []
    for place, own in zip(position.tolist(), edge.tolist(), strict=True):
        parent = int(trie.parents(np.array([own + 1]))[0])
        edges = range(int(trie.row_start[parent]), int(trie.row_start[parent + 1]))
        logits = torch.stack([hidden[place] @ weight[int(trie.edge_token[each])] for each in edges]) / t
        logprobs = logits - torch.logsumexp(logits, dim=0)
        siblings.append(logprobs)
        losses.append(-logprobs[own - edges.start])
    return torch.stack(losses), siblings


@given(catalogue=catalogues(max_items=12), seed=st.integers(0, 1 << 32), chunk=st.sampled_from([1, 7, 1 << 18]))
@settings(max_examples=40)
def test_losses_gradients_and_bear_weights_are_those_of_a_loop_over_tokens(
    catalogue: Any, seed: int, chunk: int
) -> None:
    trie, rng = catalogue.trie(), np.random.default_rng(seed)
    position, edge = targets_of(trie, rng, count=11)
    temperature = float(rng.choice([1.0, 0.5, 2.0]))
    head = nn.Linear(WIDTH, VOCAB, bias=False).double()
    given = torch.from_numpy(rng.normal(size=(PLACES, WIDTH)))
    results = {}
    for name in ("ours", "theirs"):
        hidden = given.clone().requires_grad_()
        head.zero_grad()
        if name == "ours":
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(children, "_CHUNK_LOGITS", chunk)
                decisions = Decisions.of(trie, position, edge)
            logits = child_logits(hidden, head, decisions)
            losses = child_cross_entropy(logits, decisions, temperature=temperature)
        else:
            losses, siblings = by_hand(hidden, head.weight, trie, position, edge, temperature)
        (losses.double() * torch.arange(1, 12)).sum().backward()
        assert head.weight.grad is not None
        results[name] = (losses.detach().double(), hidden.grad, head.weight.grad.clone())
    for ours, theirs in zip(results["ours"], results["theirs"], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert len(decisions.chunks) == 1 or chunk < 1 << 18
    bear = BearSettings(weight=0.25, beams=2, xi=2.75)
    found = bear_weights(logits, decisions, bear, temperature=temperature)
    for ours, loss, logprobs in zip(found.tolist(), results["theirs"][0].tolist(), siblings, strict=True):
        kth = sorted(logprobs.tolist(), reverse=True)[: bear.beams][-1]
        assert ours == pytest.approx(1 + 0.25 / (1 + math.exp(-(-loss - kth) / bear.xi)), abs=1e-5)


def test_a_forced_token_has_no_loss_and_no_gradient() -> None:
    trie = artifact_of_paths([(1, 2, 0), (3, 0)], [1, 1]).trie
    hidden = torch.randn(2, WIDTH, requires_grad=True)
    head = nn.Linear(WIDTH, VOCAB, bias=False)
    forced = trie.edges_to(NodeId(int(trie.leaf_node[0])))[1:]
    decisions = Decisions.of(trie, np.array([0, 1]), np.array(forced, dtype=np.int64))
    losses = child_cross_entropy(child_logits(hidden, head, decisions), decisions)
    losses.sum().backward()
    assert losses.tolist() == [0.0, 0.0]
    assert hidden.grad is not None
    assert not hidden.grad.any()


class Scaled(nn.Linear):
    """A kind of output layer that nobody has heard of."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return 2.0 * super().forward(hidden)


def lora(**more: Any) -> nn.Module:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(WIDTH, VOCAB)

    adapted: Any = get_peft_model(
        Model(),
        LoraConfig(target_modules=["head"], r=2, init_lora_weights=False, **more),
    )
    head: nn.Module = adapted.base_model.model.head
    return head


@pytest.mark.parametrize(
    "make", [lambda: nn.Linear(WIDTH, VOCAB), lora, lambda: lora(use_dora=True), lambda: Scaled(WIDTH, VOCAB)]
)
def test_rows_of_an_output_layer_are_those_of_the_whole(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    head, grads = make(), []
    trie = artifact_of_paths([(1, 2, 0), (3, 0), (3, 1, 0), (8, 0)], [1] * 4).trie
    hidden = torch.randn(4, WIDTH)
    decisions = Decisions.of(trie, np.array([0, 1, 3]), np.array([1, 0, int(trie.row_start[2])], dtype=np.int64))
    for whole in (False, True):
        head.zero_grad()
        ours = child_logits(hidden, head, decisions)
        expected = head(hidden)[
            np.concatenate([chunk.places[chunk.row] for chunk in decisions.chunks]),
            np.concatenate([decisions.tokens[chunk.columns][chunk.column] for chunk in decisions.chunks]),
        ]
        torch.testing.assert_close(ours, expected)
        ((expected if whole else ours) ** 2).sum().backward()
        grads.append({name: each.grad.clone() for name, each in head.named_parameters() if each.grad is not None})
    assert grads[0].keys() == grads[1].keys() != set()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], atol=1e-5, rtol=1e-4)


def test_bear_leaves_the_sum_of_the_weights_as_it_is_and_more_to_what_a_beam_keeps() -> None:
    weights = torch.tensor([1.0, 0.2, 1.0])
    losses = ResponseLosses(cross_entropy=torch.ones(3), emphasis=torch.tensor([1.2, 1.0, 1.1]))
    weighted = losses.weighted(weights)
    assert weighted.sum().item() == pytest.approx(2.2)
    assert (weighted / weights).tolist() == pytest.approx([each * 2.2 / 2.5 for each in (1.2, 1.0, 1.1)])
    assert ResponseLosses(cross_entropy=torch.ones(3)).weighted(weights) is weights


LIMITS = PackLimits(rows=8, decisions_only=True)
ROWS = [([1], 2), ([1, 2], 3), ([1, 2, 3], 4), ([1, 2, 3], 9), ([7, 7], 8), ([30], 31), ([], 5), ([1, 2, 3], 140)]


def rows_of(rows: list[tuple[list[int], int]]) -> HistoryRows:
    return HistoryRows(
        history_start=np.cumsum([0, *(len(history) for history, _ in rows)]).astype(np.int64),
        history_item=np.array([item for history, _ in rows for item in history], dtype=np.int32),
        item=np.array([target for _, target in rows], dtype=np.int32),
    )


def loss_by_hand(model: PreTrainedModel, artifact: Artifact, beta: float, temperature: float) -> torch.Tensor:
    """``sum(w CE) / sum(w)`` over tokens that have siblings, row after row and token after token in float64."""
    paths: list[Path] = [tuple(artifact.trie.path(leaf)) for leaf in artifact.leaf_of_item]
    gain = {edge: float(each) for edge, each in enumerate(artifact.gains.information_gain)}
    total, weights = torch.zeros((), dtype=torch.float64), 0.0
    for history, target in ROWS:
        path, prompt = paths[target], artifact.prompt(history)  # type: ignore[arg-type]
        logits = model(input_ids=torch.tensor([[*prompt, *path]]), use_cache=False).logits[0, len(prompt) - 1 : -1]
        edges = artifact.trie.edges_to(NodeId(int(artifact.trie.leaf_node[artifact.leaf_of_item[target]])))
        for at, (token, edge) in enumerate(zip(path, edges, strict=True)):
            siblings = next_tokens(paths, path[:at])
            if len(siblings) > 1:
                weight = beta if gain[edge] == 0 else 1.0
                logprobs = torch.log_softmax(logits[at, siblings].double() / temperature, dim=0)
                total = total - weight * logprobs[siblings.index(token)]
                weights += weight
    return total / weights


@pytest.mark.parametrize("kind", ["llama-fp32", "qwen2-fp32"])  # with an output layer of its own, and with a tied one
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_rows_as_packs_have_the_loss_and_the_gradients_of_rows_one_by_one(
    artifact: Artifact, checkpoint_of: Callable[[str], Checkpoint], kind: str, temperature: float
) -> None:
    model: Any = copy.deepcopy(checkpoint_of(kind).model).requires_grad_(requires_grad=True)
    made = make_examples(artifact, rows_of(ROWS), LIMITS, TokenWeights(beta=0.3))
    grads = []
    losses = []
    for ours in (True, False):
        model.zero_grad()
        if ours:
            batch = collate(made.packs, artifact.trie)
            found = response_losses(
                model.get_decoder(), model.get_output_embeddings(), batch, LossSettings(temperature=temperature)
            )
            loss = igd_loss(found.cross_entropy, batch["weight"])
        else:
            loss = loss_by_hand(model, artifact, 0.3, temperature)
        loss.backward()
        losses.append(float(loss.detach()))
        grads.append({name: each.grad for name, each in model.named_parameters() if each.grad is not None})
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], atol=2e-5, rtol=1e-3)


def test_of_a_row_decisions_alone_are_asked_and_nothing_behind_the_last_is_fed(artifact: Artifact) -> None:
    whole = make_examples(artifact, rows_of(ROWS), replace(LIMITS, decisions_only=False), TokenWeights())
    alone = make_examples(artifact, rows_of(ROWS), LIMITS, TokenWeights())
    paths = [tuple(artifact.trie.path(leaf)) for leaf in artifact.leaf_of_item]
    decisions = sum(
        len(next_tokens(paths, paths[target][:at])) > 1 for _, target in ROWS for at in range(len(paths[target]))
    )
    assert alone.targets == decisions < whole.targets
    assert alone.row_tokens < whole.row_tokens
    assert alone.tokens <= whole.tokens
    for pack in alone.packs:
        assert pack.target.tolist() == artifact.trie.edge_token[pack.edge].tolist()


def test_a_catalogue_of_one_title_leaves_nothing_to_decide() -> None:
    one = artifact_of_paths([(1, 2, 0), (1, 2, 0)], [1, 1])
    with pytest.raises(DataError, match="the catalogue has one title: normalised over children there is nothing"):
        make_examples(one, rows_of([([0], 1)]), LIMITS, TokenWeights())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"normalise": "siblings"}, "normalise: 'siblings' is not one of vocabulary, children"),
        ({"temperature": 0.0}, "temperature: 0.0 is not in"),
        ({"bear": 0.25}, "bear: 0.25 with normalise vocabulary; it needs children"),
        ({"normalise": "children", "bear": 0.25, "bear_xi": 0.0}, "bear_xi: 0.0 is not in"),
        ({"bear_beams": 0}, "bear_beams: 0 is not in"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TuningSettings.read(wrong)
