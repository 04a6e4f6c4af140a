"""Timed loops: our score kernel beside a plain log-softmax, and each rival's masks; run in a process of their own."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from bench.isolation import PeakMemory
from bench.rivals import make_rivals
from bench.workload import ContinuationOracle, PathWorkload, random_prefixes

from igd_core.artifact import load_artifact
from igd_core.bench.random_nodes import random_nodes
from igd_core.search.scores import RowSettings, TrieWeights, child_scores, constrain_logits_

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from bench.isolation import Report
    from bench.rivals import Constraint

_WARM_UP = 3
_MIN_ROUNDS = 9
_NODE_SAMPLES = 16
_MAX_ROUNDS = 200
_CHECKED_PROBES = 20
_MICRO = 1e6


def measure_kernel(arguments: Mapping[str, Any], report: Report) -> None:
    """Time one call of each score kernel, and of ``log_softmax`` over the same logits, interleaved.

    Logits are normal random, nodes lie at random depths of random paths, alpha is 0.2. Reports ``kernel``: a list with
    ``rows``, the medians ``log_softmax_us``, ``child_scores_us`` and ``constrain_logits_us``, and the ratios of the
    last two to the first.

    Args:
        arguments: ``artifact`` (directory), ``rows`` (list), ``vocab_size``, ``threads``, ``seconds`` (at
            each number of rows), ``seed``, ``device`` (where the logits are).
        report: receives the results.
    """
    torch.set_num_threads(arguments["threads"])
    artifact = load_artifact(arguments["artifact"], verify=False)
    weights = TrieWeights.of(artifact)
    rng = np.random.default_rng(arguments["seed"])
    measured = []
    for rows in arguments["rows"]:
        logits = torch.from_numpy(rng.standard_normal((rows, arguments["vocab_size"]), dtype=np.float32))
        logits = logits.to(arguments["device"])
        settings = [
            RowSettings(node=random_nodes(artifact.trie, rows, rng), alpha=np.full(rows, 0.2, dtype=np.float32))
            for _ in range(_NODE_SAMPLES)
        ]
        measured.append({"rows": rows, **_time_kernel(logits, weights, settings, seconds=arguments["seconds"])})
        report(kernel=measured)


def _time_kernel(
    logits: torch.Tensor, weights: TrieWeights, settings: Sequence[RowSettings], *, seconds: float
) -> dict[str, float]:
    scratch = torch.empty_like(logits)
    samples: list[tuple[float, float, float]] = []
    started = time.perf_counter()
    while len(samples) < _WARM_UP + _MIN_ROUNDS or (
        len(samples) < _MAX_ROUNDS and time.perf_counter() - started < seconds
    ):
        nodes = settings[len(samples) % len(settings)]
        plain_us = _elapsed_us(torch.log_softmax, logits, -1)
        scored_us = _elapsed_us(child_scores, logits, weights, nodes)
        scratch.copy_(logits)
        samples.append((plain_us, scored_us, _elapsed_us(constrain_logits_, scratch, weights, nodes)))
    plain, scored, constrained = np.median(samples[_WARM_UP:], axis=0).tolist()
    return {
        "log_softmax_us": plain,
        "child_scores_us": scored,
        "child_scores_ratio": scored / plain,
        "constrain_logits_us": constrained,
        "constrain_logits_ratio": constrained / plain,
    }


def measure_rival(arguments: Mapping[str, Any], report: Report) -> None:
    """Build one rival and time its masks.

    Reports ``build_s`` and ``build_mib`` (peak over the resident set before; matchers for all rows included, imports
    not); then ``row_us`` (one row's mask), ``batch_us`` (mask of all rows, applied to their logits) and
    ``batch_again_us`` (the same call again), each ``[median, 90th percentile]`` over random prefixes that it had not
    met before; ``peak_mib``; and, counted over ``checked_rows``, ``rows_with_barred`` (a token of the catalogue is
    barred) and ``rows_with_foreign`` (a token that leaves every token path is allowed).

    Args:
        arguments: ``workload`` (directory), ``rival``, ``rows``, ``probes``, ``seconds``, ``threads``, ``seed``.
        report: receives the results.
    """
    torch.set_num_threads(arguments["threads"])
    workload = PathWorkload.load(Path(arguments["workload"]))
    rival = make_rivals()[arguments["rival"]]
    rival.build(workload.head(2), rows=1)  # imports, and whatever a library sets up once
    memory = PeakMemory()
    started = time.perf_counter()
    constraint = rival.build(workload, rows=arguments["rows"])
    report(build_s=time.perf_counter() - started, build_mib=memory.peak_mib() - memory.before_mib)
    _time_masks(constraint, workload, arguments, report)
    report(peak_mib=memory.peak_mib())


def _time_masks(constraint: Constraint, workload: PathWorkload, arguments: Mapping[str, Any], report: Report) -> None:
    rows = arguments["rows"]
    rng = np.random.default_rng(arguments["seed"])
    oracle = ContinuationOracle(workload)
    source = torch.from_numpy(rng.standard_normal((rows, workload.vocab_size), dtype=np.float32))
    samples: list[tuple[float, float, float]] = []
    barred = foreign = checked = 0
    deadline = time.perf_counter() + arguments["seconds"]
    while len(samples) < arguments["probes"] and (not samples or time.perf_counter() < deadline):
        prefixes = random_prefixes(workload, rows=rows, rng=rng)
        standing = constraint.stand(prefixes)
        row_us = _elapsed_us(standing.mask_row, 0)
        batch_us = _elapsed_us(standing.process, source.clone())
        again = source.clone()
        samples.append((row_us, batch_us, _elapsed_us(standing.process, again)))
        if len(samples) <= _CHECKED_PROBES:
            for prefix, row in zip(prefixes, standing.process(again), strict=True):
                allowed, wanted = set(torch.isfinite(row).nonzero()[:, 0].tolist()), oracle(prefix)
                checked, barred, foreign = (
                    checked + 1,
                    barred + bool(wanted - allowed),
                    foreign + bool(allowed - wanted),
                )
    median, ninetieth = np.percentile(samples, [50, 90], axis=0).tolist()
    names = ("row_us", "batch_us", "batch_again_us")
    report(**{name: [m, n] for name, m, n in zip(names, median, ninetieth, strict=True)})
    report(probes=len(samples), checked_rows=checked, rows_with_barred=barred, rows_with_foreign=foreign)


def _elapsed_us(call: Callable[..., object], *arguments: object) -> float:
    _wait_for_gpu()
    started = time.perf_counter()
    call(*arguments)
    _wait_for_gpu()
    return (time.perf_counter() - started) * _MICRO


def _wait_for_gpu() -> None:
    """Launches return before their work is done."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
