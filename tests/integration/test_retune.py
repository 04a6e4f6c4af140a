"""Rounds of retuning with real parts: a store, a tiny checkpoint, tuning, judging and publishing."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from checkpoints import write_checkpoint
from factories import tiny_checkpoint
from films import ITEM_IDS, film_artifact

from igd_core.artifact import BuildOptions, build_artifact, save_artifact
from igd_core.cli.main import main
from igd_core.store.events import Event
from igd_core.store.names import MODELS
from igd_core.store.open import open_store
from igd_core.store.publishing import publish

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from igd_core.catalogue.tokenization import TitleTokenizer
    from igd_core.store.base import Store, StoredVersion

ITEMS = ITEM_IDS[:-1]  # the last one's id holds white space, which rows cannot say
USERS, STEPS, SECOND_MS = 30, 6, 1000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, definition: dict[str, Any], tokenizer: TitleTokenizer) -> Path:
    root: Path = tmp_path_factory.mktemp("retune")
    write_checkpoint(root / "own", tiny_checkpoint("llama-fp32", tokenizer).model, definition)
    catalogue = film_artifact(tokenizer).catalogue.take(range(len(ITEMS)))
    save_artifact(build_artifact(catalogue, tokenizer, BuildOptions(name="films")), root / "films")
    (root / "recipe.yaml").write_text(
        "tuning: {epochs: 1, lr: 0.02, batch: 32, micro_batches: 1, warmup_steps: 1, beta: 1.0,"
        " lora: {rank: 4, alpha: 8, dropout: 0.0}}\n"
    )
    return root


async def people_choose(store: Store, step: int, *, day: int) -> None:
    """Everybody watches films that stand ``step`` apart."""
    rng = np.random.default_rng(day)
    for user in range(USERS):
        first = int(rng.integers(len(ITEMS)))
        events = [
            Event(
                event_id=f"{day}-{at}",
                item_id=ITEMS[(first + step * at) % len(ITEMS)],
                timestamp_ms=(day * 1000 + STEPS * at + user) * SECOND_MS,
            )
            for at in range(STEPS)
        ]
        await store.append(f"u{user}", events)


def retune(capsys: pytest.CaptureFixture[str], *flags: object) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["retune", *map(str, flags), "--json"]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told


def test_rounds_go_on_from_what_is_served_and_publish_what_the_rule_lets_through(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"file://{tmp_path}/store"
    monkeypatch.setenv("IGD_STORE", url)

    async def on(work: str, day: int = 0) -> Sequence[StoredVersion]:
        store = open_store(url)
        if work == "publish":
            await publish(store, artifact=folder / "films")
        elif work == "choose":
            await people_choose(store, 3, day=day)
        found = await store.versions(MODELS if work == "models" else "films")
        await store.close()
        return found

    asyncio.run(on("publish"))
    asyncio.run(on("choose", 1))
    flags: list[object] = ["--catalogue", "films", "--model", folder / "own", "--out", tmp_path / "rounds"]
    flags += ["--device", "cpu", "--recipe", folder / "recipe.yaml", "--judged-rows", 16]
    first = retune(capsys, *flags, "--least-rows", 10)
    assert (first["round"], first["published"], first["verdict"]["rows"]) == (1, True, 16), first
    (now,) = (each for each in asyncio.run(on("look")) if each.is_current)
    assert (now.version, now.model) == (first["version"], asyncio.run(on("models"))[0].version)

    nothing = retune(capsys, *flags, "--least-rows", 10)
    assert (nothing["round"], nothing["published"]) == (2, False)
    assert nothing["why"] == "no event is new since the last round"

    asyncio.run(on("choose", 2))
    few = retune(capsys, *flags)  # 200 held-out rows are asked for
    assert (few["round"], few["published"]) == (3, False)
    assert "too few rows to say" in few["why"]
    at = tmp_path / "rounds" / "round-0003"
    record = json.loads((at / "run" / "run.json").read_text("utf-8"))
    assert record["adapter"] is not None  # it went on from the adapter that is served
    state = json.loads((tmp_path / "rounds" / "retune.json").read_text("utf-8"))
    assert [(each["round"], each["version"]) for each in state["ended"]] == [(1, now.version), (2, None), (3, None)]
    assert state["ended"][-1]["served"] == {"version": now.version, "model": now.model}
    assert list((tmp_path / "rounds").glob("round-*")) == [at]
    assert list(at.rglob("*.parquet")) == [at / "served" / now.version / "items.parquet"]  # of people, nothing
    assert [each.version for each in asyncio.run(on("look")) if each.is_current] == [now.version]
