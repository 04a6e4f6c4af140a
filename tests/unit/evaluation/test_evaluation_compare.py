from __future__ import annotations

import json
import math
import shutil
import statistics
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd_core.cli.main import main
from igd_core.errors import DataError, InputError
from igd_core.evaluation.bootstrap import Resampling
from igd_core.evaluation.compare import Comparison, Question, Trial, compare, pair, table
from igd_core.evaluation.methods import DecodingSetting, is_plain, ranks_by_sum
from igd_core.evaluation.ranks import RANKS_FILE, MethodRanks, RankedRun, read_ranks, to_ranks_json
from igd_core.search.normalisation import Normalisation
from igd_core.search.prior import NO_PRIOR, Mixing

if TYPE_CHECKING:
    from pathlib import Path

FEW = Resampling(resamples=200, seed=3)
KNOWN_AS = {"alpha=0": "D3", "alpha=0.2": "IGD", "alpha=0.4": "IGD", "alpha=0 forced=0": "", "popular": ""}


def ranked_run(path: Path, ranks: dict[str, list[int]], *, rows: str = "test") -> RankedRun:
    """A run whose methods have these ranks; ``a0`` stands for alpha 0, ``a2`` for 0.2, ``d0`` for decisions alone."""
    names = {"a0": "alpha=0", "a2": "alpha=0.2", "a4": "alpha=0.4", "d0": "alpha=0 forced=0", "pop": "popular"}
    methods = [
        MethodRanks(
            name=names[short],
            seen="allowed",
            known_as=KNOWN_AS[names[short]],
            depth=10,
            titles=np.array(values, dtype=np.int64),
        )
        for short, values in ranks.items()
    ]
    return RankedRun(path=path / RANKS_FILE, identity={"artifact": "v1", "rows_sha256": rows}, methods=methods)


def ndcg(ranks: list[int], k: int = 10) -> float:
    """By its definition, row by row."""
    return statistics.fmean(1 / math.log2(rank + 1) if 1 <= rank <= k else 0.0 for rank in ranks)


VALID_A = {"a0": [1, 0, 2, 0], "a2": [0, 0, 0, 1], "a4": [0, 0, 0, 0]}
VALID_B = {"a0": [1, 0, 2, 0], "a2": [1, 1, 2, 0], "a4": [0, 0, 0, 0]}
TEST_A = {"a0": [1, 0, 3, 0, 0, 7], "a2": [1, 1, 3, 1, 1, 1], "a4": [0, 0, 0, 0, 0, 0]}
TEST_B = {"a0": [2, 0, 3, 1, 0, 0], "a2": [1, 4, 3, 1, 0, 0], "a4": [1, 1, 1, 1, 1, 1]}


@pytest.fixture
def trials(tmp_path: Path) -> dict[str, list[Trial]]:
    """``plain`` once, ``tuned`` from two seeds."""

    def trial(valid: dict[str, list[int]], test: dict[str, list[int]]) -> Trial:
        return Trial(valid=ranked_run(tmp_path, valid, rows="valid"), test=ranked_run(tmp_path, test))

    return {"plain": [trial(VALID_A, TEST_A)], "tuned": [trial(VALID_B, TEST_B), trial(VALID_A, TEST_A)]}


def test_the_setting_is_chosen_on_validation_rows_and_judged_on_test_rows(trials: dict[str, list[Trial]]) -> None:
    plain, tuned = compare(pair(trials), Question(), FEW)
    # alpha 0.2 is better on plain's test rows, and 0.4 on tuned's: neither may be looked at.
    assert plain.chosen == ("alpha=0",)
    assert tuned.chosen == ("alpha=0.2", "alpha=0")
    assert plain.best.value == pytest.approx(ndcg(TEST_A["a0"]))
    assert tuned.chosen_by_seed == pytest.approx((ndcg(TEST_B["a2"]), ndcg(TEST_A["a0"])))


