"""`igd batch` before anything is read: what its flags may say, and that what cannot be is one line."""

from __future__ import annotations

import os
import socket

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


@pytest.mark.parametrize(("cpus", "gpus", "told"), [(1.5, 0.0, "cpus: 1.5"), (1.0, 2.25, "gpus: 2.25")])
def test_only_less_than_one_may_be_a_fraction(cpus: float, gpus: float, told: str) -> None:
    with pytest.raises(InputError, match=f"^{told} is no whole number"):
        Cluster(address=None, least=1, most=1, cpus=cpus, gpus=gpus).check()


def test_an_address_is_of_a_known_form_and_reached() -> None:
    def check(address: str) -> None:
        Cluster(address=address, least=1000, most=1000, cpus=1.0, gpus=0.0).check()

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for address in ("auto", f"ray://127.0.0.1:{port}", f"127.0.0.1:{port}"):
            check(address)
    for address in (f"ray://127.0.0.1:{port}", f"127.0.0.1:{port}"):
        with pytest.raises(InputError, match=f"address: '{address}' is not reached: "):
            check(address)
    for address in ("http://x/y", "head", "127.0.0.1:99999999"):
        with pytest.raises(InputError, match=f"address: '{address}' is not auto"):
            check(address)
    with pytest.raises(InputError, match="is not reached"):
        check("127.0.0.1:99999")
