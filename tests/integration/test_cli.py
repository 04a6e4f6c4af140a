"""`igd` as a person runs it: files in, artifact, picture, recommendations that an outsider can compute again."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import pytest
import torch
from factories import EOS, make_catalogue

from igd_core.artifact import load_artifact
from igd_core.cli.main import main
from igd_core.engines.embedded.checkpoint import Checkpoint, load_checkpoint
from igd_core.ids import ItemIndex
from igd_core.scorers.gamma_file import ChosenGamma
from igd_core.scorers.options import usual_scorer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from igd_core.catalogue.tokenization import TitleTokenizer

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def model_dir(
    checkpoint_of: Callable[[str], Checkpoint], definition: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A tiny Llama as a checkpoint on disk."""
    directory: Path = tmp_path_factory.mktemp("model")
    checkpoint_of("llama-float32").model.save_pretrained(directory)
    (directory / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": EOS}), encoding="utf-8")
    return directory


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """items.csv and train.csv of a small catalogue; item i is a target i % 7 times."""
    directory: Path = tmp_path_factory.mktemp("data")
    catalogue = make_catalogue(60)
    with (directory / "items.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["item_id", "title"])
        rows.writerows(zip(catalogue.item_ids, catalogue.titles, strict=True))
    with (directory / "train.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["history_item_ids", "item_id"])
        first = catalogue.item_ids[0]
        rows.writerows([first, item] for i, item in enumerate(catalogue.item_ids) for _ in range(i % 7))
    return directory


@pytest.fixture(scope="module")
def artifact_dir(data_dir: Path, model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the method is in its paper."""
    out: Path = tmp_path_factory.mktemp("built") / "artifact"
    assert main([*_build_arguments(data_dir, model_dir, out), "--no-usual-scorer", "--alpha", "0.2"]) == 0
    return out


def _build_arguments(data: Path, model: Path, out: Path) -> list[str]:
    files = ["--items", str(data / "items.csv"), "--interactions", str(data / "train.csv")]
    return ["build", *files, "--tokenizer", str(model), "--out", str(out)]


def _recommend_arguments(artifact: Path, model: Path, *more: str) -> list[str]:
    return ["recommend", "--artifact", str(artifact), "--model", str(model), "--device", "cpu", "--json", *more]


@pytest.mark.parametrize(("flags", "bullet"), [([], "-"), (["--bullet", ""], ""), (["--bullet", "* "], "* ")])
def test_lines_of_a_prompt_begin_with_the_bullet_that_was_asked_for(
    data_dir: Path, model_dir: Path, tmp_path: Path, tokenizer: TitleTokenizer, flags: list[str], bullet: str
) -> None:
    assert main([*_build_arguments(data_dir, model_dir, tmp_path / "made"), *flags]) == 0
    template = json.loads((tmp_path / "made" / "manifest.json").read_text())["template"]
    assert template.get("bullet_ids", []) == tokenizer.encode_trusted(bullet)


def test_without_a_flag_the_usual_scorer_is_made_and_mixed_in(
    data_dir: Path, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = _build_arguments(data_dir, model_dir, tmp_path / "usual")
    assert main([*usual, "--json"]) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert (report["scorer"], report["gamma"], report["mixture"]) == ("transitions+ease", 0.7, "log-linear")
    assert printed.err == ""
    assert json.loads((tmp_path / "usual" / "manifest.json").read_text())["alpha"] == 0.0
    named = _build_arguments(data_dir, model_dir, tmp_path / "named")
    assert main([*named, "--no-usual-scorer", "--scorer", "transitions", "--scorer-also", "ease", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["version"] == report["version"], "flags that name it make the same"
    assert main(_recommend_arguments(tmp_path / "usual", model_dir, "--history", make_catalogue(60).item_ids[0])) == 0
    assert json.loads(capsys.readouterr().out)["gamma"] == 0.7


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ("item_id {0} {1} {0}", "user_id and timestamp, or history_item_ids, would say who chose what"),
        ("user_id,item_id 1,{0} 1,{1}", "user_id and timestamp, or history_item_ids, would say who chose what"),
        ("user_id,item_id,timestamp 1,{0},1700000001 2,{1},1700000002", "nobody chose two items"),
        ("history_item_ids,item_id ,{0} ,{1}", "nobody chose two items"),
    ],
)
def test_interactions_that_tell_no_order_make_no_scorer_and_that_is_said(
    data_dir: Path,
    model_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    table: str,
    why: str,
) -> None:
    ids = make_catalogue(60).item_ids
    (tmp_path / "train.csv").write_text(table.format(*ids).replace(" ", "\n") + "\n")
    (tmp_path / "items.csv").write_bytes((data_dir / "items.csv").read_bytes())
    assert main([*_build_arguments(tmp_path, model_dir, tmp_path / "made"), "--json"]) == 0
    printed = capsys.readouterr()
    assert "scorer" not in json.loads(printed.out)
    assert f"train.csv: no item scorer is made of it, and lists are the model's alone: {why}" in printed.err
    assert printed.err.count("\n") == 1
    assert load_artifact(tmp_path / "made").manifest.scorer is None


def test_interactions_that_can_be_counted_are_taken_without_a_scorer_where_their_order_cannot_be_read(
    data_dir: Path, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = make_catalogue(60).item_ids
    (tmp_path / "items.csv").write_bytes((data_dir / "items.csv").read_bytes())
    made = [*_build_arguments(tmp_path, model_dir, tmp_path / "made"), "--force", "--json"]
    train = tmp_path / "train.csv"
    header = "user_id,item_id,timestamp\n"
    for rows, why in (
        (f"1,{ids[0]},yesterday\n1,{ids[1]},1700000000\n", "row 2: timestamp 'yesterday'"),
        (f"1,{ids[0]},1\n1,{ids[1]},2\n", "timestamp is no time from 1990 on"),
        (f"1,{ids[0]},\n1,{ids[1]},\n", "timestamp"),
    ):
        train.write_text(header + rows)
        assert main(made) == 0
        printed = capsys.readouterr()
        assert "scorer" not in json.loads(printed.out)
        assert f"{train}: no item scorer is made of it, and lists are the model's alone: " in printed.err
        assert why in printed.err
        assert printed.err.count("\n") == 1
        assert main([*made, "--scorer", "transitions"]) == 2, "who asks for one is told what is wrong"
        assert why in capsys.readouterr().err
    some = [f"{user},{ids[at]},17000000{at}0\n" for user in (1, 2) for at in range(4)]
    train.write_text(header + "".join([*some, f"3,{ids[0]},never\n"]))
    assert main([*made, "--on-bad-row", "skip"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["scorer"] == "transitions+ease"
    assert f"{train}: the item scorer leaves out rows that do not say who chose what and when: 1" in printed.err
    train.write_text(f"history_item_ids,item_id\n{ids[0]} gone,{ids[1]}\n{ids[1]},{ids[2]}\n")
    assert main([*made, "--on-unknown-item", "drop"]) == 0
    assert "the item scorer leaves out entries of histories that --items lacks: 1" in capsys.readouterr().err


def test_beyond_what_ease_is_usual_for_it_is_left_out() -> None:
    assert usual_scorer(10_000).kinds == ("transitions", "ease")
    assert usual_scorer(10_001).kinds == ("transitions",)


@pytest.mark.parametrize("kind", ["transitions", "ease", "sasrec"])
def test_a_scorer_is_counted_from_the_same_interactions_and_can_be_ranked_by(
    data_dir: Path, model_dir: Path, artifact_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    made, scored = _build_arguments(data_dir, model_dir, tmp_path / "made"), str(tmp_path / "made")
    more = ["--scorer-epochs", "1", "--scorer-seed", "3"] if kind == "sasrec" else ["--scorer-entries", "3"]
    assert main([*made, "--scorer", kind, *more, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    plain = json.loads((artifact_dir / "manifest.json").read_text())
    assert report["scorer"] == kind
    assert report["scorer_network"]["layers"] == 2 if kind == "sasrec" else report["scorer_entries"] > 0
    assert report["version"] != plain["version"]
    rows = ["--rows", str(data_dir / "train.csv"), "--limit", "8", "--seen", "excluded", "--baselines", "scorer"]
    assert main(["evaluate", "--artifact", scored, *rows, "--out", str(tmp_path / "run"), "--json"]) == 0
    (method,) = json.loads(capsys.readouterr().out)["methods"]
    assert method["name"] == "scorer"
    assert main(["evaluate", "--artifact", str(artifact_dir), *rows, "--out", str(tmp_path / "none")]) == 2
    assert "baseline 'scorer': the artifact holds no item scorer" in capsys.readouterr().err


def test_weights_of_ones_own_rank_what_they_speak_for_first(
    data_dir: Path, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = make_catalogue(60).item_ids
    weights = tmp_path / "weights.csv"
    weights.write_text(f"item_id,next_item_id,weight\n{ids[4]},{ids[50]},2.5\n{ids[5]},{ids[41]},30\n")
    made = [*_build_arguments(data_dir, model_dir, tmp_path / "made"), "--scorer", "given"]
    assert main([*made, "--scorer-file", str(weights), "--gamma", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["scorer"], report["scorer_entries"]) == ("given", 2)
    for item, favourite in ((4, 50), (5, 41)):
        asked = _recommend_arguments(tmp_path / "made", model_dir, "--history", ids[item], "--json")
        assert main(asked) == 0
        assert json.loads(capsys.readouterr().out)["items"][0]["item_id"] == ids[favourite]


def test_several_kinds_are_one_scorer_whose_shares_are_told(
    data_dir: Path, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = [*_build_arguments(data_dir, model_dir, tmp_path / "made"), "--scorer", "ease"]
    more = ["--scorer-also", "transitions,sasrec", "--scorer-share", "0.5", "--scorer-epochs", "1", "--gamma", "1"]
    assert main([*made, *more, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["scorer"], report["scorer_shares"]) == ("ease+transitions+sasrec", [0.5, 0.25, 0.25])
    assert report["scorer_entries"] > 0
    assert report["scorer_entries_transitions"] > 0
    assert report["scorer_network_sasrec"]["layers"] == 2
    assert main(["inspect", "--artifact", str(tmp_path / "made")]) == 0
    shown = capsys.readouterr().out
    assert f"scorer entries transitions {report['scorer_entries_transitions']}\n" in shown
    assert "scorer shares             0.5, 0.25, 0.25\n" in shown
    loaded = load_artifact(tmp_path / "made")
    assert loaded.scorer is not None
    mass = loaded.scorer.mass([ItemIndex(4)])
    counted = loaded.catalogue.frequency + 1
    of_title: dict[str, float] = defaultdict(float)
    for title, share in zip(
        loaded.catalogue.titles, mass.mass + mass.background * counted / counted.sum(), strict=True
    ):
        of_title[title] += share
    asked = ["--history", loaded.catalogue.item_ids[4], "--beams", "60", "--alpha", "0"]
    assert main(_recommend_arguments(tmp_path / "made", model_dir, *asked)) == 0
    for found in json.loads(capsys.readouterr().out)["items"]:
        assert found["score"] == pytest.approx(math.log(of_title[found["title"]]), abs=1e-6)
    assert main([*made[:-1], "transitions", "--force", "--scorer-also", "ease"]) == 0
    assert "transitions+ease" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--scorer-also", "ease"], "needs --scorer KIND"),
        (["--scorer", "ease", "--scorer-share", "0.5"], "scorer_share: --scorer-also KIND is needed"),
        (["--scorer", "ease", "--scorer-also", "eas"], "scorer_also: 'eas' is not one of transitions, neighbours"),
        (["--scorer", "ease", "--scorer-also", "transitions,ease"], "scorer_also: ease, transitions, ease: each kind"),
        (["--scorer", "ease", "--scorer-also", "sasrec", "--scorer-share", "1"], "scorer_share: 1"),
        (
            ["--scorer", "ease", "--scorer-also", "sasrec,given,neighbours,transitions", "--scorer-file", "w.csv"],
            "scorer_also: 4 values; 3 at most",
        ),
        (["--scorer", "ease", "--scorer-also", "given"], "scorer_file: given needs --scorer-file FILE"),
        (["--scorer", "transitions", "--scorer-also", "ease", "--scorer-ridge", "5"], "scorer_ridge: transitions has"),
        (["--scorer-decay", "0.5"], "needs --scorer KIND"),
        (["--scorer", "transitions", "--scorer-decay", "1.5"], "scorer_decay: 1.5 is not in 0..1"),
        (["--scorer", "neighbours", "--scorer-backoff", "0"], "scorer_backoff: 0 is not in 1e-06..1e+06"),
        (["--scorer", "neighbours", "--scorer-entries", "10001"], "scorer_entries: 10001 is not in 1..10000"),
        (["--scorer", "neighbours", "--scorer-ridge", "5"], "scorer_ridge: neighbours has none"),
        (["--scorer", "ease", "--scorer-ridge", "0"], "scorer_ridge: 0 is not in 0.001..1e+06"),
        (["--scorer", "sasrec", "--scorer-decay", "1"], "scorer_decay: sasrec has none"),
        (["--scorer", "ease", "--scorer-epochs", "2"], "scorer_epochs: ease has none; --scorer sasrec has"),
        (["--scorer", "sasrec", "--scorer-epochs", "0"], "scorer_epochs: 0 is not in 1..10000"),
        (["--scorer", "given"], "scorer_file: given needs --scorer-file FILE"),
        (["--scorer", "ease", "--scorer-file", "w.csv"], "scorer_file: ease has none; --scorer given has"),
        (["--scorer", "given", "--scorer-file", "none.csv"], "none.csv"),
        (["--gamma", "1.5"], "gamma: 1.5 is not in 0..1"),
        (["--gamma", "0.5", "--no-usual-scorer"], "scorer: --gamma needs --scorer KIND"),
        (["--gamma", "0.5", "--scorer-decay", "0.5"], "scorer: --scorer-decay needs --scorer KIND"),
        (["--gamma", "0.5", "--gamma-from", "gamma.json"], "gamma.json says gamma too"),
        (["--gamma", "0.5", "--print-config"], "print_config: gamma without --scorer KIND cannot be"),
        (["--gamma-from", "none/gamma.json"], "none/gamma.json: No such file or directory"),
        (["--scorer", "transitions", "--gamma-from", "gamma.json", "--gamma", "0.5"], "gamma.json says gamma too"),
        (["--scorer", "transitions", "--gamma-from", "none/gamma.json"], "none/gamma.json: No such file or directory"),
    ],
)
def test_settings_of_a_scorer_are_refused_by_name(
    data_dir: Path,
    model_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    assert main([*_build_arguments(data_dir, model_dir, tmp_path / "made"), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


def test_gamma_alone_is_the_usual_scorers(
    data_dir: Path, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = [*_build_arguments(data_dir, model_dir, tmp_path / "made"), "--force", "--json"]
    assert main([*made, "--gamma", "0.25"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["scorer"], found["gamma"], found["mixture"]) == ("transitions+ease", 0.25, "log-linear")
    chosen = ChosenGamma(gamma=((0, 0.5), (3, 1.0)), mixture="linear", scorer="transitions+ease")
    (tmp_path / "gamma.json").write_text(json.dumps(chosen.to_json()))
    assert main([*made, "--gamma-from", str(tmp_path / "gamma.json")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["scorer"], found["gamma"], found["mixture"]) == ("transitions+ease", [[0, 0.5], [3, 1.0]], "linear")
    (tmp_path / "config.toml").write_text('gamma = 0.75\nmixture = "linear"\n')
    assert main([*made, "--config", str(tmp_path / "config.toml")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["gamma"], found["mixture"]) == (0.75, "linear")
    ids = make_catalogue(60).item_ids
    (tmp_path / "train.csv").write_text(f"user_id,item_id\n1,{ids[0]}\n1,{ids[1]}\n")
    (tmp_path / "items.csv").write_bytes((data_dir / "items.csv").read_bytes())
    for flags, name in ((["--gamma", "0.5"], "gamma"), (["--gamma-from", str(tmp_path / "gamma.json")], "gamma_from")):
        assert main([*_build_arguments(tmp_path, model_dir, tmp_path / "none"), *flags]) == 2
        assert re.search(f"igd: {name}: no item scorer can be made of .*train.csv: user_id", capsys.readouterr().err)


def test_gamma_goes_from_validation_rows_to_the_artifact_and_into_answers(
    data_dir: Path, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*arguments: str, of: str = "") -> Any:
        assert main([*arguments, "--json"]) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)[of] if of else capsys.readouterr().out

    def built(name: str, *more: str) -> Path:
        scored = ["--scorer", "transitions", *more]
        told(*_build_arguments(data_dir, model_dir, tmp_path / name), *scored)
        return tmp_path / name

    def answered(artifact: Path, length: int, *more: str) -> float:
        history = ",".join(make_catalogue(60).item_ids[:length])
        return float(told(*_recommend_arguments(artifact, model_dir, "--history", history, *more), of="gamma"))

    plain, run = built("plain"), tmp_path / "run"
    asked = ["--model", str(model_dir), "--device", "cpu", "--rows", str(data_dir / "train.csv"), "--limit", "6"]
    asked += ["--seen", "excluded", "--alphas", "0", "--length-penalties", "0", "--k", "5", "--resamples", "100"]
    told("evaluate", "--artifact", str(plain), *asked, "--out", str(tmp_path / "as-served"), of="methods")
    assert not (tmp_path / "as-served" / "gamma.json").exists(), "nobody asked for several gammas"
    choice = told("evaluate", "--artifact", str(plain), *asked, "--gammas", "0,0.5,1", "--out", str(run), of="gamma")
    written = json.loads((run / "gamma.json").read_text())
    assert (written["gamma"], written["choice"]["gammas"]) == (choice["served"], [0.0, 0.5, 1.0])
    assert written["scorer"] == "transitions"
    assert answered(built("chosen", "--gamma-from", str(run / "gamma.json")), 2) == written["gamma"]

    table = tmp_path / "table.json"
    table.write_text(json.dumps(written | {"gamma": [[0, 0.75], [3, 0.25]]}))
    by_length = built("by-length", "--gamma-from", str(table))
    assert [answered(by_length, length) for length in (1, 2, 3, 4)] == [0.75, 0.75, 0.25, 0.25]
    assert main(["inspect", "--artifact", str(by_length)]) == 0
    assert re.search(r"gamma +0:0\.75,3:0\.25\n", capsys.readouterr().out)
    assert answered(by_length, 4, "--gamma", "1") == 1.0
    measured = told("evaluate", "--artifact", str(plain), *asked, "--gamma-from", str(table), of="methods")
    assert [each["name"] for each in measured] == [
        "alpha=0 lp=0 beams=10",
        "alpha=0 lp=0 beams=10 normalise=children gamma=0:0.75,3:0.25",
    ]
    wide = built("wide", "--beams", "7", "--alpha", "0")
    measured = told("evaluate", "--artifact", str(wide), *asked, "--out", str(tmp_path / "wide-run"), of="methods")
    names = ["alpha=0 lp=0 beams=7", "alpha=0 lp=0 beams=7 normalise=children gamma=0.7"]
    assert [each["name"] for each in measured] == names, "the model alone, and the catalogue's own, as it is served"
    table.write_text(json.dumps(written | {"scorer": "neighbours"}))
    for refused in (
        [*_build_arguments(data_dir, model_dir, tmp_path / "no"), "--scorer", "transitions"],
        ["evaluate", "--artifact", str(plain), *asked],
    ):
        assert main([*refused, "--gamma-from", str(table)]) == 2
        assert f"gamma_from: {table}: was chosen for a scorer of neighbours" in capsys.readouterr().err


def test_where_gamma_is_0_after_a_short_history_the_evaluation_scores_it_as_it_is_served(
    data_dir: Path, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = {"format": "igd-gamma", "format_version": 1, "mixture": "log-linear", "scorer": "transitions"}
    (tmp_path / "gamma.json").write_text(json.dumps(chosen | {"gamma": [[0, 0.0], [3, 0.5]]}))
    built = [*_build_arguments(data_dir, model_dir, tmp_path / "made"), "--scorer", "transitions"]
    assert main([*built, "--gamma-from", str(tmp_path / "gamma.json")]) == 0
    asked = ["evaluate", "--artifact", str(tmp_path / "made"), "--model", str(model_dir), "--device", "cpu", "--rows"]
    asked += [str(data_dir / "train.csv"), "--limit", "6", "--seen", "excluded", "--alphas", "0", "--k", "5"]

    def lists(out: str, *more: str) -> list[Any]:
        assert main([*asked, "--length-penalties", "0", "--resamples", "100", "--out", str(tmp_path / out), *more]) == 0
        (journal,) = (tmp_path / out).glob("rows-*.jsonl")
        return [json.loads(line)["lists"] for line in journal.read_text().splitlines()[1:]]

    for alone, served in lists("as-served"):  # histories of one item
        assert served == alone, "as the model was tuned: over the vocabulary"
    over_children = lists("over-children", "--normalise", "children")
    assert over_children != lists("as-served"), "the two differ here"
    capsys.readouterr()
    item = make_catalogue(60).item_ids[0]
    assert main(_recommend_arguments(tmp_path / "made", model_dir, "--history", item)) == 0
    assert json.loads(capsys.readouterr().out)["normalise"] == "vocabulary"


def test_building_the_same_files_again_gives_the_same_version(
    artifact_dir: Path, data_dir: Path, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = _build_arguments(data_dir, model_dir, tmp_path / "again")
    assert main([*again, "--no-usual-scorer", "--alpha", "0.2", "--json"]) == 0
    manifest = json.loads((artifact_dir / "manifest.json").read_text())
    report = json.loads(capsys.readouterr().out)
    assert report["version"] == manifest["version"]
    assert list(report["stages"]) == ["items", "interactions", "tokens", "trie", "gains", "hashes", "write"]
    assert sum(stage["seconds"] for stage in report["stages"].values()) <= report["seconds"]


def test_people_read_what_each_stage_took(
    data_dir: Path, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_build_arguments(data_dir, model_dir, tmp_path / "timed")) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("stages")]
    assert len(lines) == 1
    stages = ("items", "interactions", "scorer", "tokens", "trie", "gains", "hashes", "write")
    assert re.search(", ".join(rf"{stage} [0-9.]+ s" for stage in stages) + "$", lines[0])


def test_an_outsider_can_compute_every_score_again(
    artifact_dir: Path, model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    item_ids = make_catalogue(60).item_ids
    arguments = _recommend_arguments(artifact_dir, model_dir, "--history", ",".join(item_ids[3:8]), "--alpha", "0.3")
    assert main([*arguments, "--k", "5"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [item["rank"] for item in answer["items"]] == [1, 2, 3, 4, 5]
    model = load_checkpoint(model_dir, device="cpu").model
    for item in answer["items"]:
        path = [token["token_id"] for token in item["tokens"]]
        ids = torch.tensor([answer["prompt_token_ids"] + path])
        with torch.inference_mode():
            logprobs = torch.log_softmax(model(ids).logits[0].float(), dim=-1)
        start = len(answer["prompt_token_ids"]) - 1
        expected = [float(logprobs[start + i, token]) for i, token in enumerate(path)]
        assert [token["logprob"] for token in item["tokens"]] == pytest.approx(expected, abs=1e-4)
        assert item["score"] == pytest.approx(
            sum(lp * token["weight"] for lp, token in zip(expected, item["tokens"], strict=True)), abs=1e-3
        )


def test_a_model_that_was_not_tuned_for_the_catalogue_is_said_to_be_none(
    artifact_dir: Path, model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_recommend_arguments(artifact_dir, model_dir, "--history", "item-3")) == 0
    told = capsys.readouterr()
    assert "warning: the model was not tuned for catalogue" in told.err
    assert json.loads(told.out)["untuned"] in told.err
    assert main(_recommend_arguments(artifact_dir, model_dir)) == 0
    assert "warning" not in capsys.readouterr().err, "popularity needs no model"


def test_seen_items_come_back_only_when_asked_for(
    artifact_dir: Path, model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    item_ids = make_catalogue(60).item_ids
    history = set(item_ids[:30])
    arguments = _recommend_arguments(artifact_dir, model_dir, "--history", ",".join(item_ids[:30]), "--k", "30")
    assert main(arguments) == 0
    without = {item["item_id"] for item in json.loads(capsys.readouterr().out)["items"]}
    assert main([*arguments, "--no-exclude-seen"]) == 0
    everything = {item["item_id"] for item in json.loads(capsys.readouterr().out)["items"]}
    assert not without & history
    assert everything & history


def test_inspection_draws_a_picture_and_counts_what_is_there(
    artifact_dir: Path, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "gain.png"
    arguments = [
        "inspect",
        "--artifact",
        str(artifact_dir),
        "--tokenizer",
        str(model_dir),
        "--plot",
        str(plot),
        "--json",
    ]
    assert main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["items"] == 60
    assert 0 < report["zero_share_catalogue"] < 1
    assert report["positions"][0]["paths"] == report["distinct_paths"]
    assert plot.read_bytes().startswith(PNG_SIGNATURE)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--history", "no-such-item"], "'no-such-item'"),
        (["--k", "0"], "k: 0"),
        (["--k", "61"], "k: 61"),
        (["--alpha", "7"], "alpha: 7 is not in 0..1"),
        (["--beams", "0"], "beams: 0"),
        (["--temperature", "nan"], "temperature: nan"),
    ],
)
def test_a_bad_query_is_one_clear_line_and_exit_code_2(
    arguments: list[str], named: str, artifact_dir: Path, model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_recommend_arguments(artifact_dir, model_dir, *arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert named in captured.err


@pytest.fixture(scope="module")
def six_dir(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalogue of six titles, of two genres."""
    directory: Path = tmp_path_factory.mktemp("six")
    catalogue = make_catalogue(6)
    genres = ["Noir", "Noir", "Saga", "Saga", "Saga", "Saga"]
    with (directory / "items.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["item_id", "title", "genre"])
        rows.writerows(zip(catalogue.item_ids, catalogue.titles, genres, strict=True))
    (directory / "train.csv").write_text(
        "history_item_ids,item_id\n" + "".join(f"{catalogue.item_ids[0]},{item}\n" for item in catalogue.item_ids)
    )
    assert main(_build_arguments(directory, model_dir, directory / "artifact")) == 0
    return directory / "artifact"


@pytest.mark.parametrize(
    ("flags", "count", "said"),
    [
        ([], 5, "note: 5 items can come back, so --k is 5 instead of 10\n"),
        (["--no-exclude-seen"], 6, "note: 6 items can come back, so --k is 6 instead of 10\n"),
        (["--filter", '{"genre": "Noir"}'], 1, "note: 1 item can come back, so --k is 1 instead of 10\n"),
        (["--filter", '{"genre": ["Saga", "Noir"]}', "--k", "3"], 3, ""),
        (["--filter", '{"genre": "Opera"}'], 0, "note: no item can come back: the filter and the history leave none\n"),
    ],
)
def test_a_small_catalogue_gives_what_it_has_where_no_k_is_asked_for(
    flags: list[str], count: int, said: str, six_dir: Path, model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = make_catalogue(6).item_ids[0]
    capsys.readouterr()
    assert main(_recommend_arguments(six_dir, model_dir, "--history", first, *flags)) == 0
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)["items"]) == count
    assert [line for line in captured.err.splitlines(keepends=True) if line.startswith("note: ")] == [said] * bool(said)


def test_a_k_that_a_small_catalogue_cannot_give_is_refused(
    six_dir: Path, model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_recommend_arguments(six_dir, model_dir, "--k", "10")) == 2
    assert capsys.readouterr().err == "igd: k: 10 is not in 1..6\n"


def test_a_missing_file_a_missing_model_and_a_used_folder_are_named(
    artifact_dir: Path, data_dir: Path, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", "--artifact", str(tmp_path)]) == 2
    assert "manifest.json" in capsys.readouterr().err
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    assert main(_build_arguments(data_dir, model_dir, tmp_path / "used")) == 2
    assert "used" in capsys.readouterr().err
    assert (tmp_path / "used" / "notes.txt").read_text() == "mine"
    assert main(_build_arguments(tmp_path, model_dir, tmp_path / "out")) == 2
    assert "items.csv" in capsys.readouterr().err
    assert main(_recommend_arguments(artifact_dir, data_dir)) == 2
    assert "tokenizer.json" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--items", "--tokenizer"])
def test_a_build_does_not_replace_what_it_reads(
    data_dir: Path, model_dir: Path, tmp_path: Path, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data, model = tmp_path / "data", tmp_path / "model"
    shutil.copytree(data_dir, data)
    shutil.copytree(model_dir, model)
    out = data if flag == "--items" else model
    before = sorted(path.name for path in out.iterdir())
    assert main([*_build_arguments(data, model, out), "--force"]) == 2
    assert (
        capsys.readouterr().err
        == f"igd: {out}: holds no manifest.json of an igd-artifact, so --force leaves it alone\n"
    )
    assert sorted(path.name for path in out.iterdir()) == before

    built = tmp_path / "built"
    assert main(_build_arguments(data, model, built)) == 0
    capsys.readouterr()
    own = ["build", "--items", str(built / "items.parquet"), "--interactions", str(data / "train.csv")]
    assert main([*own, "--tokenizer", str(model), "--out", str(built), "--alpha", "0.5", "--force"]) == 2
    assert f"out: {built} is or contains --items {built / 'items.parquet'}" in capsys.readouterr().err


def test_a_damaged_artifact_is_named_with_its_folder(
    artifact_dir: Path, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "damaged"
    for name in ("manifest.json", "items.parquet", "infogain.safetensors"):
        shutil.copytree(artifact_dir, damaged)
        if name == "items.parquet":
            (damaged / name).unlink()
        else:
            content = (damaged / name).read_bytes()
            (damaged / name).write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        for command in (["inspect", "--artifact", str(damaged)], _recommend_arguments(damaged, model_dir)):
            assert main(command) == 2
            assert capsys.readouterr().err.startswith(f"igd: {damaged / name}: ")
        shutil.rmtree(damaged)


def test_a_reader_that_stops_early_ends_the_command_without_a_traceback(artifact_dir: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "igd_core", "inspect", "--artifact", str(artifact_dir)]
    with os.fdopen(writing, "wb") as nobody_reads:
        ended = subprocess.run(command, stdout=nobody_reads, stderr=subprocess.PIPE, check=False)
    assert ended.returncode == 128 + 13
    assert ended.stderr == b""
