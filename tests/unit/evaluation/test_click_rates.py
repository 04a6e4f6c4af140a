"""Click rates of variants: what counts as a success, intervals over people, and what is too little to say."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from patience import PATIENCE_S

from igd_core.cli.main import main
from igd_core.datasets.export_format import SCHEMAS, StoreExport, sha256_of
from igd_core.errors import DataError
from igd_core.evaluation.click_rates import Period, click_rates
from igd_core.export.folder import ExportFolder
from igd_core.export.run import export
from igd_core.locked_folders import locked_folder
from igd_core.store.base import StoreOptions
from igd_core.store.events import Event
from igd_core.store.impressions import Impression
from igd_core.store.open import open_store

if TYPE_CHECKING:
    from pathlib import Path

    from igd_core.datasets.export_format import Table

T0 = datetime(2026, 1, 31, 12, tzinfo=UTC)
SUCCESS = ("click", "buy")


@dataclass(slots=True)
class Told:
    """An export in the making."""

    shown: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    answers: int = 0

    def answer(self, user: str, variant: str | None, *chosen: str, kind: str = "click", **said: Any) -> str:
        """Three items shown to somebody, who then did this with those."""
        self.answers += 1
        request_id = f"r{self.answers}"
        about = {"user_id": user, "request_id": request_id, "timestamp": T0, "catalogue": "films", "version": "v1"}
        for rank, item in enumerate("xyz", start=1):
            row = {**about, "variant": variant, "source": "model", "rank": rank, "item_id": item, "score": 0.0}
            self.shown.append(row | said)
        for item in chosen:
            self.event(user, item, request_id, kind)
        return request_id

    def event(self, user: str, item: str, request_id: str | None, kind: str = "click") -> None:
        row = {"user_id": user, "event_id": f"e{len(self.events)}", "item_id": item, "timestamp": T0, "kind": kind}
        self.events.append({**row, "request_id": request_id, "history": True})

    def written(self, folder: Path, parts: int = 2) -> StoreExport:
        """In so many files, each with some of the users."""
        rows_of: dict[Table, list[dict[str, Any]]] = {"events": self.events, "impressions": self.shown}
        files = []
        for table, rows in rows_of.items():
            (folder / table).mkdir(parents=True)
            for part in range(parts):
                own = [row for row in rows if sum(row["user_id"].encode()) % parts == part]
                if own:
                    path = folder / table / f"part-{part:04}.parquet"
                    pq.write_table(pa.Table.from_pylist(own, SCHEMAS[table]), path)
                    files.append({"path": f"{table}/{path.name}", "sha256": sha256_of(path)})
        manifest = {"format": "igd-export", "format_version": 1, "files": files}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return StoreExport.open(folder)


def test_an_answer_counts_once_for_a_success_of_its_own_user_on_an_item_that_it_showed(tmp_path: Path) -> None:
    told = Told()
    told.answer("ann", "old")
    told.answer("ann", "old", "x", "y", "x")  # one answer, however many clicks
    told.answer("ann", "old", "z", kind="view")  # no success
    told.answer("bob", "old", "never shown")
    named = told.answer("bob", "new")
    told.event("ann", "x", named)  # somebody else's answer
    told.event("bob", "x", None)
    told.event("bob", "y", "never on record")
    told.answer("cat", "new", "y", kind="buy", source="popularity", version="v2")
    old, new = click_rates(told.written(tmp_path), kinds=SUCCESS, period=Period(), base="old")
    assert (old.variant, old.people, old.answers, old.successes, old.rate) == ("old", 2, 4, 1, 0.25)
    assert (new.variant, new.people, new.answers, new.successes, new.rate) == ("new", 2, 2, 1, 0.5)
    assert (old.by_popularity, new.by_popularity) == (0, 1)
    assert (old.versions, new.versions) == (("films/v1",), ("films/v1", "films/v2"))
    assert (old.interval, new.interval, new.difference) == (None, None, None), "too few people to say"


def test_what_servers_put_on_record_is_counted_from_its_export(tmp_path: Path) -> None:
    """By the store's own records, and its export: no table made here."""
    shown = [
        Impression(
            request_id=f"r{number}", timestamp_ms=1_769_860_800_000, catalogue="films", version="v1",
            variant="ab"[number],
            source="model", item_ids=("x", "y"), scores=(-1.0, -2.0),
        )
        for number in range(2)
    ]  # fmt: skip
    chosen = Event(event_id="e", item_id="y", timestamp_ms=1_769_860_801_000, kind="click", request_id="r1")

    async def run() -> None:
        store = open_store(f"file://{tmp_path}/store", options=StoreOptions(timeout_s=PATIENCE_S))
        records = {"ann": [each.packed() for each in shown]}
        await store.add_records("impressions", records, keep=100, ttl_s=3600.0)
        await store.append("ann", [chosen])
        with locked_folder(tmp_path / "export"):
            await export(store, ExportFolder(tmp_path / "export"), parts=2)
        await store.close()

    asyncio.run(run())
    a, b = click_rates(StoreExport.open(tmp_path / "export"), kinds=SUCCESS, period=Period())
    assert [(each.variant, each.people, each.answers, each.successes) for each in (a, b)] == [
        ("a", 1, 1, 0),
        ("b", 1, 1, 1),
    ]


