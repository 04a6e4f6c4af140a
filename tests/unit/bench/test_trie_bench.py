import json
from pathlib import Path

import numpy as np
import pytest
from bench.isolation import Limits
from bench.trie import TrieBench, _bench_rival, bench_trie, render
from bench.workload import PathWorkload

from igd_core.bench.random_nodes import random_nodes
from igd_core.catalogue.trie import TokenTrie
from igd_core.errors import IGDError
from igd_core.ids import NodeId


def test_bench_reports_every_part_and_what_a_rival_could_not_do(tiny_tokenizer_dir: Path) -> None:
    setup = TrieBench(
        tokenizer_dir=tiny_tokenizer_dir,
        rivals=("transformers", "no such rival"),
        limits=Limits(seconds=60.0),
        threads=1,
        kernel_s=0.0,
    )
    (result,) = json.loads(json.dumps(bench_trie(setup, [60])))
    assert result["items"] == result["build"]["leaves"] == 60
    assert 0 < result["build"]["grown_mib"] < result["build"]["peak_mib"]
    assert result["artifact"]["bytes_per_item"] > 0
    assert result["load"]["unverified_s"] > 0
    assert [row["rows"] for row in result["kernel"]] == [10, 100, 1000]
    exact, unknown = result["rivals"]
    assert exact["failure"] is None
    assert (exact["checked_rows"], exact["rows_with_barred"], exact["rows_with_foreign"]) == (200, 0, 0)
    assert unknown["failure"] == "KeyError: 'no such rival'"
    assert "KeyError: 'no such rival'" in render([result])


def test_rival_that_gave_up_is_not_tried_at_larger_sizes(tmp_path: Path) -> None:
    measured = _bench_rival(TrieBench(tokenizer_dir=tmp_path), "xgrammar-text", tmp_path, gave_up=100_000)
    assert measured == {"name": "xgrammar-text", "failure": "not tried: none at 100000 items"}


def test_failure_of_our_own_part_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(IGDError, match=r"10 items: .*tokenizer\.json: not found"):
        bench_trie(TrieBench(tokenizer_dir=tmp_path, rivals=()), [10])


def test_random_nodes_are_inner_nodes_of_every_depth(workload: PathWorkload) -> None:
    trie = TokenTrie.build(workload.offsets, workload.tokens)
    nodes = random_nodes(trie, 500, np.random.default_rng(0))
    assert not any(trie.is_leaf(NodeId(node)) for node in nodes.tolist())
    assert 0 in nodes
    depths = np.searchsorted(trie.level_start, nodes, side="right") - 1
    assert set(depths.tolist()) >= set(range(10))
