"""Numbers that are none, as vLLM hands them back: an error, and nothing of them is remembered. Needs no vLLM."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from igd_core.engines.vllm.forced import ForcedLogprobs
from igd_core.engines.vllm.session import Prompt, VLLMSession, _Ask
from igd_core.errors import ModelFault
from igd_core.ids import ROOT, NodeId
from igd_core.search.fairness import Turn
from igd_core.search.session import Scoring

if TYPE_CHECKING:
    from igd_core.artifact import Artifact


class Flat(SimpleNamespace):
    """As vLLM's: as long as it has rows."""

    def __len__(self) -> int:
        return len(self.token_ids)


def session_on(artifact: Artifact) -> VLLMSession:
    engine: Any = SimpleNamespace(model_id="tiny", forced=ForcedLogprobs())
    return VLLMSession(engine, artifact, Prompt(ids=[5, 6], scoring=Scoring(keep=500), order=1, turn=Turn()))


def flat(logprobs: dict[int, float]) -> Any:
    return SimpleNamespace(token_ids=list(logprobs), logprobs=list(logprobs.values()))


@pytest.mark.parametrize("spoiled", ["a child", "only the rest"])
def test_a_row_with_a_nan_is_a_fault_that_names_the_model(artifact: Artifact, spoiled: str) -> None:
    session = session_on(artifact)
    tokens = artifact.trie.edge_token[list(artifact.trie.children(ROOT))].tolist()
    rest = next(token for token in range(1000) if token not in tokens)
    values = {rest: -9.0} | dict.fromkeys(tokens, -1.0)
    output: Any = SimpleNamespace(outputs=[SimpleNamespace(logprobs=flat(values))])
    assert len(session._read_children(ROOT, output).edges) == len(tokens)
    values[rest if spoiled == "only the rest" else tokens[0]] = math.nan
    output = SimpleNamespace(outputs=[SimpleNamespace(logprobs=flat(values))])
    with pytest.raises(ModelFault, match=r"^model tiny: scores of node 0 are not finite$"):
        session._read_children(ROOT, output)


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_forced_token_without_a_number_is_a_fault_and_is_not_remembered(artifact: Artifact, value: float) -> None:
    session, trie = session_on(artifact), artifact.trie
    node = next(
        NodeId(node)
        for node in range(trie.num_nodes)
        if len(trie.children(NodeId(node))) == 1 and not trie.is_leaf(NodeId(trie.children(NodeId(node))[0] + 1))
    )
    following = NodeId(trie.children(node)[0] + 1)
    path = trie.edge_token[trie.edges_to(following)].tolist()
    ask = _Ask(chain=[node, following], token_ids=[5, 6, *path], params=None)
    output: Any = SimpleNamespace(
        num_cached_tokens=0,
        prompt_token_ids=ask.token_ids,
        prompt_logprobs=Flat(
            start_indices=list(range(len(ask.token_ids))),
            logprobs=[*[-1.0] * (len(ask.token_ids) - 1), value],
            token_ids=ask.token_ids,
        ),
    )
    with pytest.raises(ModelFault, match=f"^model tiny: scores of node {node} are not finite$"):
        session._read_chain(ask, output)
    assert len(session._engine.forced) == 0
