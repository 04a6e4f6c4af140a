"""`igd batch` before anything is read: what its flags may say, and that what cannot be is one line."""

from __future__ import annotations

import os

import pytest

from igd_core.batch.on_ray import Cluster
from igd_core.cli.batch import bounds_of
from igd_core.cli.main import main
from igd_core.errors import InputError

NEEDED = ["--artifact", "a", "--model", "m", "--rows", "r.csv", "--out", "o"]


def test_actors_are_a_number_or_two() -> None:
    assert [bounds_of(text) for text in ("3", "1:8")] == [(3, 3), (1, 8)]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--actors", "0"], "actors: '0' is not in 1..100000"),
        (["--actors", "4:2"], "actors: '4:2' is not in 1..100000, MIN before MAX"),
        (["--actors", "two"], "actors: 'two' is not N or MIN:MAX"),
        (["--cpus", "0"], "cpus: 0 is not in 0.."),
        (["--gpus", "-1"], "gpus: -1 is not in 0.."),
        (["--chunk-rows", "0"], "chunk_rows: 0 is not in 1.."),
        (["--filter", "{"], "filter: '{' is not JSON"),
    ],
)
def test_a_flag_that_means_nothing_is_one_line(flags: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    code: object
    try:
        code = main(["batch", *NEEDED, *flags])
    except SystemExit as ended:
        code = ended.code
    error = capsys.readouterr().err
    assert (code, error.count("\n")) == (2, 1)
    assert told in error


def test_what_a_machine_does_not_have_is_refused_before_ray_starts() -> None:
    here = len(os.sched_getaffinity(0))
    Cluster(address=None, least=here, most=here, cpus=1.0, gpus=0.0).check()
    Cluster(address=None, least=2 * here, most=2 * here, cpus=0.5, gpus=0.0).check()
    with pytest.raises(InputError, match=f"actors: {here + 1} of 1 CPUs need {here + 1}, and this machine has {here}"):
        Cluster(address=None, least=here + 1, most=here + 1, cpus=1.0, gpus=0.0).check()
    for address in ("auto", "ray://head:10001", "10.0.0.1:6379"):
        Cluster(address=address, least=1000, most=1000, cpus=1.0, gpus=0.0).check()
    with pytest.raises(InputError, match="address: 'http://x/y' is not auto"):
        Cluster(address="http://x/y", least=1, most=1, cpus=1.0, gpus=0.0).check()