def test_one_setting_can_be_chosen_for_all_seeds_by_their_mean_on_validation_rows(
    trials: dict[str, list[Trial]], tmp_path: Path
) -> None:
    apart, together = (compare(pair(trials), Question(together=each), FEW)[1] for each in (False, True))
    # Means over B and A: alpha 0 has what either has, alpha 0.2 is better on B and worse on A.
    by_name = {name: (ndcg(VALID_B[name]) + ndcg(VALID_A[name])) / 2 for name in ("a0", "a2", "a4")}
    assert max(by_name, key=by_name.__getitem__) == "a2"
    assert together.chosen == ("alpha=0.2", "alpha=0.2")
    assert together.validated == pytest.approx(by_name["a2"])
    assert apart.validated == pytest.approx((ndcg(VALID_B["a2"]) + ndcg(VALID_A["a0"])) / 2)
    assert together.chosen_by_seed == pytest.approx((ndcg(TEST_B["a2"]), ndcg(TEST_A["a2"])))
    run = ranked_run(tmp_path, {"d0": [1]}, rows="valid")
    with pytest.raises(InputError, match=r"has no setting with length penalty 0"):
        compare(pair({"one": [replace(trials["plain"][0], valid=run)]}), Question(together=True), FEW)
    apart_runs = [ranked_run(tmp_path, {name: [1]}, rows="valid") for name in ("a0", "a2")]
    with pytest.raises(InputError, match=r"has no setting that all runs of its name have"):
        compare(
            pair({"one": [replace(trials["plain"][0], valid=each) for each in apart_runs]}),
            Question(together=True),
            FEW,
        )


def test_what_tuning_and_decoding_add_is_the_difference_of_means_over_seeds(trials: dict[str, list[Trial]]) -> None:
    plain, tuned = compare(pair(trials), Question(), FEW)
    base = ndcg(TEST_A["a0"])
    without = (ndcg(TEST_B["a0"]) + ndcg(TEST_A["a0"])) / 2
    with_alpha = (ndcg(TEST_B["a2"]) + ndcg(TEST_A["a0"])) / 2
    assert tuned.plain.value == pytest.approx(without)
    assert tuned.decoding.value == pytest.approx(with_alpha - without)
    assert tuned.tuning is not None
    assert tuned.tuning.value == pytest.approx(without - base)
    assert tuned.both is not None
    assert tuned.both.value == pytest.approx(with_alpha - base)
    assert plain.tuning is None
    assert plain.both is None


def test_each_name_is_compared_with_baselines_of_the_same_rows(trials: dict[str, list[Trial]], tmp_path: Path) -> None:
    ranks = [0, 1, 0, 2, 0, 0]
    baseline = ranked_run(tmp_path, {"pop": ranks, "a0": [1] * 6})
    plain, tuned = compare(pair(trials, {"popular": baseline}), Question(), FEW)
    for result in (plain, tuned):
        assert result.against["popular"].value.value == pytest.approx(ndcg(ranks))
        assert result.against["popular"].difference.value == pytest.approx(result.best.value - ndcg(ranks))
    assert replace(tuned, against={}) == compare(pair(trials), Question(), FEW)[1]
    (same,) = compare(pair({"one": trials["plain"]}, {"alpha=0": trials["plain"][0].test}), Question(), FEW)
    assert (same.against["alpha=0"].difference.low, same.against["alpha=0"].difference.high) == (0.0, 0.0)
    with pytest.raises(InputError, match=r"has no 'sasrec' with seen items allowed"):
        compare(pair(trials, {"sasrec": baseline}), Question(), FEW)
    with pytest.raises(InputError, match=r"cannot be paired with .*: rows_sha256 is 'valid', there it is 'test'"):
        compare(pair(trials, {"popular": ranked_run(tmp_path, {"pop": [1]}, rows="valid")}), Question(), FEW)


def sample_of(path: Path, ranks: dict[int, int], *, limit: int | None, targets: list[int] | None = None) -> RankedRun:
    """A run on these rows of a file: rank by row."""
    run = ranked_run(path, {"a0": list(ranks.values())})
    groups = None if targets is None else np.array(targets)
    return replace(run, identity=dict(run.identity) | {"limit": limit}, rows=np.array(list(ranks)), targets=groups)


