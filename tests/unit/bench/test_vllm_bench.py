"""`igd bench vllm` without vLLM: what it counts, how many run at once, and what it refuses."""

from __future__ import annotations

import asyncio
from types import FunctionType
from typing import TYPE_CHECKING

import pytest

from igd_core.bench.vllm import _Run, _summarise
from igd_core.bench.vllm_ways import Cost, _CountedSession, _TokenwiseSession, driven
from igd_core.cli.bench import DecodeFlags
from igd_core.cli.bench_vllm import VLLMFlags
from igd_core.cli.flags import read
from igd_core.cli.main import main, make_parser
from igd_core.engines.vllm.session import VLLMSession

if TYPE_CHECKING:
    from collections.abc import Sequence


def test_means_are_a_recommendations_and_shares_of_all_answers() -> None:
    costs = [
        Cost(seconds=1.0, requests=10, rounds=4, computed_tokens=90, distinct_tokens=60, answers=10, not_items=9),
        Cost(seconds=3.0, requests=20, rounds=6, computed_tokens=50, distinct_tokens=60, answers=10, not_items=10),
    ]
    result = _summarise("films", "vllm", 1, _Run(costs=costs, seconds=4.0, steps=[5, 6]))
    assert (result.per_second, result.p50_s, result.p99_s) == (0.5, 2.0, 3.0)
    assert (result.requests, result.rounds, result.engine_steps, result.most_extra_steps) == (15.0, 5.0, 5.5, 1)
    assert result.recomputed_tokens == 15.0, "what a cache spared is not counted against the other's waste"
    assert result.not_items == 0.95
    assert _summarise("films", "ours", 2, _Run(costs=costs, seconds=4.0, steps=[7])).most_extra_steps is None


async def test_no_more_run_at_once_than_asked_and_answers_keep_their_order() -> None:
    running = most = 0

    async def way(prompt: Sequence[int]) -> Cost:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return Cost(requests=prompt[0])

    costs = await driven(way, [[number] for number in range(7)], concurrency=3)
    assert most == 3
    assert [cost.requests for cost in costs] == list(range(7))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--concurrency", "1,many"), "concurrency: 'many' is not a whole number in 1..4096"),
        (("--concurrency", "0"), "concurrency: 0 is not in 1..4096"),
        (("--histories", "0"), "histories: 0 is not in 1..2147483647"),
    ],
)
def test_bad_numbers_are_refused_before_anything_starts(
    flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "vllm", *flags]) == 2
    assert capsys.readouterr().err == f"igd: {message}\n"


@pytest.mark.parametrize("kind", [_CountedSession, _TokenwiseSession])
def test_what_a_measured_session_does_otherwise_is_what_the_session_itself_does(kind: type[VLLMSession]) -> None:
    """Else a method that was renamed there goes on unmeasured."""
    changed = {name for name, value in vars(kind).items() if isinstance(value, FunctionType)}
    assert changed
    assert changed <= set(dir(VLLMSession))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["decode", "--vllm", '{"max_model_len": 64}'], "vllm: given, with engine 'tree'"),
        (["decode", "--engine", "vllm", "--vllm", '{"max_len": 64}'], "vllm: 'max_len' is no option"),
        (["decode", "--beams", "201"], "beams: 201 is not in 1..200"),
        (["decode", "--forced-weight", "1.0000001"], "forced_weight: 1.0000001 is not in 0..1"),
        (["vllm", "--vllm", "{"], "vllm: "),
        (["vllm", "--alpha", "nan"], "alpha: nan is not in 0..1"),
    ],
)
def test_a_flag_that_means_nothing_is_one_line_before_a_model_is_loaded(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"igd: {told}")
    assert error.count("\n") == 1


def test_what_is_measured_is_what_the_flags_say() -> None:
    asked = read(make_parser("bench").parse_args(["bench", "decode", "--data", "ml-100k", "--beams", "5"]), DecodeFlags)
    assert (asked.data, asked.beams, asked.histories, asked.alpha) == (("ml-100k",), 5, 20, 0.2)
    usual = read(make_parser("bench").parse_args(["bench", "vllm", "--concurrency", "2,2,4"]), VLLMFlags)
    assert (usual.data, usual.concurrency, usual.histories) == ((), (2, 4), 4)
    assert DecodeFlags(model="m").checkpoint() == "m"
