"""`igd batch` on local Ray: an actor and then the driver are killed, and every row is answered once all the same."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil
import pyarrow.parquet as pq
import pytest
from checkpoints import write_checkpoint
from patience import PATIENCE_S
from ray_parts import require_ray

from igd_core.artifact import load_artifact
from igd_core.engines.open import EngineOptions, open_engine
from igd_core.ids import ItemIndex
from igd_core.search.query import Query
from igd_core.search.recommender import Recommender

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from igd_core.engines.embedded.checkpoint import Checkpoint

require_ray()

ROWS, CHUNK, K = 600, 20, 3
ENVIRONMENT = {"RAY_worker_niceness": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A batch to run."""

    artifact: Path
    model: Path
    rows: Path
    out: Path
    log: Path

    def command(self, *more: str) -> list[str]:
        files = ["--artifact", self.artifact, "--model", self.model, "--rows", self.rows, "--out", self.out]
        flags = ["--device", "cpu", "--k", K, "--beams", 4, "--chunk-rows", CHUNK, "--actors", "2", "--cpus", "0.5"]
        return [sys.executable, "-m", "igd_core", "batch", *map(str, [*files, *flags]), "--json", *more]

    def start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self.command(), stdout=subprocess.PIPE, stderr=log, env=os.environ | ENVIRONMENT, start_new_session=True
            )

    def parts(self) -> int:
        return len(list((self.out / "recommendations").glob("part-*.parquet")))

    def wait_for(self, what: str, condition: Callable[[], Any]) -> Any:
        until = time.monotonic() + 4 * PATIENCE_S
        while not (found := condition()):
            assert time.monotonic() < until, f"{what}: {self.log.read_text(encoding='utf-8')[-2000:]}"
            time.sleep(0.05)
        return found


@pytest.fixture(scope="module")
def case(
    checkpoint_of: Callable[[str], Checkpoint],
    definition: dict[str, Any],
    pristine_bundle: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Case:
    here: Path = tmp_path_factory.mktemp("batch")
    model = write_checkpoint(here / "model", checkpoint_of("llama-fp32").model, definition)
    histories = [f"item-{row % 24} item-{(row * 5) % 23}" for row in range(ROWS)]
    lines = [f"u{row},{history}" for row, history in enumerate(histories)]
    (here / "rows.csv").write_text("\n".join(["user_id,history_item_ids", *lines, "bad,gone"]) + "\n", encoding="utf-8")
    return Case(artifact=pristine_bundle, model=model, rows=here / "rows.csv", out=here / "out", log=here / "log")


def tree_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        return [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def actors(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    found = []
    for each in tree_of(process):
        try:
            if "ChunkActor" in " ".join(each.cmdline()):
                found.append(each)
        except psutil.Error:
            continue
    return found


@pytest.fixture
def ended() -> Iterator[list[psutil.Process]]:
    """Processes of Ray that a killed driver leaves, which end by themselves; what has not is ended here."""
    left: list[psutil.Process] = []
    yield left
    for each in left:
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue


@pytest.mark.timeout(600)
def test_an_actor_and_the_driver_are_killed_and_each_row_is_answered_once(
    case: Case, ended: list[psutil.Process]
) -> None:
    first = case.start()
    case.wait_for("two parts", lambda: case.parts() >= 2 and actors(first))
    ended += tree_of(first)
    actors(first)[0].kill()
    before = case.parts()
    case.wait_for("parts after an actor was killed", lambda: case.parts() >= before + 4)
    assert first.poll() is None
    ended += tree_of(first)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert first.stdout is not None
    first.stdout.close()
    assert 0 < case.parts() < ROWS // CHUNK
    assert json.loads((case.out / "manifest.json").read_text(encoding="utf-8"))["complete"] is False

    second = case.start()
    out, _ = second.communicate(timeout=8 * PATIENCE_S)
    assert second.returncode == 0, case.log.read_text(encoding="utf-8")[-3000:]
    result = json.loads(out)
    assert (result["rows"], result["answered"], result["rejected"]) == (ROWS + 1, ROWS, 1)
    assert 0 < result["answered_now"] < ROWS
    manifest = json.loads((case.out / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["complete"]

    lines = pq.read_table(case.out / "recommendations").to_pylist()
    ranks = Counter((line["user_id"], line["row"], line["rank"]) for line in lines)
    assert ranks == Counter((f"u{row}", row + 2, rank) for row in range(ROWS) for rank in range(1, K + 1))
    rejected = [json.loads(line) for line in (case.out / "rejected.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(each["user_id"], each["row"]) for each in rejected] == [("bad", ROWS + 2)]
    require_lists_of_one_engine(case, lines)


def require_lists_of_one_engine(case: Case, lines: list[dict[str, Any]]) -> None:
    artifact, opened = load_artifact(case.artifact), open_engine(EngineOptions(model=case.model, device="cpu"))
    found: dict[str, list[str]] = {}
    scores: dict[str, list[float]] = {}
    for line in sorted(lines, key=lambda line: line["rank"]):
        found.setdefault(line["user_id"], []).append(line["item_id"])
        scores.setdefault(line["user_id"], []).append(line["score"])

    async def compare() -> None:
        await opened.engine.load(artifact)
        recommender = Recommender(artifact, opened.engine)
        for row in range(0, ROWS, 20):
            history = [ItemIndex(row % 24), ItemIndex((row * 5) % 23)]
            answer = await recommender.recommend(Query(history=history, k=K, beams=4))
            assert found[f"u{row}"] == [artifact.catalogue.item_ids[each.item] for each in answer.items]
            assert scores[f"u{row}"] == pytest.approx([each.score for each in answer.items], abs=1e-4)
        await opened.engine.close()

    asyncio.run(compare())