def test_samples_of_one_file_are_compared_on_the_rows_that_all_hold(tmp_path: Path) -> None:
    few = sample_of(tmp_path, {2: 1, 5: 0, 9: 3}, limit=3)
    more = sample_of(tmp_path, {1: 1, 2: 0, 4: 1, 5: 4, 8: 1, 11: 1}, limit=6)
    whole = sample_of(tmp_path, dict.fromkeys(range(12), 2), limit=None)
    trials = {"few": [Trial(valid=few, test=few)], "more": [Trial(valid=few, test=more)]}
    paired = pair(trials, {"alpha=0": whole})
    assert paired.shared == {"test": 2}
    first, second = compare(paired, Question(), FEW)
    assert first.plain.value == pytest.approx(ndcg([1, 0]))
    assert second.plain.value == pytest.approx(ndcg([0, 4]))
    assert first.against["alpha=0"].value.value == pytest.approx(ndcg([2, 2]))
    assert "on the 2 test rows that all runs hold\n" in table([first, second], Question(), paired)
    elsewhere = replace(more, identity=dict(more.identity) | {"rows_sha256": "another file"})
    with pytest.raises(InputError, match=r"rows_sha256 is 'another file', there it is 'test'$"):
        pair({"few": [Trial(valid=few, test=few)]}, {"alpha=0": elsewhere})
    other = sample_of(tmp_path, {0: 1, 3: 1}, limit=2)
    with pytest.raises(InputError, match=r"no row is in all of the 2 runs"):
        pair({"few": [Trial(valid=few, test=few)]}, {"alpha=0": other})
    with pytest.raises(InputError, match=r"limit is 3, there it is 6, and .* does not say which rows"):
        pair({"more": [Trial(valid=few, test=more)]}, {"alpha=0": replace(few, rows=None)})


def test_titles_can_be_drawn_instead_of_rows(tmp_path: Path) -> None:
    """Half of the rows ask for one title, which the second trial alone finds: a win by rows, one title's by titles."""
    plain = sample_of(tmp_path, {row: row % 2 for row in range(60)}, limit=None, targets=[*range(30), *[30] * 30])
    tuned = replace(
        plain, methods=[replace(each, titles=np.where(np.arange(60) < 30, each.titles, 1)) for each in plain.methods]
    )
    trials = {"plain": [Trial(valid=plain, test=plain)], "tuned": [Trial(valid=plain, test=tuned)]}
    paired = pair(trials)
    by_row = compare(paired, Question(), FEW)[1].tuning
    by_title = compare(paired, Question(draw="targets"), FEW)[1].tuning
    assert by_row is not None
    assert by_title is not None
    assert by_row.value == by_title.value == pytest.approx(15 / 60)
    assert by_row.low > 0
    assert by_title.low == 0
    assert "over the 31 titles that 60 test rows ask for" in table(
        compare(paired, Question(draw="targets"), FEW), Question(draw="targets"), paired
    )
    silent = replace(plain, targets=None)
    with pytest.raises(InputError, match=r"no run says which rows ask for the same title"):
        compare(pair({"plain": [Trial(valid=silent, test=silent)]}), Question(draw="targets"), FEW)


def test_hit_rates_can_be_asked_for(trials: dict[str, list[Trial]]) -> None:
    plain, _ = compare(pair(trials), Question(metric="HR@5"), FEW)
    assert plain.plain.value == pytest.approx(2 / 6)


def test_intervals_are_paired_by_row(tmp_path: Path) -> None:
    """Of two trials that differ by the same in every row, the difference is certain, though neither value is."""
    rng = np.random.default_rng(0)
    first = [int(rank) for rank in rng.choice([1, 0], size=300)]
    runs = {}
    for name, ranks in (("plain", first), ("tuned", [3 if rank == 1 else 1 for rank in first])):
        run = ranked_run(tmp_path, {"a0": ranks})
        runs[name] = [Trial(valid=run, test=run)]
    plain, tuned = compare(pair(runs), Question(metric="HR@10"), FEW)
    assert tuned.plain.low == tuned.plain.high == 1.0
    assert plain.plain.high - plain.plain.low > 0.05
    assert tuned.tuning is not None
    assert tuned.tuning.low == pytest.approx(1 - plain.plain.high)
    assert tuned.tuning.high == pytest.approx(1 - plain.plain.low)


