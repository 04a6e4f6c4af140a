"""`igd evaluate` and `igd inspect --checkpoint` as a person runs them, on a tiny model."""

from __future__ import annotations

import csv
import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from adapters import save_adapter
from factories import EOS, artifact_of_paths, make_catalogue

from igd_core.artifact import load_artifact
from igd_core.cli.main import main
from igd_core.engines.tuned_prompt import TunedCatalogue, TunedPrompt
from igd_core.errors import InputError
from igd_core.evaluation.pairing import on_same_rows
from igd_core.evaluation.ranks import read_ranks
from igd_core.evaluation.report import collect
from igd_core.ids import LeafIndex
from igd_core.search.normalisation import Normalisation

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from igd_core.engines.embedded.checkpoint import Checkpoint

_FREE = "without a sibling, so not in it"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
ITEMS, ROWS = 40, 12
SMALL = ["--alphas", "0,0.3", "--length-penalties", "0,1", "--beams", "6", "--k", "1,5,20", "--resamples", "100"]


@pytest.fixture(scope="module")
def here(
    checkpoint_of: Callable[[str], Checkpoint], definition: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with model, other (a second checkpoint), artifact, train.csv, test.csv and unknown.csv."""
    folder: Path = tmp_path_factory.mktemp("evaluate")
    for name, kind in (("model", "llama-fp32"), ("other", "qwen3-fp32")):
        checkpoint_of(kind).model.save_pretrained(folder / name)
        (folder / name / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
        (folder / name / "tokenizer_config.json").write_text(json.dumps({"eos_token": EOS}), encoding="utf-8")
    catalogue, rng = make_catalogue(ITEMS), np.random.default_rng(0)
    ids = catalogue.item_ids

    def history(length: int) -> str:
        return " ".join(ids[item] for item in rng.integers(0, ITEMS, length))

    _write(folder / "items.csv", ["item_id", "title"], zip(ids, catalogue.titles, strict=True))
    heads = ["history_item_ids", "item_id"]
    train = [(history(1 + row % 5), ids[int(rng.integers(0, ITEMS - 4))]) for row in range(80)]
    test = [(history(1 + row % 5), ids[int(rng.integers(0, ITEMS))]) for row in range(ROWS)]
    _write(folder / "train.csv", heads, train)
    _write(folder / "test.csv", heads, test)
    _write(folder / "unknown.csv", heads, [*test[:3], (ids[0], "nobody-knows")])
    build = ["build", "--items", str(folder / "items.csv"), "--interactions", str(folder / "train.csv")]
    more = ["--tokenizer", str(folder / "model"), "--out", str(folder / "artifact"), "--no-usual-scorer"]
    assert main([*build, *more]) == 0
    return folder


def _write(path: Path, heads: list[str], rows: Any) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(heads)
        out.writerows(rows)


def _arguments(here: Path, out: Path, *more: str, rows: str = "test.csv", model: str | None = "model") -> list[str]:
    chosen = [] if model is None else ["--model", str(here / model), "--device", "cpu"]
    files = ["--artifact", str(here / "artifact"), "--rows", str(here / rows), "--train", str(here / "train.csv")]
    return ["evaluate", *files, *chosen, *SMALL, "--out", str(out), *more]


def _lists(out: Path) -> dict[int, Any]:
    lines = [line for path in out.glob("rows-*.jsonl") for line in path.read_text().splitlines()[1:]]
    return {record["row"]: record["lists"] for record in map(json.loads, lines)}


@pytest.fixture(scope="module")
def whole(here: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from beginning to end, baselines among it."""
    out: Path = tmp_path_factory.mktemp("run") / "whole"
    assert main(_arguments(here, out, "--baselines", "popular,repeat,transitions,itemknn")) == 0
    return out


def of_other_rows(run: Path, parent: Path) -> Path:
    """The same ranks as of another file: rows that choose cannot judge."""
    ranks = json.loads((run / "ranks.json").read_text())
    ranks["identity"]["rows_sha256"] = "another"
    (parent / "valid").mkdir()
    (parent / "valid" / "ranks.json").write_text(json.dumps(ranks))
    return parent / "valid"


def test_a_run_says_which_rows_it_holds_and_which_ask_for_the_same_title(
    here: Path, whole: Path, tmp_path: Path
) -> None:
    ranks = json.loads((whole / "ranks.json").read_text())
    with (here / "test.csv").open(newline="") as file:
        asked = [row["item_id"] for row in csv.DictReader(file)]
    titles = dict(zip(make_catalogue(ITEMS).item_ids, make_catalogue(ITEMS).titles, strict=True))
    wanted = [titles[item] for item in asked]
    assert ranks["rows"] == list(range(ROWS))
    assert [wanted.index(title) for title in wanted] == [ranks["targets"].index(group) for group in ranks["targets"]]
    results = json.loads((whole / "results.json").read_text())
    assert results["rows_of_the_commonest_target"] == max(wanted.count(title) for title in wanted)
    few = tmp_path / "few"
    assert main(_arguments(here, few, "--limit", "5", "--baselines", "popular", "--draw", "targets", model=None)) == 0
    assert json.loads((few / "results.json").read_text())["draw"] == "targets"
    assert len(json.loads((few / "ranks.json").read_text())["rows"]) == 5
    both = ["--trial", "a", str(of_other_rows(whole, tmp_path)), str(whole), "--baseline", "popular", str(few)]
    assert main(["compare", *both, "--draw", "targets", "--metric", "NDCG@5", "--resamples", "100"]) == 0


def test_the_figures_follow_from_the_lists_and_the_pictures_are_drawn(here: Path, whole: Path) -> None:
    results = json.loads((whole / "results.json").read_text())
    assert (results["rows"], results["rows_with_unknown_target"], results["cutoffs"]) == (ROWS, 0, [1, 5, 20])
    methods = {(each["name"], each["seen"]): each for each in results["methods"]}
    assert len(methods) == 2 * (4 + 4)
    with (here / "test.csv").open(newline="") as file:
        targets = [row["item_id"] for row in csv.DictReader(file)]
    catalogue = make_catalogue(ITEMS)
    titles, lists = catalogue.titles, _lists(whole)
    wanted = [titles[catalogue.item_ids.index(target)] for target in targets]
    header = json.loads((whole / "rows-1-of-1.jsonl").read_text().splitlines()[0])
    for place, setting in enumerate(header["methods"]):
        found = [[titles[item] for item in lists[row][place]] for row in range(ROWS)]
        assert all(len(set(each)) == 6 for each in found)
        hits = [title in each[:5] for title, each in zip(wanted, found, strict=True)]
        method = methods[setting["name"], setting["seen"]]
        assert method["titles"]["HR@5"]["value"] == pytest.approx(np.mean(hits))
        assert "HR@20" not in method["titles"]
        assert method["against"] == ("" if method["known_as"] == "D3" else "alpha=0 lp=0 beams=6")
    assert "HR@20" in methods["popular", "allowed"]["titles"]
    for name in ("accuracy.png", "slices.png"):
        assert (whole / name).read_bytes().startswith(PNG_SIGNATURE)


def test_the_ranks_that_igd_compare_reads_are_those_of_the_lists(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = {
        (each["name"], each["seen"]): each for each in json.loads((whole / "results.json").read_text())["methods"]
    }
    for method in json.loads((whole / "ranks.json").read_text())["methods"]:
        figures = results.pop((method["name"], method["seen"]))["titles"]
        for name in ("HR@1", "HR@5"):
            cutoff = int(name.partition("@")[2])
            assert figures[name]["value"] == pytest.approx(np.mean([1 <= rank <= cutoff for rank in method["titles"]]))
    assert not results
    trial = ["--trial", "one", str(of_other_rows(whole, tmp_path)), str(whole)]
    assert main(["compare", *trial, "--metric", "HR@5", "--seen", "excluded", "--resamples", "100"]) == 0
    assert "one (1 seed)" in capsys.readouterr().out
    assert main(["compare", "--trial", "one", str(whole), str(whole), "--metric", "HR@5"]) == 2
    assert "rows that choose cannot judge" in capsys.readouterr().err


def test_shards_give_what_one_run_gives(
    here: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "shards"
    assert main(_arguments(here, out, "--shard", "2/2", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["missing"] == ROWS // 2
    assert not (out / "results.json").exists()
    assert main(_arguments(here, out, "--shard", "1/2", "--concurrency", "3", "--json")) == 0
    together = json.loads(capsys.readouterr().out)
    assert _lists(out) == _lists(whole)
    alone = {each["name"] + each["seen"]: each for each in json.loads((whole / "results.json").read_text())["methods"]}
    for method in together["methods"]:
        assert method == alone[method["name"] + method["seen"]]


def test_a_run_that_was_cut_off_decodes_only_what_is_missing(here: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "cut"
    out.mkdir()
    lines = (whole / "rows-1-of-1.jsonl").read_bytes().splitlines(keepends=True)
    marked = lines[3].replace(b'"seconds":', b'"kept":1,"seconds":')
    (out / "rows-1-of-1.jsonl").write_bytes(b"".join([*lines[:3], marked, lines[4][:20]]))
    assert main(_arguments(here, out)) == 0
    again = (out / "rows-1-of-1.jsonl").read_bytes().splitlines(keepends=True)
    assert again[:4] == [*lines[:3], marked]
    assert _lists(out) == _lists(whole)


def test_an_adapter_is_evaluated_with_its_base_and_not_mixed_with_it(
    here: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = ["--adapter", str(save_adapter(tmp_path / "lora", here / "model", seed=5))]
    assert main(_arguments(here, tmp_path / "run", *adapter, "--json")) == 0
    assert json.loads(capsys.readouterr().out)["model"]["model"] == "model+lora"
    assert _lists(tmp_path / "run") != _lists(whole)
    assert main(_arguments(here, whole, *adapter)) == 2
    assert "results of other settings" in capsys.readouterr().err
    assert main(_arguments(here, tmp_path / "none", *adapter, "--baselines", "popular", model=None)) == 2
    assert "--adapter needs the model" in capsys.readouterr().err


def test_a_complete_run_is_summed_up_again_without_the_model(
    here: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = ["--device", "abacus"]  # a model cannot be loaded there
    assert main(_arguments(here, tmp_path / "new", *nowhere)) == 2
    assert "device 'abacus'" in capsys.readouterr().err
    assert main(_arguments(here, whole, "--reference", "popular", "--baselines", "popular", *nowhere)) == 0
    shown = capsys.readouterr().out
    assert "reference: popular" in shown
    assert "seen items excluded" in shown


def test_a_model_that_was_not_tuned_for_the_catalogue_is_said_to_be_none(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--limit", "2", "--alphas", "0", "--length-penalties", "0"]
    shutil.copytree(here / "model", tmp_path / "tuned")
    artifact = load_artifact(here / "artifact")

    def told(out: str, *more: str, model: str | None = "model") -> tuple[str, Any]:
        assert main([*_arguments(here, tmp_path / out, *few, "--baselines", "popular", *more, model=model)]) == 0
        return capsys.readouterr().err, json.loads((tmp_path / out / "results.json").read_text())["untuned"]

    warned, kept = told("plain")
    assert "warning: the model was not tuned for catalogue" in warned
    assert kept in warned
    assert told("plain", model=None) == ("", kept), "summed up again, without the model"
    for tuned_for, expected in ((artifact, None), (artifact_of_paths([(7, 5), (7, 6)], [1, 1]), "of whose titles")):
        catalogue = TunedCatalogue.of(tuned_for)
        TunedPrompt.of(artifact.manifest.template, catalogue=catalogue).write(tmp_path / "tuned")
        warned, kept = told(str(expected), "--model", str(tmp_path / "tuned"))
        assert (kept is None, "warning" in warned) == ((True, False) if expected is None else (False, True))
        assert expected is None or expected in kept


def test_without_a_folder_named_the_same_settings_find_the_same_one(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IGD_HOME", str(tmp_path))
    told = _arguments(here, tmp_path, "--limit", "2")
    out = told.index("--out")
    del told[out : out + 2]
    assert main(told) == 0
    (made,) = (tmp_path / "evaluations").iterdir()
    assert made.name.startswith("model-")
    before = (made / "rows-1-of-1.jsonl").read_bytes()
    assert main(told) == 0
    assert (made / "rows-1-of-1.jsonl").read_bytes() == before
    assert main([*told, "--forced-weights", "1,0"]) == 0
    assert len(list((tmp_path / "evaluations").iterdir())) == 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--alphas", "0,0.1"], "methods was"),
        (["--seed", "5"], "seed was 0, now it is 5"),
        (["--model", "OTHER"], "model was"),
    ],
)
def test_a_folder_of_other_settings_is_refused_and_kept(
    here: Path, whole: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    before = (whole / "rows-1-of-1.jsonl").read_bytes()
    more = [str(here / "other") if each == "OTHER" else each for each in more]
    assert main(_arguments(here, whole, *more)) == 2
    assert "results of other settings" in (told := capsys.readouterr().err)
    assert message in told or more[0] == "--model"
    assert (whole / "rows-1-of-1.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--baselines", "magic"], "baseline 'magic': one of popular"),
        (["--shard", "3/2"], "shard '3/2'"),
        (["--k", "5,1"], "k: expected rising numbers"),
        (["--alphas", "2"], "alphas: 2 is not in 0..1"),
        (["--reference", "nothing"], "reference 'nothing'"),
        (["--limit", "0"], "limit: 0"),
    ],
)
def test_bad_input_is_one_line_before_any_work(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert main(_arguments(here, tmp_path / "none", *more)) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
    assert not (tmp_path / "none").exists()


def test_histories_that_the_context_has_no_room_for_are_counted(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A context with room for some items, of some rows for none; what is expected is counted from the trie's paths."""
    artifact = load_artifact(here / "artifact")
    template, room = artifact.manifest.template, artifact.trie.depth
    row_of = {item_id: row for row, item_id in enumerate(artifact.catalogue.item_ids)}
    with (here / "test.csv").open(newline="") as file:
        histories = [[row_of[each] for each in row["history_item_ids"].split()] for row in csv.DictReader(file)]
    leaves = [LeafIndex(int(leaf)) for leaf in artifact.leaf_of_item]
    line = [len(template.bullet_ids) + len(artifact.trie.path(leaf)) - 1 for leaf in leaves]
    bare = len(template.prefix_ids) + len(template.bullet_ids) + len(template.suffix_ids)
    context = bare + room + sorted(line[history[-1]] for history in histories)[ROWS // 2]
    left_out = []
    for history in histories:
        kept = len(history)
        while kept and bare + sum(line[item] for item in history[-kept:]) + room > context:
            kept -= 1
        left_out.append(len(history) - kept)
    rows = sum(left > 0 for left in left_out)
    gone = sum(left == len(history) for left, history in zip(left_out, histories, strict=True))
    assert 0 < gone < rows

    shutil.copytree(here / "model", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text()) | {"max_position_embeddings": context}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    out = tmp_path / "run"
    few = ["--alphas", "0", "--length-penalties", "0", "--beams", "2", "--k", "1", "--seen", "allowed"]
    assert main([*_arguments(here, out, *few), "--model", str(tmp_path / "model")]) == 0
    told = capsys.readouterr().out
    assert f"in {rows} rows the prompt did not fit the model's context: the oldest {sum(left_out)} items" in told
    assert f"{gone} rows had no item to ask the model about: popularity answered" in told
    expected = {"rows": rows, "items": sum(left_out), "rows_answered_by_popularity": gone}
    assert json.loads((out / "results.json").read_text())["histories_shortened"] == expected

    journal = out / "rows-1-of-1.jsonl"  # as an earlier release wrote it: nobody counted
    header, *records = map(json.loads, journal.read_text().splitlines())
    for record in records:
        del record["left_out"], record["popularity"]
    journal.write_text("".join(json.dumps(each) + "\n" for each in [header, *records]))
    assert collect(out, {}, rows=ROWS, items=ITEMS).shortened is None


def test_nothing_to_evaluate_is_refused(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(_arguments(here, tmp_path / "none", model=None)) == 2
    assert "nothing to evaluate" in capsys.readouterr().err


def test_a_target_that_the_catalogue_lacks_is_an_error_or_a_miss_of_everybody(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    baselines = ["--baselines", "popular", "--json"]
    assert main(_arguments(here, tmp_path / "a", *baselines, rows="unknown.csv", model=None)) == 2
    assert "'nobody-knows' is not in the catalogue" in capsys.readouterr().err
    more = [*baselines, "--on-unknown-item", "miss"]
    assert main(_arguments(here, tmp_path / "b", *more, rows="unknown.csv")) == 0
    results = json.loads(capsys.readouterr().out)
    assert (results["rows"], results["rows_with_unknown_target"]) == (4, 1)
    assert all(method["titles"]["HR@5"]["value"] <= 0.75 for method in results["methods"])
    assert results["methods"][0]["slices"]["target popularity"]["not in the catalogue"]["HR@5"]["value"] == 0.0


def test_a_run_of_an_earlier_release_is_neither_gone_on_with_nor_compared_where_targets_are_unknown(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def ends(out: Path, rows: str) -> int:
        more = ["--baselines", "popular", "--on-unknown-item", "miss"]
        return main(_arguments(here, out, *more, rows=rows, model=None))

    def as_it_was(out: Path) -> None:
        for path in (out / "baseline-popular.jsonl", out / "ranks.json"):
            text = path.read_text()
            path.write_text(text.replace(',"unknown_targets":"in file order"', ""))
            assert "unknown_targets" not in path.read_text()

    known, unknown, now = tmp_path / "known", tmp_path / "unknown", tmp_path / "now"
    assert [ends(known, "test.csv"), ends(unknown, "unknown.csv"), ends(now, "test.csv")] == [0, 0, 0]
    as_it_was(known)
    as_it_was(unknown)
    capsys.readouterr()
    assert ends(unknown, "unknown.csv") == 2
    assert 'unknown_targets was null, now it is "in file order"; choose another --out' in capsys.readouterr().err
    with pytest.raises(InputError, match=r"known/ranks\.json: an earlier release wrote it"):
        on_same_rows([read_ranks(now), read_ranks(known)])
    assert ends(known, "test.csv") == 0  # all targets are known: the same rows in the same order
    assert on_same_rows([read_ranks(now), read_ranks(known)]).rows == ROWS


def test_baselines_that_an_earlier_release_ranked_otherwise_are_not_taken(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = _arguments(here, tmp_path / "out", "--baselines", "popular,repeat", model=None)
    assert main(arguments) == 0
    for name, otherwise in (("repeat", False), ("popular", True)):
        path = tmp_path / "out" / f"baseline-{name}.jsonl"
        text = path.read_text()
        path.write_text(text.replace(',"titles":"added up"', ""))
        assert (path.read_text() != text) == otherwise
    capsys.readouterr()
    assert main(arguments) == 2
    assert (
        'baseline-popular.jsonl: results of other settings: titles was null, now it is "added up"'
        in capsys.readouterr().err
    )


def test_inspecting_two_checkpoints_compares_their_tokens(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "tokens.png"
    checkpoints = ["--checkpoint", str(here / "model"), "--checkpoint", str(here / "other"), "--device", "cpu"]
    arguments = ["inspect", "--artifact", str(here / "artifact"), "--rows", str(here / "test.csv"), *checkpoints]
    assert main([*arguments, "--alpha", "0.4", "--beams", "5", "--plot", str(plot), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    first, second = report["checkpoints"]["model"], report["checkpoints"]["other"]
    assert first["tokens"]["zero_share"] == second["tokens"]["zero_share"]
    assert first["tokens"]["zero_logprob"] != second["tokens"]["zero_logprob"]
    assert first["alpha"]["rows"] == ROWS
    assert plot.read_bytes().startswith(PNG_SIGNATURE)
    assert main([*arguments, "--limit", "3"]) == 0
    shown = capsys.readouterr().out
    assert "their share of the loss" in shown
    assert "alpha 0.2 against 0, rows" in shown, "the artifact's is 0"
    assert main(["inspect", "--artifact", str(here / "artifact"), "--checkpoint", str(here / "model")]) == 2
    assert "needs held-out rows" in capsys.readouterr().err


def test_inspecting_follows_the_loss_that_a_checkpoint_was_tuned_with_and_says_which(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = shutil.copytree(here / "model", tmp_path / "tuned")
    over_children = Normalisation(normalise="children", temperature=0.5)
    TunedPrompt.of(load_artifact(here / "artifact").manifest.template, scored=over_children).write(tuned)
    arguments = ["inspect", "--artifact", str(here / "artifact"), "--rows", str(here / "test.csv"), "--device", "cpu"]
    arguments += ["--alpha", "0.4", "--limit", "8"]
    arguments += ["--checkpoint", str(here / "model"), "--checkpoint", str(tuned)]
    assert main([*arguments, "--plot", str(tmp_path / "tokens.png")]) == 0
    table = capsys.readouterr().out
    lines = {line[:36].strip(): line[36:].split("  ") for line in table.splitlines()}
    cells = {name: [cell.strip() for cell in line if cell] for name, line in lines.items()}
    assert cells["normalised over"] == ["vocabulary", "children"]
    assert cells["at temperature"] == ["1", "0.5"]
    in_loss, free = (list(map(int, cells[name])) for name in ("target tokens in the loss", _FREE))
    assert free[1] > free[0] == 0
    assert in_loss[0] == in_loss[1] + free[1]
    assert len({*cells["items of 10 in both lists"], *cells["NDCG@10 at alpha 0"]}) > 2, "decoding follows too"
    assert "--normalise scores every checkpoint the same way" in table
    assert main([*arguments, "--normalise", "children", "--json"]) == 0
    told = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["checkpoints"]
    scored = {name: each["tokens"]["scored"] for name, each in told.items()}
    assert scored == {
        "model": {"normalise": "children", "temperature": 1.0},
        "tuned": {"normalise": "children", "temperature": 0.5},
    }
    assert told["model"]["tokens"]["left_out"] == told["tuned"]["tokens"]["left_out"] == free[1]
