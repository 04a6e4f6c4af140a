"""Passes by pieces, on a core each: the same to the bit, whole or in lanes; and what happens when one fails."""

from __future__ import annotations

import contextlib
import functools
import gc
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from checkpoints import TINY, random_model
from factories import laned_forward
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig

from igd_core.engines.embedded import lanes
from igd_core.engines.embedded.fastest_way import FastestWay
from igd_core.engines.embedded.forward import Fed
from igd_core.engines.embedded.lanes import Lanes, lanes_here, pieces_of, shared_out
from igd_core.engines.embedded.llama import LlamaForward
from igd_core.engines.embedded.packed_linear import PackedLinear, adds_up_in_one_order, pack_linears
from igd_core.engines.embedded.token_tree import Growth, NewTokens, TokenTree, grow
from igd_core.ids import ROOT, NodeId

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from igd_core.engines.embedded.lanes import Meet, Piece

has_bf16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
NOTHING = NewTokens(nodes=[], parents=[], tokens=[])


@st.composite
def feds(draw: st.DrawFn) -> Fed:
    """Tokens behind some old ones; each sees itself and what its parent sees, all see the old ones."""
    before, new = draw(st.integers(0, 5)), draw(st.integers(1, 120))
    how = draw(st.sampled_from(["prompt", "chains", "any tree"]))
    if how == "prompt":
        parents = list(range(-1, new - 1))
    elif how == "chains":
        length = draw(st.integers(1, 8))
        parents = [at - 1 if at % length else -1 for at in range(new)]
    else:
        parents = [draw(st.integers(-1, at - 1)) for at in range(new)]
    visible = np.zeros((new, before + new), dtype=np.bool_)
    visible[:, :before] = True
    for at, parent in enumerate(parents):
        if parent >= 0:
            visible[at] = visible[parent]
        visible[at, before + at] = True
    rows = draw(st.sets(st.integers(0, new - 1)))
    return Fed(
        tokens=list(range(new)),
        positions=[100 + at for at in range(new)],
        visible=torch.from_numpy(visible),
        rows=torch.tensor(sorted(rows), dtype=torch.int64),
    )


@given(fed=feds())
def test_pieces_are_the_whole_and_see_what_it_saw(fed: Fed) -> None:
    pieces, new = pieces_of(3, fed), len(fed.tokens)
    before = fed.visible.shape[1] - new
    assert [token for piece in pieces for token in piece.fed.tokens] == list(fed.tokens)
    assert [position for piece in pieces for position in piece.fed.positions] == list(fed.positions)
    assert [row for piece in pieces for row in (piece.fed.rows + piece.first).tolist()] == fed.rows.tolist()
    assert {piece.place for piece in pieces} == {3}
    for piece in pieces:
        count, seen = piece.fed.visible.shape
        assert (count, seen) == (len(piece.fed.tokens), before + piece.first + count)
        assert torch.equal(piece.fed.visible, fed.visible[piece.first : piece.first + count, :seen])
        assert not fed.visible[piece.first : piece.first + count, seen:].any()


@given(new=st.integers(1, 600))
def test_a_run_is_cut_evenly(new: int) -> None:
    visible = torch.from_numpy(np.tri(new, dtype=np.bool_))
    fed = Fed(tokens=range(new), positions=range(new), visible=visible, rows=torch.tensor([new - 1]))
    lengths = [len(piece.fed.tokens) for piece in pieces_of(0, fed)]
    assert max(lengths) <= 24
    assert max(lengths) - min(lengths) <= 1
    assert len(lengths) == 1 or min(lengths) >= 12


@given(tokens=st.lists(st.integers(1, 24), min_size=1, max_size=40), count=st.integers(2, 4))
def test_lanes_get_every_piece_once_and_about_as_much_each(tokens: list[int], count: int) -> None:
    shares, average = shared_out(tokens, count), sum(tokens) / count
    if shares:
        assert sorted(place for share in shares for place in share) == list(range(len(tokens)))
        assert len(shares) == count
        assert average >= 16
        assert max(sum(tokens[place] for place in share) for share in shares) <= 1.2 * average
    else:
        assert average < 16 or max(tokens) > 0.2 * average  # many small pieces can always be shared out