def test_other_settings_are_chosen_from_only_where_they_are_named(tmp_path: Path) -> None:
    run = ranked_run(tmp_path, {"a0": [3, 0], "d0": [1, 1], "pop": [1, 1]})
    trials = {"one": [Trial(valid=run, test=run)]}
    (by_default,) = compare(pair(trials), Question(), FEW)
    assert by_default.chosen == ("alpha=0",)
    (named,) = compare(pair(trials), Question(among=("alpha=0", "alpha=0 forced=0")), FEW)
    assert named.chosen == ("alpha=0 forced=0",)
    assert named.decoding.value == pytest.approx(1 - 0.25)


def test_mixtures_are_chosen_from_and_what_the_model_says_by_itself_is_their_base(tmp_path: Path) -> None:
    """As runs of a model tuned over children are: nothing in them has a name in the literature."""
    over_children, widths = "alpha=0 lp=0 beams=40 normalise=children", {"seen": "allowed", "known_as": "", "depth": 10}
    ranks = {
        f"{over_children} gamma=0:0.8,5:0.5": [2, 0],
        over_children: [3, 0],
        f"{over_children} gamma=0.7 mixture=linear": [1, 2],
        "alpha=0 lp=1 beams=40": [1, 1],
        "alpha=0 lp=0 beams=40 forced=0": [1, 1],
        "popular": [1, 1],
    }
    methods = [MethodRanks(name=name, titles=np.array(each), **widths) for name, each in ranks.items()]  # type: ignore[arg-type]
    run = replace(ranked_run(tmp_path, {"pop": [1]}), methods=methods)
    (found,) = compare(pair({"one": [Trial(valid=run, test=run)]}), Question(), FEW)
    assert found.chosen == (f"{over_children} gamma=0.7 mixture=linear",)
    assert found.plain.value == pytest.approx(ndcg([3, 0]))
    assert found.decoding.value == pytest.approx(ndcg([1, 2]) - ndcg([3, 0]))


@given(
    alpha=st.sampled_from([0.0, 0.25]),
    penalty=st.sampled_from([0.0, 1.0]),
    forced=st.sampled_from([0.0, 1.0]),
    children=st.booleans(),
    gamma=st.sampled_from([0.0, 0.7]),
    by_length=st.sampled_from([(), ((0, 0.8), (5, 0.0))]),
    mixture=st.sampled_from(["log-linear", "linear"]),
)
def test_what_a_setting_is_can_be_told_from_its_name(
    *,
    alpha: float,
    penalty: float,
    forced: float,
    children: bool,
    gamma: float,
    by_length: tuple[tuple[int, float], ...],
    mixture: Literal["log-linear", "linear"],
) -> None:
    setting = DecodingSetting(
        alpha=alpha,
        length_penalty=penalty,
        beams=10,
        seen="allowed",
        forced_weight=forced,
        scored=Normalisation(normalise="children" if children else "vocabulary"),
        mixing=Mixing(gamma=gamma, mixture=mixture) if gamma else NO_PRIOR,
        by_length=by_length,
    )
    assert ranks_by_sum(setting.name) == (penalty == 0 and forced == 1)
    assert is_plain(setting.name) == (penalty == 0 and forced == 1 and alpha == 0 and not setting.mixes)


def run_of(path: Path, ranks: dict[str, list[int]], *, depths: dict[str, int] | None = None) -> RankedRun:
    """A run of settings by their names; lists are of 10 unless told otherwise."""
    methods = [
        MethodRanks(
            name=name,
            seen="allowed",
            known_as="D3" if name in {"alpha=0 lp=0 beams=5", "alpha=0 lp=0 beams=20"} else "",
            depth=(depths or {}).get(name, 10),
            titles=np.array(each),
        )
        for name, each in ranks.items()
    ]
    return replace(ranked_run(path, {"pop": [1]}), methods=methods)


NARROW, WIDE = "alpha=0 lp=0 beams=5", "alpha=0 lp=0 beams=20"


