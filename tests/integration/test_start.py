"""`igd start` on a made-up shop: from two exports to a served verdict, and again."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import random
import re
import signal
import time
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest
from factories import EOS, make_titles

from igd_core.cli.main import main

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ITEMS, PEOPLE = 24, 20
MINUTES = "5"  # more than all rows take, so that no clock decides what is tuned and judged
KILLED_AT = ("scorers/ease/*", "run/checkpoints/*", "chosen/*", "judged/*")
"""What is there when it is killed: a stage's first file, in the order of the stages."""
PRELOADED = [
    "igd_core.cli.main",
    "igd_core.tuning.trainer",
    "igd_core.start.run",
    "igd_core.start.report",
    "igd_core.evaluation.job",
    "igd_core.cli.start",
    "igd_core.cli.build",
    "igd_core.cli.evaluate",
    "igd_core.cli.tune",
    "igd_core.engines.embedded.checkpoint",
    "transformers.models.llama.modeling_llama",
    "pyarrow.csv",
    "matplotlib.pyplot",
]
RECIPE = """
tokenizer: pruned
build: {max_history: 5}
tuning:
  epochs: 1
  batch: 16
  micro_batches: 1
  warmup_steps: 1
  from_config: {hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2}
"""


def exports(folder: Path) -> None:
    """A shop whose customers mostly go on from an item to the next one."""
    rng = random.Random(1)
    titles = list(dict.fromkeys(make_titles(200, seed=3)))[:ITEMS]
    lines = ["Artikelnr;Bezeichnung;Preis", *(f"A-{at};{title};{at},95" for at, title in enumerate(titles))]
    (folder / "artikel.csv").write_text("\n".join(lines) + "\n")
    events, clock = ["Kunde,Artikel,Zeit"], datetime(2024, 1, 1, tzinfo=UTC)
    at = [rng.randrange(ITEMS) for _ in range(PEOPLE)]
    for _ in range(6):
        for person in range(PEOPLE):
            at[person] = (at[person] + 1) % ITEMS if rng.random() < 0.9 else rng.randrange(ITEMS)
            clock += timedelta(minutes=7)
            events.append(f"K{person},A-{at[person]},{clock:%Y-%m-%d %H:%M:%S}")
    (folder / "log.csv").write_text("\n".join(events) + "\n")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, definition: dict[str, Any]) -> Path:
    """The exports, a tokenizer and a recipe of a tiny model."""
    folder: Path = tmp_path_factory.mktemp("shop")
    exports(folder)
    (folder / "whole").mkdir()
    (folder / "whole" / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    (folder / "whole" / "tokenizer_config.json").write_text(json.dumps({"eos_token": EOS}), encoding="utf-8")
    (folder / "tiny.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def start(shop: Path) -> Callable[..., int]:
    """Runs the command; flags may be changed."""

    def run(*more: str, out: str = "out") -> int:
        return main([*arguments(shop, out), *more])

    return run


def arguments(shop: Path, out: str) -> list[str]:
    """The command, of a folder in the shop."""
    files = ["--items", str(shop / "artikel.csv"), "--events", str(shop / "log.csv"), "--out", str(shop / out)]
    made = ["--recipe", str(shop / "tiny.yaml"), "--tokenizer", str(shop / "whole"), "--device", "cpu"]
    return ["start", *files, *made, "--minutes", MINUTES, "--baselines", "popular,transitions"]


class Pictures(HTMLParser):
    """What a page loads, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [str(value) for name, value in attrs if name in {"src", "href"} and tag != "a"]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.timeout(1200)  # it does all that there is, a server included: minutes on a machine that others keep busy
def test_one_command_goes_from_exports_to_a_served_verdict_and_again_does_nothing(
    start: Callable[..., int], shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start("--json") == 0
    out, err = capsys.readouterr()
    made = json.loads(out)
    assert made["says"] in {"better", "not better", "too few rows"}
    assert {other["name"] for other in made["others"]} == {"scorer", "popular", "transitions"}
    # The shop's rule is found by whoever counts what followed what, and not by popularity.
    values = {other["name"]: other["value"]["value"] for other in made["others"]}
    assert values["transitions"] > values["popular"]
    assert made["serve"][:2] == ["igd", "serve"]
    for words in (
        *("id of the item", "numbers with a decimal comma", "taken for UTC", "rows a second on the first"),
        *("NDCG@10 on validation rows", "ms, model)", "$ igd tune --recipe", "$ igd build --items"),
    ):
        assert words in err
    page = Pictures((shop / "out" / "report.html").read_text("utf-8"))
    assert made["verdict"][1:] in page.text
    assert len(page.loaded) == 3
    assert "Too few rows to say" in page.text or "Better than" in page.text or "Not better than" in page.text
    assert all(source.startswith("data:image/png;base64,") for source in page.loaded)

    stages = json.loads((shop / "out" / "start.json").read_text())["done"]
    tried = {name.removeprefix("scorer "): stage for name, stage in stages.items() if name.startswith("scorer ")}
    assert list(tried) == ["transitions", "neighbours", "ease", "transitions+ease"]
    assert re.search(r"transitions\+ease 0\.\d{4}; [a-z+]+ is taken", err)
    assert start() == 0
    again = capsys.readouterr().out
    assert again.count("done before, in") == len(stages) - 1  # all but serve, which says its answer
    assert "$ igd" not in again
    assert made["verdict"] in again
    kept = json.loads((shop / "out" / "start.json").read_text())
    assert kept["done"] == stages
    # A release that tries one kind of scorer more does not change what is made already.
    del kept["done"]["scorer transitions+ease"]
    (shop / "out" / "start.json").write_text(json.dumps(kept))
    assert start() == 0
    assert "$ igd" not in capsys.readouterr().out

    # Killed before the tuning was noted as done: it is taken up, and rows that were decoded are not decoded again.
    content = json.loads((shop / "out" / "start.json").read_text())
    for stage in ("tune", "choose", "judge"):
        del content["done"][stage]
    (shop / "out" / "start.json").write_text(json.dumps(content))
    assert start() == 0
    resumed = capsys.readouterr().out
    assert resumed.count("$ igd") == 3
    assert " --resume --valid-targets trained --normalise children --out " in resumed
    assert made["verdict"] in resumed

    assert start("--minutes", "4") == 2
    assert "minutes: was 5.0 when this run began, now 4.0" in capsys.readouterr().err


def test_looking_says_what_the_exports_hold_and_an_edited_layout_is_followed(
    start: Callable[..., int], shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start("--look", out="look") == 0
    said = capsys.readouterr().out
    assert re.search(r"users +20\n +first +2024-01-01T00:07:00", said)
    layout = shop / "look" / "layout.toml"
    layout.write_text(layout.read_text().replace('timezone = "UTC"', 'timezone = "+02:00"'))
    assert start("--look", out="look") == 2
    assert "layout.toml was edited; give it back with --layout" in capsys.readouterr().err
    assert start("--look", "--layout", str(layout), "--again", out="look") == 0
    assert re.search(r"first +2023-12-31T22:07:00", capsys.readouterr().out)


def test_an_unclear_column_ends_the_start_with_its_names_before_anything_is_made(
    start: Callable[..., int], shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = shop / "log.csv"
    whole = log.read_text()
    try:
        log.write_text("\n".join(line + (",Zeit2" if not at else "," + line.rsplit(",", 1)[1])
                                 for at, line in enumerate(whole.splitlines())))  # fmt: skip
        log.write_text(log.read_text().replace("Zeit,Zeit2", "created_at,order_date"))
        assert start(out="unclear") == 2
        assert "log.csv: the time could be column 'created_at' or 'order_date' (--columns" in capsys.readouterr().err
        assert not (shop / "unclear" / "data").exists()
        assert start("--look", "--columns", "timestamp=order_date", out="unclear") == 0
    finally:
        log.write_text(whole)


def verdict(out: str) -> dict[str, Any]:
    """What `igd start --json` says, without where it lies."""
    return {name: value for name, value in json.loads(out).items() if name not in {"report", "serve"}}


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "run" / "model" / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.timeout(600)
def test_a_start_killed_again_and_again_ends_as_an_undisturbed_one(
    start: Callable[..., int], shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start("--json") == 0
    whole = verdict(capsys.readouterr().out)
    context = multiprocessing.get_context("forkserver")  # imports once, for all that are killed
    context.set_forkserver_preload(PRELOADED)
    folder = shop / "killed"
    for written in KILLED_AT:
        process = context.Process(target=main, args=(arguments(shop, "killed"),))
        process.start()
        while process.is_alive() and not any(folder.glob(written)):
            time.sleep(0.002)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, (written, process.exitcode)
    assert start("--json", out="killed") == 0
    out, err = capsys.readouterr()
    assert "done before, in" in err
    assert verdict(out) == whole
    assert weights(folder) == weights(shop / "out")