@pytest.mark.parametrize(
    ("tokens", "count", "possible"),
    [
        ([24], 2, {0, 1}),
        ([16, 16], 2, {0, 1, 2}),
        ([15, 16], 2, {0, 1}),
        ([24, 24], 1, {0, 1}),
        ([16] * 4, 4, {0, 1, 4}),
    ],
)
def test_a_pass_may_be_split_or_run_on_one_core_or_be_shared_out(
    tokens: list[int], count: int, possible: set[int]
) -> None:
    shares = lanes.shares_by_lanes(tokens, Lanes(count))
    assert shares.keys() == possible
    for way, each in shares.items():
        assert len(each) == max(1, way)
        assert sorted(place for share in each for place in share) == list(range(len(tokens)))
    assert lanes.shares_by_lanes(tokens, None).keys() == {0}


def test_a_lane_has_one_of_torchs_threads_and_the_others_keep_theirs() -> None:
    """Whoever makes the lanes, with a number of its own."""
    found: list[int] = []

    def torch_threads() -> None:
        found.append(torch.get_num_threads())

    def makes_lanes() -> None:
        torch.get_num_threads()
        torch.set_num_threads(3)  # the process's number, and this thread's
        reset = threading.Thread(target=torch.set_num_threads, args=(2,))  # the process's
        reset.start()
        reset.join()
        two = Lanes(2)
        found.extend([*two.run([lambda _: torch.get_num_threads()] * 2), torch.get_num_threads()])

    for what in (makes_lanes, torch_threads):
        thread = threading.Thread(target=what)
        thread.start()
        thread.join()
    torch.set_num_threads(1)
    assert found == [1, 1, 3, 2]