def test_checkpoints_are_compared_by_one_setting_whatever_their_order_in_the_runs(tmp_path: Path) -> None:
    """One checkpoint, evaluated with both widths in either order, gains nothing on itself."""
    ranks = {NARROW: [3, 0], WIDE: [1, 2]}
    first, second = run_of(tmp_path, ranks), run_of(tmp_path, dict(reversed(ranks.items())))
    trials = {name: [Trial(valid=run, test=run)] for name, run in (("one", first), ("other", second))}
    one, other = compare(pair(trials), Question(), FEW)
    assert one.base == other.base == (WIDE,)
    assert other.tuning is not None
    assert (other.tuning.value, other.tuning.low, other.tuning.high) == (0, 0, 0)
    assert f"\nalpha 0: {WIDE}\n" in table([one, other], Question(), pair(trials))


def test_a_base_that_all_runs_have_goes_before_a_wider_one(tmp_path: Path) -> None:
    over = "alpha=0 lp=0 beams=5 normalise=children"
    first = run_of(tmp_path, {WIDE: [1, 1], NARROW: [1, 2], over: [1, 3]})
    second = run_of(tmp_path, {over: [1, 1]})
    trials = {name: [Trial(valid=run, test=run)] for name, run in (("one", first), ("other", second))}
    assert [each.base for each in compare(pair(trials), Question(), FEW)] == [(over,), (over,)]
    third = run_of(tmp_path, {WIDE: [1, 1], NARROW: [2, 2]})  # as it was tuned, and so has no name of ``second``'s
    trials = {name: [Trial(valid=run, test=run)] for name, run in (("one", third), ("other", second))}
    found = compare(pair(trials), Question(), FEW)
    assert [each.base for each in found] == [(NARROW,), (over,)]
    assert f"\nalpha 0: {NARROW}, or {over}\n" in table(found, Question(), pair(trials))
    trials["one"] = [Trial(valid=third, test=run_of(tmp_path, {WIDE: [1, 1]}))]
    with pytest.raises(InputError, match=r"have no number of beams in common .*: .*beams=20; .*beams=5"):
        compare(pair(trials), Question(), FEW)


def test_settings_with_lists_too_short_for_the_metric_are_left_out(tmp_path: Path) -> None:
    run = run_of(tmp_path, {NARROW: [1, 1], WIDE: [2, 0]}, depths={NARROW: 5})
    (found,) = compare(pair({"one": [Trial(valid=run, test=run)]}), Question(), FEW)
    assert (found.chosen, found.base) == ((WIDE,), (WIDE,))
    (found,) = compare(pair({"one": [Trial(valid=run, test=run)]}), Question(metric="NDCG@5"), FEW)
    assert found.chosen == (NARROW,)


def test_a_chosen_setting_that_the_test_run_lacks_is_named_and_so_are_names_that_are_level(tmp_path: Path) -> None:
    valid, test = run_of(tmp_path, {NARROW: [3, 0], WIDE: [1, 2]}), run_of(tmp_path, {NARROW: [1, 1]})
    with pytest.raises(InputError, match=r"has no '.*beams=20' with seen items allowed, which validation rows choose"):
        compare(pair({"one": [Trial(valid=valid, test=test)]}), Question(), FEW)
    trials = {name: [Trial(valid=test, test=test)] for name in ("one", "other", "third")}
    assert (
        "equal on validation rows: one, other, third\n"
        in table(compare(pair(trials), Question(), FEW), Question(), pair(trials)) + "\n"
    )


