"""How processes share the steps of a run: the same packs in the same micro-batches, about as many tokens each."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd_core.errors import InputError
from igd_core.tuning.batches import StepSampler, even_cuts, even_shares
from igd_core.tuning.examples import Pack
from igd_core.tuning.team import Team, kind_of

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=60)


def pack(length: int, rows: int = 1) -> Pack:
    tokens = np.zeros(length, dtype=np.int32)
    one = np.zeros(1, dtype=np.int32)
    return Pack(
        tokens=tokens, depth=tokens, segment_start=one, segment_parent=one - 1, position=one, target=one, edge=one,
        zero_ig=one.astype(bool), weight=np.full(1, length / 7, dtype=np.float32), rows=rows,
    )  # fmt: skip


def sampler(lengths: list[int], *, rank: int = 0, size: int = 1, micro_batches: int = 4) -> StepSampler:
    team = Team(rank=rank, size=size)
    made = StepSampler([pack(each) for each in lengths], batch=8, micro_batches=micro_batches, seed=3, team=team)
    made.set_epoch(1)
    return made


def steps(samplers: list[StepSampler]) -> list[list[tuple[int, ...]]]:
    """Micro-batches of all processes, by step."""
    made = [list(each) for each in samplers]
    return [
        sorted(
            tuple(part) for each, of in zip(made, samplers, strict=True) for part in each[n * of.passes :][: of.passes]
        )
        for n in range(samplers[0].steps_per_epoch)
    ]


@given(lengths=st.lists(st.integers(1, 60), min_size=4, max_size=60), size=st.sampled_from([2, 4]))
def test_processes_share_the_micro_batches_that_one_would_compute(lengths: list[int], size: int) -> None:
    one = sampler(lengths)
    team = [sampler(lengths, rank=rank, size=size) for rank in range(size)]
    assert steps(team) == steps([one])
    weights = [one.weight_of_step(number) for number in range(one.steps_per_epoch)]
    for number, step in enumerate(steps([one])):
        expected = sum(lengths[index] / 7 for index in chain.from_iterable(step))
        assert weights[number] == pytest.approx(expected)
        assert team[-1].weight_of_step(number) == weights[number]


@given(lengths=st.lists(st.integers(1, 60), min_size=6, max_size=60), size=st.integers(1, 6))
def test_steps_hold_the_same_packs_whoever_shares_them(lengths: list[int], size: int) -> None:
    team = [sampler(lengths, rank=rank, size=size) for rank in range(size)]
    assert len({len(each) for each in team}) == 1
    found = [sorted(chain.from_iterable(step)) for step in steps(team)]
    assert found == [sorted(chain.from_iterable(step)) for step in steps([sampler(lengths)])]
    assert all(part for step in steps(team) for part in step)


def test_a_step_of_fewer_packs_than_devices_is_refused() -> None:
    with pytest.raises(InputError, match="devices: 4, and a step has 3 packs of rows to share"):
        sampler([5, 6, 7], size=4)


@given(lengths=LENGTHS, parts=st.integers(1, 60))
def test_cuts_leave_no_part_empty_and_no_part_much_larger_than_its_share(lengths: list[int], parts: int) -> None:
    parts = min(parts, len(lengths))
    found = np.split(np.array(sorted(lengths)), even_cuts(np.array(sorted(lengths)), parts))
    assert [*chain.from_iterable(found)] == sorted(lengths)
    assert len(found) == parts
    assert all(len(part) for part in found)
    if parts > 1 and len(set(lengths)) == 1:
        assert max(map(len, found)) - min(map(len, found)) <= 1


def test_tokens_are_even_where_packs_are_not() -> None:
    """Long packs share a micro-batch with few others; a quarter of the packs each would hold 40 to 360 tokens."""
    lengths = np.array(sorted([4] * 10 + [8] * 10 + [16] * 10 + [36] * 10))
    found = [int(part.sum()) for part in np.split(lengths, even_cuts(lengths, 4))]
    assert max(found) < 1.3 * min(found)  # to a pack
    shares = even_shares([9, 8, 7, 3, 2, 1], 2)
    assert sorted(chain.from_iterable(shares)) == [0, 1, 2, 3, 4, 5]
    assert sorted(sum([9, 8, 7, 3, 2, 1][index] for index in share) for share in shares) == [14, 16]
    assert [len(share) for share in shares] == [3, 3]


def test_a_device_that_cannot_be_shared_is_named() -> None:
    assert kind_of("cpu") == "cpu"
    with pytest.raises(InputError, match="device: 'cuda:1' is not one that several processes share"):
        kind_of("cuda:1")