@pytest.mark.parametrize(("threads", "asked"), [(1, []), (2, [2]), (4, [4]), (5, [1])])
def test_several_lanes_are_for_few_cores(threads: int, asked: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(lanes, "_lanes", made.append)
    assert lanes_here() is None
    assert made == asked


def test_the_error_is_that_of_the_lane_that_failed_and_the_next_pass_goes_on() -> None:
    two, met = Lanes(2), []

    def waits(meet: Meet) -> None:
        met.append(1)
        meet()
        met.append(2)

    def fails(_: Meet) -> None:
        raise torch.OutOfMemoryError("no room")

    for calls in ([waits, fails], [fails, waits]):
        with pytest.raises(torch.OutOfMemoryError, match="no room"):
            two.run(calls)
    assert met == [1, 1]
    assert two.run([lambda meet: meet() is not None] * 2) == [True, True]


def test_where_a_thread_cannot_be_started_there_are_no_lanes_and_nothing_waits(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start, before = threading.Thread.start, set(threading.enumerate())

    def limited(thread: threading.Thread) -> None:
        if thread.name == "igd-lane_1":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    assert lanes._lanes.__wrapped__(2) is None
    assert "can't start new thread" in caplog.text
    assert set(threading.enumerate()) <= before


def test_where_the_number_of_threads_cannot_be_given_back_by_another_thread_it_is_by_this_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start, before = threading.Thread.start, torch.get_num_threads()
    told: list[int] = []

    def limited(thread: threading.Thread) -> None:
        if not thread.name.startswith("igd-lane"):
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", limited)
        patched.setattr(torch, "set_num_threads", told.append)
        with pytest.raises(RuntimeError, match="new thread"):
            Lanes(2)
    assert told == [1, 1, before]


def test_what_a_failed_call_held_is_let_go_at_once() -> None:
    two = Lanes(2)

    def fails(held: object, meet: Meet) -> None:
        meet()
        raise ValueError(id(held))

    class Held:
        pass

    held = Held()
    gone = weakref.ref(held)
    gc.disable()
    try:
        with pytest.raises(ValueError, match=r"\d") as raised:
            two.run([functools.partial(fails, held)] * 2)
        del held, raised
        assert gone() is None
    finally:
        gc.enable()


def test_two_passes_at_a_time_do_not_wait_for_each_others_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    two, done = Lanes(2), []
    submit = two._threads.submit

    def slowly(*args: Any) -> Any:
        submitted = submit(*args)
        time.sleep(0.02)  # in which the other pass could take the second thread
        return submitted

    def passes() -> None:
        for _ in range(5):
            two.run([lambda meet: meet()] * 2)
        done.append(True)

    monkeypatch.setattr(two._threads, "submit", slowly)

    threads = [threading.Thread(target=passes, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert done == [True, True]


@pytest.fixture(scope="module", params=["2 lanes", "4 lanes", "2 lanes, bf16", "2 lanes, plainly"])
def laned(request: pytest.FixtureRequest) -> LlamaForward:
    if "bf16" in request.param and not has_bf16:
        pytest.skip("this processor has no bf16 products")
    model = random_model(LlamaConfig(**TINY))
    forward = laned_forward(model, count=int(request.param[0]))
    layers = [module for module in model.modules() if isinstance(module, PackedLinear)]
    for layer in layers:
        if "bf16" in request.param:
            layer.multiply_in(torch.bfloat16)
        if "plainly" in request.param:
            if not adds_up_in_one_order(layer.in_features, layer.out_features):
                pytest.skip("this processor's plain product adds up rows in other orders")
            layer.lay_out_plainly()
    return forward


def grown(forward: LlamaForward, people: Sequence[tuple[int, int, int]]) -> Iterator[torch.Tensor]:
    """Logits of a pass with everybody's prompt and of one with a round of chains for each, all or some of them."""
    trees = [TokenTree(forward, [number + 1, *range(prompt)]) for number, (prompt, *_) in enumerate(people)]
    with torch.inference_mode():
        yield from grow([Growth(tree=tree, new=NOTHING, wanted=[True]) for tree in trees])
        new = []
        for _, count, length in people:
            nodes = [NodeId(at + 1) for at in range(count)]
            parents = [nodes[at - 1] if at % length else ROOT for at in range(count)]
            new.append(NewTokens(nodes=nodes, parents=parents, tokens=[at % 60 for at in range(count)]))
        yield from grow(
            [
                Growth(tree=tree, new=each, wanted=[at % 3 > 0 for at in range(len(each.nodes))])
                for tree, each in zip(trees, new, strict=True)
            ]
        )


@settings(max_examples=30)
@given(people=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 40), st.integers(1, 5)), min_size=1, max_size=4))
def test_in_lanes_and_in_one_piece_everybody_gets_the_same_to_the_bit(
    laned: LlamaForward, people: list[tuple[int, int, int]]
) -> None:
    ran: list[int] = []
    two: Any = laned._lanes()
    run = two.run

    def counted(calls: Any) -> Any:
        ran.append(len(calls))
        return run(calls)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(two, "run", counted)
        in_lanes = list(grown(laned, people))
        assert ran or two.count > 2 or sum(prompt + 1 for prompt, *_ in people) < 4
        chooser = laned._fastest[laned._layers[0].query.dtype]
        for ways in (1, 0):  # one lane, or none
            ran.clear()
            patched.setattr(chooser, "choose", lambda _, possible, ways=ways: possible[ways])
            for ours, theirs in zip(in_lanes, grown(laned, people), strict=True):
                assert torch.equal(ours, theirs)
            assert ran == [1, 1] * ways
    for ours, theirs in zip(in_lanes[:: len(people)], grown(laned, people[:1]), strict=True):
        assert torch.equal(ours, theirs)  # the first of them, with nobody else there


def test_what_another_lane_has_not_written_yet_weighs_nothing(
    laned: LlamaForward, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for keys and values holds what was in the memory: here no numbers."""
    empty = torch.empty
    people = [(3, 30, 1), (9, 30, 3)]
    expected = list(grown(laned, people))
    monkeypatch.setattr(torch, "empty", lambda *size, **how: empty(*size, **how).fill_(float("nan")))
    for ours, theirs in zip(grown(laned, people), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_a_pass_that_fails_in_one_lane_leaves_the_trees_as_they_were(
    laned: LlamaForward, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = TokenTree(laned, list(range(50)))
    run = type(laned)._run
    failed: list[bool] = []

    def failing(self: Any, pieces: Sequence[Piece], *others: Any) -> Any:
        if any(piece.first for piece in pieces) and not failed:
            failed.append(True)
            raise torch.OutOfMemoryError("out of memory")
        return run(self, pieces, *others)

    with torch.inference_mode():
        monkeypatch.setattr(type(laned), "_run", failing)
        with pytest.raises(torch.OutOfMemoryError):
            tree.compute(NOTHING, [True])
        assert torch.equal(tree.compute(NOTHING, [True]), TokenTree(laned, list(range(50))).compute(NOTHING, [True]))


def test_what_a_pass_took_is_remembered_of_the_way_that_computed_it() -> None:
    told: list[tuple[str, int, object]] = []

    class Told(FastestWay):
        def choose(self, tokens: int, ways: Sequence[int]) -> int:
            told.append(("choose", tokens, list(ways)))
            return ways[tokens % 2]

        def took(self, tokens: int, way: int, seconds: float) -> None:
            assert seconds > 0
            told.append(("took", tokens, way))

    model = random_model(LlamaConfig(**TINY))
    pack_linears(model)
    made = Lanes(2)
    forward = LlamaForward(model, lanes=lambda: made, fastest=Told)
    for tokens in (9, 10, 33):
        list(grown(forward, [(tokens - 1, 1, 1)]))
    assert told[::4] == [("choose", 9, [0, 1]), ("choose", 10, [0, 1]), ("choose", 33, [0, 1, 2])]
    assert told[1::4] == [("took", 9, 1), ("took", 10, 0), ("took", 33, 1)]
    assert told[2::4] == [("choose", 1, [0, 1])] * 3
    assert forward._fastest.keys() == {torch.float32}


@pytest.mark.skipif(not has_bf16, reason="this processor has no bf16 products")
def test_passes_in_bf16_are_not_compared_with_those_in_fp32() -> None:
    model = random_model(LlamaConfig(**TINY))
    forward = laned_forward(model)
    for dtype in (torch.float32, torch.bfloat16):
        for module in model.modules():
            if isinstance(module, PackedLinear):
                module.multiply_in(dtype)
        list(grown(forward, [(9, 1, 1)]))
    assert forward._fastest.keys() == {torch.float32, torch.bfloat16}


def test_a_way_that_always_fails_is_left_alone_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    model, made = random_model(LlamaConfig(**TINY)), Lanes(2)
    pack_linears(model)
    forward, failed, passes = LlamaForward(model, lanes=lambda: made), [], 40

    def failing(_: object) -> None:
        failed.append(True)
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(made, "run", failing)
    found = 0
    for _ in range(passes):
        with contextlib.suppress(torch.OutOfMemoryError):
            found += len(list(grown(forward, [(8, 1, 1)]))) == 2
    assert 6 <= len(failed) <= 8  # three times for the prompt's size and three for the round's
    assert found >= passes - len(failed)


def test_a_model_with_one_head_has_no_lanes() -> None:
    model = random_model(LlamaConfig(**TINY | {"num_attention_heads": 1, "num_key_value_heads": 1}))
    pack_linears(model)
    assert LlamaForward(model, lanes=lambda: Lanes(2))._lanes() is None


@pytest.mark.parametrize("way", [0, 1, 2])
def test_the_output_layer_is_computed_where_the_pass_was_fed(way: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its products of few columns give other last bits on one thread than on several."""
    model, made, threads = random_model(LlamaConfig(**TINY)), Lanes(2), []
    pack_linears(model)
    forward = LlamaForward(model, lanes=lambda: made)
    head = forward._head

    def told(*given: Any) -> Any:
        threads.append(threading.current_thread())
        return head(*given)

    monkeypatch.setattr(forward, "_head", told)
    monkeypatch.setattr(FastestWay, "choose", lambda _self, _tokens, ways: max(each for each in ways if each <= way))
    list(grown(forward, [(40, 1, 1)]))
    assert threads == [threading.current_thread()] * 2