def test_rows_that_choose_cannot_judge_and_no_run_counts_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "test", replace(ranked_run(tmp_path, TEST_A), rows=np.arange(6)))
    write(tmp_path / "valid", ranked_run(tmp_path, VALID_A, rows="valid"))
    others = {name: ranks[:4] for name, ranks in TEST_A.items()}
    write(tmp_path / "others", replace(ranked_run(tmp_path, others), rows=np.arange(6, 10)))
    valid, test, apart = (str(tmp_path / name) for name in ("valid", "test", "others"))
    assert main(["compare", "--trial", "a", test, test]) == 2
    assert (
        f"trial a: rows of {test} are among those of {test}; rows that choose cannot judge" in capsys.readouterr().err
    )
    assert main(["compare", "--trial", "a", apart, test, "--resamples", "200"]) == 0, "other rows of the same file"
    assert main(["compare", "--trial", "a", valid, test, "--trial", "a", valid, test]) == 2
    assert f"trial: named twice ({test}, {test})" in capsys.readouterr().err
    shutil.copytree(test, tmp_path / "copy")
    assert main(["compare", "--trial", "a", valid, test, "--trial", "a", valid, str(tmp_path / "copy")]) == 2
    assert f"trial a: {tmp_path / 'copy'} has the lists of {test}" in capsys.readouterr().err


def test_of_equals_the_first_is_chosen(tmp_path: Path) -> None:
    run = ranked_run(tmp_path, {"a0": [3, 0], "a2": [0, 3]})
    (found,) = compare(pair({"one": [Trial(valid=run, test=run)]}), Question(), FEW)
    assert found.chosen == ("alpha=0",)


@pytest.mark.parametrize("part", ["valid", "test"])
def test_runs_on_other_rows_are_refused_by_name(trials: dict[str, list[Trial]], part: str) -> None:
    trial = trials["tuned"][1]
    other = replace(getattr(trial, part), identity={"artifact": "v1", "rows_sha256": "others"})
    trials["tuned"][1] = replace(trial, **{part: other})
    with pytest.raises(InputError, match=r"cannot be paired with .*: rows_sha256 is 'others', there it is"):
        compare(pair(trials), Question(), FEW)


def test_artifacts_may_differ_since_another_tokenizer_makes_another(trials: dict[str, list[Trial]]) -> None:
    expected = compare(pair(trials), Question(), FEW)
    trial = trials["tuned"][1]
    identity = {**trial.test.identity, "artifact": "v2"}
    trials["tuned"][1] = replace(trial, test=replace(trial.test, identity=identity))
    assert compare(pair(trials), Question(), FEW) == expected


@pytest.mark.parametrize(
    ("question", "told"),
    [
        (Question(metric="HR@20"), r"metric HR@20: 'alpha=0' has lists of 10"),
        (
            Question(seen="excluded"),
            r"has no alpha 0 with length penalty 0, no item scorer and seen items excluded \(--seen allowed would find",
        ),
        (Question(among=("alpha=0.9",)), r"has no 'alpha=0.9' with seen items allowed"),
    ],
)
def test_what_a_run_lacks_is_named(trials: dict[str, list[Trial]], question: Question, told: str) -> None:
    with pytest.raises(InputError, match=told):
        compare(pair(trials), question, FEW)


@pytest.mark.parametrize("metric", ["MRR@10", "NDCG", "NDCG@0", "NDCG@1000", "ndcg@10", "NDCG@10 "])
def test_a_metric_that_is_none_is_refused(metric: str) -> None:
    with pytest.raises(InputError, match=r"expected HR@K or NDCG@K"):
        Question(metric=metric)


def test_ranks_come_back_from_a_file_as_they_went_in(tmp_path: Path) -> None:
    run = ranked_run(tmp_path, {**TEST_A, "pop": [0, 1, 2, 3, 4, 5]})
    write(tmp_path, run)
    back = read_ranks(tmp_path)
    assert back.identity == run.identity
    for before, after in zip(run.methods, back.methods, strict=True):
        assert (before.name, before.seen, before.known_as, before.depth) == (
            after.name,
            after.seen,
            after.known_as,
            after.depth,
        )
        assert before.titles.tolist() == after.titles.tolist()
    assert back.rows is None
    assert back.targets is None
    write(tmp_path, replace(run, rows=np.arange(3, 9), targets=np.array([0, 7, 0, 9, 7, 0])))
    back = read_ranks(tmp_path)
    assert back.rows is not None
    assert back.targets is not None
    assert (back.rows.tolist(), back.targets.tolist()) == ([3, 4, 5, 6, 7, 8], [0, 1, 0, 2, 1, 0])


