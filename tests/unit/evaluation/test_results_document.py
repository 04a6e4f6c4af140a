"""What the pages of docs/research say of ranks is what their commands make of the ranks that are kept."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from igd_core.cli.main import main
from igd_core.evaluation.ranks import to_ranks_json

if TYPE_CHECKING:
    from types import ModuleType

    from igd_core.evaluation.ranks import RankedRun

ROOT = Path(__file__).parents[3]
PAGES = sorted((ROOT / "docs" / "research").glob("*.md"))
SHOWN = re.findall(
    r"(igd compare (?:[^`\\]|\\\n)*)```\n```\n([^`]*)```\n",
    "\n".join(page.read_text(encoding="utf-8") for page in PAGES),
)


class Asked(dict[str, "RankedRun"]):
    """Evaluations, and which of them were asked for."""

    def __init__(self, runs: dict[str, RankedRun]) -> None:
        super().__init__(runs)
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> RankedRun:
        self.names.add(name)
        return super().__getitem__(name)


@pytest.fixture(scope="module")
def asked() -> Asked:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        return Asked(_module("kept").runs())


@pytest.fixture
def figures(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with its page in view of a test."""
    monkeypatch.syspath_prepend(str(ROOT))
    for name in ("kept", "families", "losses", "mixtures", "demo", "sets", "second", "figures"):
        monkeypatch.setattr(_module(name), "runs", lambda: asked)
    return _module("figures")


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"docs.research.{name}")


def test_every_figure_of_ranks_is_what_the_command_writes_and_every_kept_run_is_in_one(
    figures: ModuleType, asked: Asked
) -> None:
    pages = figures.pages()
    assert sum(text.count("<!-- generated: ") for text in pages.values()) == len(figures.BLOCKS)
    stale = [path.name for path, text in pages.items() if path.read_text(encoding="utf-8") != text]
    assert stale == [], "run python -m docs.research.figures"
    assert asked.names == set(asked)


def test_the_figures_that_readme_and_verdicts_quote_are_those_of_the_ranks(figures: ModuleType) -> None:
    found, served = figures.demo.drawn(), figures.demo.served()
    listed = {name: figures.plain(found.value(name).value) for name in (served, *figures.demo.NAMES)}
    less = {name: figures.effect(found.less(served, name)).replace("**", "") for name in figures.demo.LESS}
    readme, verdicts = (
        (ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/research/verdicts.md")
    )
    row = (
        f"NDCG@10 on {len(figures.demo.both()[0].targets):,} later choices | **{listed[served]}**; "
        f"SASRec {listed['sasrec']}, last-item transitions {listed['transitions']}, most-popular {listed['popular']}"
    )
    assert row in readme
    shown = f"{less['sasrec']} on SASRec, {less['transitions']} on last-item transitions"
    assert shown in readme
    assert f"NDCG@10 {listed[served]}" in verdicts
    assert shown in verdicts
    ml, games = (figures.sets.found()[name] for name in ("ml", "vg"))
    means = {name: figures.plain(games.drawn().value(name).value) for name in games.methods}
    assert f"| {figures.plain(ml.drawn().value('mean').value)}: a mean of EASE and SASRec" in readme
    assert ml.best(means=True) == "mean"
    better = [name for name, each in figures.sets.found().items() if each.is_better]
    assert better == ["ml", "vg", "cds", "office", "industrial", "toys"]
    assert "on six better than the best of six rankers, on two level with EASE" in readme
    for name in ("ml1m", "books"):
        other = figures.sets.found()[name]
        assert other.best(means=False) == "ease"
        assert other.drawn().less("served", "ease").high > 0
    assert f"NDCG@10 on {len(games.values('served', 'NDCG@10')):,} later choices | **{means['served']}**" in readme
    assert (
        f"such a mean {means['both']}, SASRec {means['sasrec']}, last-item transitions {means['transitions']}" in readme
    )
    assert f"the model alone {means['the model alone']} |" in readme
    tuned = figures.effect(figures.compared("adapter-ml")["0.2"].tuning).replace("**", "")
    assert f"likely helps: {tuned} with beta 0.2, two seeds" in readme


def test_a_page_that_says_otherwise_is_named_and_written_again(
    figures: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- generated: by-training -->\n| .0475 |\n<!-- end -->\nafter\n", encoding="utf-8")
    monkeypatch.setattr(figures, "PAGES", tmp_path)
    assert figures.main(["--check"]) == 1
    assert capsys.readouterr().out == "page.md: stale: run python -m docs.research.figures\n"
    assert figures.main([]) == 0
    written = page.read_text(encoding="utf-8")
    assert written == f"before\n<!-- generated: by-training -->\n{figures.by_training()}<!-- end -->\nafter\n"
    assert figures.main(["--check"]) == 0


def test_igd_compare_prints_of_the_unpacked_ranks_what_the_page_shows(
    figures: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = sys.modules[f"{figures.__package__}.kept"]
    monkeypatch.chdir(tmp_path)
    assert kept.main(["--unpack", "ranks"]) == 0
    assert len(SHOWN) == 1
    command, printed = SHOWN[0]
    assert main(shlex.split(command.replace("\\\n", " "))[1:]) == 0
    assert capsys.readouterr().out == printed


def test_ranks_taken_in_are_those_that_were_there(
    figures: ModuleType, asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = sys.modules[f"{figures.__package__}.kept"]
    few = Asked(
        {name: asked[name] for name in ("adapter-ml-b1-s0-valid", "baselines-ml-test", "smollm2-vg-b1-s0-test")}
    )
    monkeypatch.setattr(kept, "runs", lambda: few)
    kept.unpack(tmp_path)
    monkeypatch.setattr(kept, "KEPT", tmp_path / "ranks.npz")
    assert kept.main(["--add", *(str(tmp_path / name) for name in few)]) == 0
    monkeypatch.undo()
    monkeypatch.setattr(kept, "KEPT", tmp_path / "ranks.npz")
    again = kept.runs.__wrapped__()
    assert again.keys() == few.keys()
    for name, run in again.items():
        assert to_ranks_json(run) == to_ranks_json(few[name])
