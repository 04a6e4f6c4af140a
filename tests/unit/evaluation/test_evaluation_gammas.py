"""Gamma by the length of a history: chosen as the rule says, and never by a few rows."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from igd_core.engines.fake import FakeEngine
from igd_core.errors import InputError
from igd_core.evaluation.bootstrap import Resampling
from igd_core.evaluation.decode import RowDecoder
from igd_core.evaluation.gammas import LEAST_ROWS, STARTS, WHOLE_ROWS, choose_gamma
from igd_core.evaluation.methods import Mixed, decoding_settings, with_chosen, with_mixings
from igd_core.evaluation.ranks import MethodRanks
from igd_core.ids import ItemIndex
from igd_core.scorers.counting import transition_rows
from igd_core.scorers.gamma_file import ChosenGamma
from igd_core.scorers.sparse import SparseScorer
from igd_core.search.normalisation import Normalisation

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from igd_core.artifact import Artifact

SETTING = "alpha=0 lp=0 beams=10"
_BEAMS = ((0.0, "alpha=0 lp=0 beams=20"), (0.5, "alpha=0 lp=0 beams=20 gamma=0.5"))


def method(ranks: Sequence[int], gamma: float, *, seen: str = "excluded", mixture: str = "") -> MethodRanks:
    name = SETTING + (f" gamma={gamma:g}" if gamma else "") + (f" mixture={mixture}" if mixture and gamma else "")
    return MethodRanks(name=name, seen=seen, known_as="", depth=10, titles=np.array(ranks, np.int64))


def gain(rank: int, k: int) -> float:
    return 1 / math.log2(rank + 1) if 1 <= rank <= k else 0.0


def by_the_rule(
    lengths: Sequence[int], targets: NDArray[np.int64], ranks: Mapping[float, Sequence[int]], k: int
) -> tuple[float, dict[int, float]]:
    """The surest gamma of all, and each bucket's by its first length: loops over rows, of the documented rule."""
    draws = np.concatenate(list(Resampling(groups=targets).weights(len(lengths))))  # how often each row is drawn
    gains = {gamma: np.array([gain(rank, k) for rank in ranks[gamma]]) for gamma in ranks}
    low = {gamma: np.quantile(draws @ gains[gamma] / draws.sum(axis=1), 0.025) for gamma in ranks}
    one = min(gamma for gamma in ranks if math.isclose(low[gamma], max(low.values()), rel_tol=1e-9))
    starts = [0]
    for start in STARTS[1:]:
        here = sum(starts[-1] <= length < start for length in lengths)
        beyond = sum(length >= start for length in lengths)
        if here >= LEAST_ROWS and beyond >= LEAST_ROWS:
            starts.append(start)
    chosen = {}
    for start, end in zip(starts, [*starts[1:], math.inf], strict=True):
        inside = np.array([start <= length < end for length in lengths])
        pooled = {}
        for gamma in ranks:
            of_all = draws @ gains[gamma] / draws.sum(axis=1)
            of_bucket, rows = draws[:, inside] @ gains[gamma][inside], draws[:, inside].sum(axis=1)
            pooled[gamma] = np.quantile((of_bucket + WHOLE_ROWS * of_all) / (rows + WHOLE_ROWS), 0.025)
        best = max(pooled.values())
        chosen[start] = one if math.isclose(pooled[one], best, rel_tol=1e-9) else max(pooled, key=pooled.__getitem__)
    return one, chosen