def write(folder: Path, run: RankedRun) -> None:
    folder.mkdir(exist_ok=True)
    (folder / RANKS_FILE).write_text(json.dumps(to_ranks_json(run)), "utf-8")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"format": "igd-evaluation-ranks", "format_version": 2}',
        '{"format": "igd-evaluation-ranks", "format_version": 1, "identity": {}, "methods": []}',
        '{"format": "igd-evaluation-ranks", "format_version": 1, "identity": {}, "methods": [{"name": "a"}]}',
    ],
)
def test_a_file_that_holds_no_ranks_is_an_error_that_names_it(tmp_path: Path, content: str) -> None:
    (tmp_path / RANKS_FILE).write_text(content, "utf-8")
    with pytest.raises(DataError, match=RANKS_FILE):
        read_ranks(tmp_path)


@pytest.mark.parametrize("second", [[1], [1, -1], [[1, 2]]])
def test_ranks_that_cannot_be_are_an_error(tmp_path: Path, second: list[object]) -> None:
    run = ranked_run(tmp_path, {"a0": [1, 2], "a2": [1, 2]})
    content = to_ranks_json(run)
    content["methods"][1]["titles"] = second
    (tmp_path / RANKS_FILE).write_text(json.dumps(content), "utf-8")
    with pytest.raises(DataError, match="is damaged"):
        read_ranks(tmp_path)


@pytest.mark.parametrize(
    ("name", "values"), [("rows", [1]), ("rows", [2, 1]), ("rows", [-1, 0]), ("targets", [[0], [0]])]
)
def test_rows_and_targets_that_cannot_be_are_an_error(tmp_path: Path, name: str, values: list[object]) -> None:
    content = to_ranks_json(ranked_run(tmp_path, {"a0": [1, 2]})) | {name: values}
    (tmp_path / RANKS_FILE).write_text(json.dumps(content), "utf-8")
    with pytest.raises(DataError, match=f"is damaged .*{name}"):
        read_ranks(tmp_path)


def test_the_command_prints_a_table_and_json(
    tmp_path: Path, trials: dict[str, list[Trial]], capsys: pytest.CaptureFixture[str]
) -> None:
    told = []
    for name, group in trials.items():
        for number, trial in enumerate(group):
            valid, test = tmp_path / f"{name}-{number}-valid", tmp_path / f"{name}-{number}-test"
            write(valid, trial.valid)
            write(test, trial.test)
            told += ["--trial", name, str(valid), str(test)]
    assert main(["compare", *told, "--resamples", "200", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["draw"], answer["shared_rows"]) == ("rows", {})
    by_name = {each["name"]: each for each in answer["names"]}
    assert by_name["tuned"]["chosen"] == ["alpha=0.2", "alpha=0"]
    assert by_name["plain"]["both"] is None
    assert set(by_name["tuned"]) == set(Comparison.__slots__)
    assert main(["compare", *told, "--resamples", "200"]) == 0
    printed = capsys.readouterr().out
    assert "tuned (2 seeds)" in printed
    assert "both add to plain" in printed
    assert printed.endswith("\nvalidation rows choose tuned\n")
    assert main(["compare", *told, "--resamples", "200", "--together"]) == 0
    assert capsys.readouterr().out.count("    alpha=0.2\n") == 1
    write(tmp_path / "base", ranked_run(tmp_path, {"pop": [1] * 6}))
    assert main(["compare", *told, "--resamples", "200", "--baseline", "popular", str(tmp_path / "base")]) == 0
    printed = capsys.readouterr().out
    assert "\npopular                       1.0000 (1.0000-1.0000)\n" in printed
    assert printed.count("  as chosen less popular      -0.") == 2
    assert main(["compare", *told, *(["--baseline", "popular", str(tmp_path / "base")] * 2)]) == 2
    assert "baseline: named twice (popular, popular)" in capsys.readouterr().err


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nothing = ["compare", "--trial", "a", str(tmp_path / "no"), str(tmp_path / "no")]
    assert main(nothing) == 2
    assert "`igd evaluate` writes it once every row is decoded" in capsys.readouterr().err
    assert main([*nothing, "--resamples", "5"]) == 2
    assert "resamples: 5 is not in 100.." in capsys.readouterr().err