def population(*, rate_of_old: float, rate_of_new: float, people: int, seed: int) -> Told:
    """People with a taste of their own: some click nearly always, others nearly never, each with 1 to 20 answers."""
    rng, told = np.random.default_rng(seed), Told()
    for number in range(people):
        variant, rate = (("old", rate_of_old), ("new", rate_of_new))[number % 2]
        taste = rng.beta(rate, 1 - rate)
        for clicks in rng.random(rng.integers(1, 21)) < taste:
            told.answer(f"u{number}", variant, *(["x"] if clicks else []))
    return told


def test_the_interval_is_that_of_a_bootstrap_over_people_and_wider_than_one_over_answers(tmp_path: Path) -> None:
    told = population(rate_of_old=0.3, rate_of_new=0.5, people=400, seed=3)
    new, old = click_rates(told.written(tmp_path), kinds=SUCCESS, period=Period())
    clicked = {event["request_id"] for event in told.events}
    answers: dict[str, dict[str, list[bool]]] = {"old": {}, "new": {}}
    for row in told.shown:
        if row["rank"] == 1:
            answers[row["variant"]].setdefault(row["user_id"], []).append(row["request_id"] in clicked)
    rng, draws = np.random.default_rng(0), {}
    for name, by_user in answers.items():
        won, all_ = np.array([(sum(each), len(each)) for each in by_user.values()]).T
        drawn = rng.integers(len(won), size=(4000, len(won)))
        draws[name] = won[drawn].sum(1) / all_[drawn].sum(1)
    assert old.difference is not None
    assert new.difference is None
    expected = np.quantile(draws["old"] - draws["new"], [0.025, 0.975])
    assert [old.difference.low, old.difference.high] == pytest.approx(expected, abs=0.012)
    assert old.difference.value == pytest.approx(old.rate - new.rate)
    assert old.difference.high < 0
    for each in (old, new):
        assert each.interval is not None
        assert [each.interval.low, each.interval.high] == pytest.approx(
            np.quantile(draws[each.variant], [0.025, 0.975]), abs=0.012
        )
        as_if_independent = 1.96 * np.sqrt(each.rate * (1 - each.rate) / each.answers)
        assert each.interval.high - each.rate > 1.5 * as_if_independent


def test_people_who_had_both_variants_alike_tell_them_apart_by_nothing(tmp_path: Path) -> None:
    """Each person clicks on everything or on nothing, in both: rates are unsure, and their difference is none."""
    told = Told()
    for number in range(60):
        for variant in ("old", "new"):
            told.answer(f"u{number}", variant, *(["x"] if number % 2 else []))
    _, old = click_rates(told.written(tmp_path), kinds=SUCCESS, period=Period())
    assert old.interval is not None
    assert old.interval.high - old.interval.low > 0.2
    assert old.difference is not None
    assert (old.difference.low, old.difference.high) == pytest.approx((0, 0))


@pytest.mark.parametrize(("people", "clicks"), [(29, 15), (40, 9), (40, 31)])
def test_few_people_and_rates_near_0_and_1_have_no_interval(tmp_path: Path, people: int, clicks: int) -> None:
    told = Told()
    for variant, clicking in (("base", 20), ("few", clicks)):
        for number in range(40 if variant == "base" else people):
            told.answer(f"{variant}{number}", variant, *(["x"] if number < clicking else []))
    base, few = click_rates(told.written(tmp_path), kinds=SUCCESS, period=Period())
    assert base.interval is not None
    assert (few.interval, few.difference) == (None, None)


def test_the_command_takes_a_time_and_a_base_and_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = population(rate_of_old=0.2, rate_of_new=0.7, people=160, seed=5)
    told.answer("early", "old", timestamp=datetime(2026, 1, 31, 11, tzinfo=UTC))
    told.answer("late", None, timestamp=datetime(2026, 2, 1, tzinfo=UTC))
    told.written(tmp_path)
    flags = ["variants", "--export", str(tmp_path)]
    during = ["--since", "2026-01-31T12:00:00Z", "--until", "2026-02-01T00:00:00Z", "--base", "old"]
    assert main([*flags, *during]) == 0
    head, names, *lines = capsys.readouterr().out.splitlines()
    assert "95 % intervals over people" in head
    assert names.split() == ["variant", "people", "answers", "success", "rate", "less", "old"]
    assert [line.split()[:2] for line in lines] == [["old", "80"], ["new", "80"]]
    assert lines[1].endswith("*")
    assert main([*flags, "--json"]) == 0
    without, *others = json.loads(capsys.readouterr().out)["variants"]
    assert (without["variant"], without["answers"]) == ("", 1)
    assert [(each["variant"], each["people"]) for each in others] == [("new", 80), ("old", 81)]
    for wrong, said in (
        (["--base", "none"], "base: no answer of a variant 'none'"),
        (["--since", "yesterday"], "since: "),
        (["--kinds", "Click"], "kinds: 'Click' is no name of a kind"),
        (["--since", "2026-03-01T00:00:00Z"], "has no answer of this time on record"),
    ):
        assert main([*flags, *wrong]) == 2
        assert said in capsys.readouterr().err


def test_an_export_without_impressions_says_which_setting_records_them(tmp_path: Path) -> None:
    told = Told()
    told.event("ann", "x", None)
    with pytest.raises(DataError, match="IGD_IMPRESSIONS=true"):
        click_rates(told.written(tmp_path), kinds=SUCCESS, period=Period())
