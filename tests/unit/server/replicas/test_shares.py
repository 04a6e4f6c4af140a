"""What each replica gets of settings, cores and cards, and how it is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from igd_server.replicas.orders import Orders
from igd_server.replicas.shares import DIVIDED, environment_of, share_of
from igd_server.settings import Settings, read_settings

from igd_core.errors import InputError


def several(**others: Any) -> Settings:
    values = {"artifact": "films", "model": "m", "operations_port": 0, "store": "file:///s", "replicas": 2, **others}
    return read_settings({}, **values)


@given(replicas=st.integers(2, 9), running=st.integers(9, 100), waiting=st.integers(0, 100))
def test_the_shares_add_up_to_the_operators_numbers(replicas: int, running: int, waiting: int) -> None:
    whole = several(replicas=replicas, max_running=running, max_waiting=waiting)
    shares = [share_of(whole, number) for number in range(1, replicas + 1)]
    for name in ("max_running", "max_waiting", "local_results", "cache_bytes", "max_unsent_bytes"):
        assert sum(getattr(share, name) for share in shares) == getattr(whole, name)
        assert max(getattr(share, name) for share in shares) - min(getattr(share, name) for share in shares) <= 1
    same = set(Settings.model_fields) - {*DIVIDED, "replicas"}
    assert all(getattr(share, name) == getattr(whole, name) for share in shares for name in same)
    assert {share.replicas for share in shares} == {1}


def test_a_share_is_never_less_than_a_setting_may_be() -> None:
    assert share_of(several(max_unsent_bytes=1 << 16), 2).max_unsent_bytes == 1 << 16


@pytest.mark.parametrize(
    ("cores", "set_by", "threads"), [(8, {}, "4"), (1, {}, "1"), (8, {"OMP_NUM_THREADS": ""}, "4")]
)
def test_cores_are_divided(cores: int, set_by: dict[str, str], threads: str) -> None:
    assert environment_of(several(), 1, set_by, cores=cores, cards=[])["OMP_NUM_THREADS"] == threads


def test_what_the_operator_says_of_threads_and_cards_holds() -> None:
    said = {"OMP_NUM_THREADS": "3", "HOME": "/h"}
    assert environment_of(several(), 1, said, cores=8, cards=[]) == said
    assert "CUDA_VISIBLE_DEVICES" not in environment_of(several(device="cuda:1"), 2, said, cores=8, cards=["0", "1"])
    assert "CUDA_VISIBLE_DEVICES" not in environment_of(several(device="cpu"), 2, said, cores=8, cards=["0", "1"])


@pytest.mark.parametrize(
    ("visible", "cards", "of_each"),
    [
        (None, ["0", "1"], ["0", "1", "0"]),
        ("4, GPU-5a,7", ["0"], ["4", "GPU-5a", "7"]),
        ("4", ["0", "1"], ["4", "4", "4"]),
        (None, ["0"], [None, None, None]),
        ("", ["0", "1"], ["", "", ""]),
    ],
)
def test_each_gets_a_card_in_turn(visible: str | None, cards: list[str], of_each: list[str | None]) -> None:
    said = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    given_cards = [environment_of(several(), number, said, cores=1, cards=cards) for number in (1, 2, 3)]
    assert [each.get("CUDA_VISIBLE_DEVICES") for each in given_cards] == of_each


def test_orders_arrive_as_they_were_given() -> None:
    variants = [{"name": "a", "gamma": [[0, 0.8], [5, 0.5]], "adapter": "tuned"}, {"name": "b", "alpha": 0.4}]
    settings = several(
        catalogues="films,books",
        artifact=None,
        adapters="tuned=/a,other=/b",
        variants=json.dumps(variants),
        store="redis://user:secret@host:1/0",
        rate_limit="10/5 second",
        keys_file="keys.json",
        allowed_hosts="*.shop.example",
        max_waiting=7,
    )
    orders = Orders(settings=share_of(settings, 2), number=2, listener=5, operations="/run/o", board="/run/b")
    line = orders.line()
    assert line.count(b"\n") == 1
    assert Orders.read(json.loads(line)) == orders
    assert isinstance(orders.settings.keys_file, Path)


def test_what_is_checked_of_an_operators_words_alone_is_not_checked_of_defaults() -> None:
    """The default of ``history_kinds`` names kinds that this server has not."""
    settings = share_of(several(event_kinds="click,buy"), 1)
    orders = Orders(settings=settings, number=1, listener=5, operations="/run/o", board="/run/b")
    assert Orders.read(json.loads(orders.line())).settings == settings


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ({"operations_port": None}, "replicas: 2 without operations_port"),
        ({"store": "memory://"}, "replicas: 2 with store memory://"),
        ({"rate_limit": "10/minute"}, "replicas: 2 with rate_limit"),
        ({"max_connections": 5}, "replicas: 2 with max_connections"),
        ({"max_running": 1}, "replicas: 2 with max_running 1"),
        ({"engine": "vllm"}, "replicas: 2 with engine 'vllm'"),
        ({"replicas": 0}, "replicas: input should be greater than or equal to 1, not 0"),
    ],
)
def test_settings_that_several_processes_cannot_keep_are_refused(others: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match="^" + words.replace("(", r"\(")):
        several(**others)
    if "replicas" not in others:
        assert several(**others, replicas=1).replicas == 1
