"""Numbers that are none, as vLLM hands them back: an error, and nothing of them is remembered. Needs no vLLM."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from igd_core.engines.vllm.forced import ForcedLogprobs
from igd_core.engines.vllm.question import NOT_COMPUTED, NodeAnswer
from igd_core.engines.vllm.session import Prompt, VLLMSession
from igd_core.errors import EngineError, ModelFault
from igd_core.ids import ROOT, NodeId
from igd_core.search.fairness import Turn
from igd_core.search.session import Scoring

if TYPE_CHECKING:
    from igd_core.artifact import Artifact


def session_on(artifact: Artifact) -> VLLMSession:
    engine: Any = SimpleNamespace(model_id="tiny", forced=ForcedLogprobs())
    return VLLMSession(engine, artifact, Prompt(ids=[5, 6], scoring=Scoring(keep=500), order=1, turn=Turn()))


def answer(logprobs: dict[int, float], forced: list[float] | None = None) -> NodeAnswer:
    return NodeAnswer(
        cached=0,
        tokens=np.array(list(logprobs), dtype=np.int32),
        logprobs=np.array(list(logprobs.values()), dtype=np.float32),
        forced=np.array(forced or [], dtype=np.float32),
    )


@pytest.mark.parametrize("spoiled", ["a child", "only the rest"])
def test_a_row_with_a_nan_is_a_fault_that_names_the_model(artifact: Artifact, spoiled: str) -> None:
    session = session_on(artifact)
    tokens = artifact.trie.edge_token[list(artifact.trie.children(ROOT))].tolist()
    rest = next(token for token in range(1000) if token not in tokens)
    values = {rest: -9.0} | dict.fromkeys(tokens, -1.0)
    assert len(session._read_children(ROOT, answer(values)).edges) == len(tokens)
    values[rest if spoiled == "only the rest" else tokens[0]] = math.nan
    with pytest.raises(ModelFault, match=r"^model tiny: scores of node 0 are not finite$"):
        session._read_children(ROOT, answer(values))


@pytest.mark.parametrize("spoil", ["missing", "infinite", "foreign"])
def test_an_answer_without_one_of_the_children_is_refused(artifact: Artifact, spoil: str) -> None:
    session = session_on(artifact)
    tokens = artifact.trie.edge_token[list(artifact.trie.children(ROOT))].tolist()
    values = dict.fromkeys(tokens, -1.0)
    del values[tokens[2]]
    if spoil != "missing":
        values[tokens[2] if spoil == "infinite" else 999] = -math.inf if spoil == "infinite" else -1.0
    with pytest.raises(EngineError, match=rf"vLLM returned {len(tokens) - 1} of {len(tokens)} children of node 0"):
        session._read_children(ROOT, answer(values))


def forced_node(artifact: Artifact) -> NodeId:
    """A node with one child, which is no leaf."""
    trie = artifact.trie
    return next(
        NodeId(node)
        for node in range(trie.num_nodes)
        if len(trie.children(NodeId(node))) == 1 and not trie.is_leaf(NodeId(trie.children(NodeId(node))[0] + 1))
    )


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_forced_token_without_a_number_is_a_fault_and_is_not_remembered(artifact: Artifact, value: float) -> None:
    session, node = session_on(artifact), forced_node(artifact)
    chain = [node, NodeId(artifact.trie.children(node)[0] + 1)]
    asked = session._asks([chain])[0]
    assert asked.question.forced == 1
    with pytest.raises(ModelFault, match=f"^model tiny: scores of node {node} are not finite$"):
        session._read_chain(chain, asked, answer({}, [value]))
    assert len(session._engine.forced) == 0


def test_a_forced_token_that_was_not_computed_is_remembered_or_left_out(artifact: Artifact) -> None:
    session, node = session_on(artifact), forced_node(artifact)
    chain = [node, NodeId(artifact.trie.children(node)[0] + 1)]
    asked = session._asks([chain])[0]
    assert asked.path == artifact.trie.edge_token[artifact.trie.edges_to(chain[-1])].tolist()
    assert session._read_chain(chain, asked, answer({}, [NOT_COMPUTED])) == {}
    computed = session._read_chain(chain, asked, answer({}, [-2.5]))
    again = session._read_chain(chain, asked, answer({}, [NOT_COMPUTED]))
    assert computed[node].logprobs.tolist() == again[node].logprobs.tolist() == [-2.5]