@pytest.mark.parametrize("seed", range(8))
def test_what_is_chosen_is_what_the_rule_says(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, gammas, k = int(rng.integers(300, 2500)), [0.0, 0.25, 0.5, 1.0], int(rng.integers(1, 11))
    lengths = 1 + rng.geometric(0.15, rows)
    ranks = {gamma: rng.integers(0, 13, rows) for gamma in gammas}
    targets = np.unique(rng.geometric(0.1, rows), return_inverse=True)[1]  # some titles in many rows
    chosen = choose_gamma([method(ranks[gamma].tolist(), gamma) for gamma in gammas], lengths, targets, k=k)
    assert chosen is not None
    one, table = by_the_rule(lengths.tolist(), targets, {gamma: each.tolist() for gamma, each in ranks.items()}, k)
    assert chosen.one == one
    assert {bucket.least: bucket.gamma for bucket in chosen.buckets} == table
    assert sum(bucket.rows for bucket in chosen.buckets) == rows == chosen.rows
    of_one = sum(bucket.rows * bucket.ndcg_of_one for bucket in chosen.buckets) / rows
    assert of_one == pytest.approx(chosen.ndcg[gammas.index(one)])


def test_a_title_that_many_rows_ask_for_does_not_choose_alone() -> None:
    """Half of the rows ask for one title, which gamma 0 finds; gamma 1 finds a third of all others."""
    targets = np.array([0] * 150 + [*range(1, 151)])
    hot = targets == 0
    ranks = {0.0: np.where(hot, 2, 0), 1.0: np.where(~hot & (targets % 3 == 0), 1, 0)}
    methods = [method(each.tolist(), gamma) for gamma, each in ranks.items()]
    chosen = choose_gamma(methods, np.ones(300, np.int64), targets, k=10)
    assert chosen is not None
    assert chosen.ndcg[0] > 1.8 * chosen.ndcg[1], "by the mean it would be gamma 0"
    assert (chosen.one, chosen.gamma) == (1.0, 1.0)
    assert "  0: 0.3155 (from 0.0000)  1: 0.1667 (from 0.0" in chosen.told()
    each_its_own = choose_gamma(methods, np.ones(300, np.int64), np.arange(300), k=10)
    assert each_its_own is not None
    assert each_its_own.one == 0.0, "were these 150 titles, it would be sure"


def test_where_every_lower_end_is_0_that_is_said() -> None:
    methods = [method([0, 1, 0], 0.0), method([1, 1, 0], 0.5)]
    chosen = choose_gamma(methods, np.ones(3, np.int64), np.arange(3), k=10)
    assert chosen is not None
    assert chosen.one == 0.5
    assert "too few rows: every lower end is 0, so the highest mean was taken" in chosen.told()


def test_settings_are_compared_by_what_is_sure_too() -> None:
    """Of two numbers of beams the one with the higher mean owes it to one title."""
    targets = np.array([0] * 100 + [*range(1, 101)])
    lucky = [replace(method(np.where(targets == 0, 1, 0).tolist(), gamma), name=name) for gamma, name in _BEAMS]
    sure = [method(np.where(targets % 4 == 0, 2, 0).tolist(), gamma) for gamma in (0.0, 0.5)]
    for methods in ([*lucky, *sure], [*sure, *lucky]):
        chosen = choose_gamma(methods, np.ones(200, np.int64), targets, k=10)
        assert chosen is not None
        assert chosen.setting == SETTING


def planted(rows: int, seed: int = 0) -> tuple[NDArray[np.int64], dict[float, NDArray[np.int64]]]:
    """Short histories whose targets gamma 1 finds more often, and long ones where gamma 0 does."""
    rng = np.random.default_rng(seed)
    lengths = np.where(np.arange(rows) % 2, 1, 30)
    right = {0.0: lengths == 30, 0.5: np.zeros(rows, bool), 1.0: lengths == 1}
    found = {gamma: rng.random(rows) < np.where(where, 0.5, 0.3) for gamma, where in right.items()}
    return lengths, {gamma: np.where(hit, 1, 0) for gamma, hit in found.items()}


def test_a_gamma_that_differs_by_length_is_found_and_shown_to_gain_on_other_rows() -> None:
    lengths, ranks = planted(2000)
    methods = [method(each.tolist(), gamma) for gamma, each in ranks.items()]
    chosen = choose_gamma(methods, lengths, np.arange(2000), k=10)
    assert chosen is not None
    assert chosen.gamma == ((0, 1.0), (2, 0.0))
    assert chosen.gain.low > 0.03
    assert "from   0 interactions on: gamma 1 " in chosen.told()
    assert chosen.told().endswith("gamma.json: 0:1,2:0")


def test_a_few_rows_follow_their_neighbours_and_the_whole() -> None:
    """99 long histories say gamma 0, all others 1: too few for a bucket, and in a bucket of 200 too weak a voice."""
    lengths = np.array([1] * 1900 + [30] * (LEAST_ROWS - 1))
    ranks = {1.0: np.where(lengths == 1, 1, 0), 0.0: np.where(lengths == 30, 1, 0)}
    chosen = choose_gamma([method(each.tolist(), gamma) for gamma, each in ranks.items()], lengths, lengths, k=10)
    assert chosen is not None
    assert ([bucket.least for bucket in chosen.buckets], chosen.gamma) == ([0], 1.0)
    weak = np.append(lengths, 30)  # now a bucket, of rows that are divided
    ranks = {1.0: np.where(weak == 1, 1, 0), 0.0: np.where((weak == 30) & (np.arange(len(weak)) % 2 == 0), 2, 0)}
    chosen = choose_gamma([method(each.tolist(), gamma) for gamma, each in ranks.items()], weak, weak, k=10)
    assert chosen is not None
    assert [(bucket.least, bucket.gamma) for bucket in chosen.buckets] == [(0, 1.0), (2, 1.0)]


def test_a_table_that_does_not_gain_on_other_rows_is_not_served() -> None:
    """Each title is found by one gamma, and no other title tells which: what chose it says nothing of the rest.

    Even where luck has it gain, as here.
    """
    rng = np.random.default_rng(3)
    lengths, titles = np.repeat([1, 4, 30], 400), np.arange(1200) // 60
    better = rng.random(20) < 0.5
    ranks = {0.0: np.where(better[titles], 1, 0), 1.0: np.where(better[titles], 0, 1)}
    chosen = choose_gamma([method(each.tolist(), gamma) for gamma, each in ranks.items()], lengths, titles, k=10)
    assert chosen is not None
    assert len({bucket.gamma for bucket in chosen.buckets}) == 2
    assert chosen.gain.low < 0 < chosen.gain.value
    assert chosen.gamma == chosen.one


def test_only_rows_with_a_history_and_a_known_target_choose() -> None:
    lengths, targets = np.array([0, 1, 1, 0]), np.array([5, 5, -1, -1])
    methods = [method([1, 0, 1, 1], 0.0), method([0, 1, 0, 0], 1.0)]
    chosen = choose_gamma(methods, lengths, targets, k=10)
    assert chosen is not None
    assert (chosen.rows, chosen.gamma, chosen.ndcg) == (1, 1.0, (0.0, 1.0))
    assert choose_gamma(methods, lengths, np.full(4, -1), k=10) is None
    assert choose_gamma(methods[:1], lengths, targets, k=10) is None
    assert choose_gamma(methods[1:], lengths, targets, k=10) is None


def test_the_best_mixture_is_chosen_of_lists_as_servers_make_them() -> None:
    lengths, targets = np.array([1, 1]), np.array([1, 2])
    plain = method([0, 3], 0.0)
    log_linear, linear = method([0, 2], 0.5), method([0, 1], 0.5, mixture="linear")
    allowed = [replace(each, seen="allowed") for each in (plain, method([1, 1], 0.25))]
    chosen = choose_gamma([plain, log_linear, linear, *allowed], lengths, targets, k=10)
    assert chosen is not None
    assert (chosen.seen, chosen.mixture, chosen.one, chosen.setting) == ("excluded", "linear", 0.5, SETTING)
    content = chosen.to_json(scorer="transitions", artifact="v", rows_sha256="s")
    assert (content["gamma"], content["mixture"], content["scorer"]) == (0.5, "linear", "transitions")
    alone = choose_gamma(allowed, lengths, targets, k=10)
    assert alone is not None
    assert (alone.seen, alone.one) == ("allowed", 0.25)


@pytest.mark.parametrize(
    "better",
    [
        "alpha=0 lp=1 beams=10",
        "alpha=0 lp=0 beams=10 forced=0",
        "alpha=0 lp=0 beams=10",
        "alpha=0 lp=1 beams=10 normalise=children",
    ],
)
def test_a_setting_that_a_server_does_not_make_by_itself_does_not_choose(better: str) -> None:
    lengths, targets = np.array([1, 1]), np.array([1, 2])

    def lists(setting: str, at_0: int, at_half: int) -> list[MethodRanks]:
        ranks = {"": [0, at_0], " gamma=0.5": [0, at_half]}
        return [replace(method(each, 0.0), name=setting + said) for said, each in ranks.items()]

    served = lists("alpha=0.2 lp=0 beams=40 normalise=children", 2, 3)
    chosen = choose_gamma([*lists(better, 2, 1), *served], lengths, targets, k=10)
    assert chosen is not None
    assert (chosen.setting, chosen.one) == ("alpha=0.2 lp=0 beams=40 normalise=children", 0.0)
    assert "only where a request or a variant asks" not in chosen.told()
    chosen = choose_gamma(lists(better, 2, 1), lengths, targets, k=10)
    assert chosen is not None
    assert (chosen.setting, chosen.one) == (better, 0.5)
    assert "only where a request or a variant asks" in chosen.told()


def test_a_methods_name_says_its_gamma() -> None:
    scored = [Normalisation(), Normalisation(normalise="children", temperature=0.5)]
    settings = decoding_settings(alphas=[0.2], length_penalties=[0.0], beams=[5], seen=["allowed"], scored=scored)
    for each in with_mixings(settings, gammas=[0.0, 0.05, 1.0], mixtures=["log-linear", "linear"]):
        said = Mixed.of(each.name)
        assert (said.gamma, said.mixture or each.mixing.mixture) == (each.mixing.gamma, each.mixing.mixture)
        assert said.setting == replace(each, mixing=settings[0].mixing).name
    table = with_chosen(settings, ChosenGamma(gamma=((0, 0.5), (3, 0.0)), mixture="linear", scorer="transitions"))
    assert [each.name for each in table] == [
        "alpha=0.2 lp=0 beams=5 normalise=children temperature=0.5 gamma=0:0.5,3:0 mixture=linear"
    ]
    assert [Mixed.of(each.name).gamma for each in table] == [0.0], "a table is none of the gammas tried"
    with pytest.raises(InputError, match="linear is of probabilities over the children"):
        with_chosen(settings[:1], ChosenGamma(gamma=((0, 0.5),), mixture="linear", scorer="transitions"))


@pytest.mark.parametrize("mixture", ["log-linear", "linear"])
async def test_a_table_decodes_each_row_as_its_gamma_does(artifact: Artifact, mixture: str) -> None:
    rows = transition_rows([np.arange(0, 150, 2, dtype=np.int32)], num_items=150, most=5)
    artifact = replace(artifact, scorer=SparseScorer(rows=rows, decay=0.5, backoff=1.0, fingerprint="twos"))
    settings = decoding_settings(
        alphas=[0.2],
        length_penalties=[0.0],
        beams=[5],
        seen=["allowed", "excluded"],
        scored=[Normalisation(normalise="children")],
    )
    chosen = ChosenGamma(gamma=((0, 0.9), (2, 0.0), (3, 0.3)), mixture=mixture, scorer="transitions")  # type: ignore[arg-type]
    fixed = with_mixings(settings, gammas=[0.9, 0.0, 0.3], mixtures=[chosen.mixture])
    engine = FakeEngine()
    await engine.load(artifact)
    table, plain = (RowDecoder(engine, artifact, each) for each in (with_chosen(settings, chosen), fixed))
    for length, place in ((1, 0), (2, 1), (3, 2)):
        history = [ItemIndex(item) for item in (8, 20, 34)[:length]]
        one = await plain.answer(history)
        by_gamma = [one.lists[2 * at : 2 * at + 2] for at in range(3)]
        assert (await table.answer(history)).lists == by_gamma[place]
        assert by_gamma[place] not in [each for at, each in enumerate(by_gamma) if at != place]
