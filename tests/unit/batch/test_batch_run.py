"""A batch on one engine in this process: every row once, whatever was cut off, changed or damaged in between."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow.parquet as pq
import pytest
from checkpoints import write_checkpoint

from igd_core.artifact import load_artifact
from igd_core.batch.on_ray import ChunkActor
from igd_core.batch.plan import Staging
from igd_core.batch.run import BatchRequest, BatchResult, BatchRun
from igd_core.batch.run_folder import RunFolder
from igd_core.batch.worker import MOST_TRIES, NOTHING, ChunkWorker
from igd_core.datasets.sources import Reading, Source
from igd_core.engines.open import EngineOptions, open_engine
from igd_core.errors import DataError, EngineError, ModelError
from igd_core.ids import ItemIndex
from igd_core.locked_folders import locked_folder
from igd_core.search.query import Query
from igd_core.search.recommender import Recommender

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from igd_core.batch.parts import PartReport
    from igd_core.batch.worker import BatchJob
    from igd_core.engines.embedded.checkpoint import Checkpoint

ROWS = 23
Lists: TypeAlias = dict[str, list[tuple[str, float, str]]]


@dataclass
class InProcess:
    """Answers chunks with one engine here; it may be cut off after some."""

    stop_after: int | None = None
    answered: list[int] = field(default_factory=list)

    def __call__(self, job: BatchJob, chunks: Sequence[int], told: Callable[[PartReport], None]) -> None:
        worker = ChunkWorker(job)
        try:
            for chunk in chunks:
                if self.stop_after is not None and len(self.answered) >= self.stop_after:
                    raise KeyboardInterrupt
                told(worker.answer(chunk))
                self.answered.append(chunk)
        finally:
            worker.close()


@pytest.fixture(scope="module")
def model(
    checkpoint_of: Callable[[str], Checkpoint], definition: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("batch") / "model"
    return write_checkpoint(folder, checkpoint_of("llama-fp32").model, definition)


@pytest.fixture
def request_of(model: Path, pristine_bundle: Path, tmp_path: Path) -> Callable[..., BatchRequest]:
    rows = tmp_path / "rows.csv"
    lines = [f"u{row},item-{row % 5} item-{(row * 7) % 24}" for row in range(ROWS - 2)]
    rows.write_text(
        "\n".join(["user_id,history_item_ids", *lines, "new,", "bad,nobody-knows"]) + "\n", encoding="utf-8"
    )

    def make(**changes: Any) -> BatchRequest:
        request = BatchRequest(
            rows=Source.of(rows),
            reading=Reading(on_bad_row="skip"),
            on_unknown="error",
            artifact=pristine_bundle,
            options=EngineOptions(model=model, device="cpu"),
            adapter=None,
            query=Query(history=(), k=3, beams=4, explain=False),
            asked={"k": 3, "beams": 4},
            chunk_rows=5,
            concurrency=2,
        )
        return replace(request, **changes)

    return make


def run(request: BatchRequest, out: Path, answering: InProcess | None = None) -> BatchResult:
    return BatchRun(request, load_artifact(request.artifact), RunFolder(out)).run(answering or InProcess())


def lines_of(out: Path) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = pq.read_table(out / "recommendations").to_pylist()
    return lines


def rejected_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "rejected.jsonl").read_text(encoding="utf-8").splitlines()]


def require_each_row_once(out: Path, k: int = 3) -> None:
    ranks = Counter((line["row"], line["rank"]) for line in lines_of(out))
    rejected = Counter(each["row"] for each in rejected_of(out))
    assert ranks == Counter((row, rank) for row in range(2, ROWS + 1) for rank in range(1, k + 1))
    assert rejected == Counter([ROWS + 1])


def test_each_row_gets_what_the_recommender_gives(request_of: Any, tmp_path: Path) -> None:
    request = request_of()
    out = tmp_path / "out"
    result = run(request, out)
    assert (result.rows, result.answered, result.rejected, result.popularity) == (ROWS, ROWS - 1, 1, 1)
    assert (result.lines, result.chunks) == (3 * (ROWS - 1), 5)
    require_each_row_once(out)
    artifact, opened = load_artifact(request.artifact), open_engine(request.options)

    async def expected() -> Lists:
        await opened.engine.load(artifact)
        recommender = Recommender(artifact, opened.engine)
        lists: Lists = {}
        for line in lines_of(out):
            at = line["row"] - 2
            items = [at % 5, (at * 7) % 24] if line["user_id"] != "new" else []
            answer = await recommender.recommend(replace(request.query, history=[ItemIndex(item) for item in items]))
            ids = artifact.catalogue.item_ids
            lists[line["user_id"]] = [(ids[found.item], found.score, answer.source) for found in answer.items]
        await opened.engine.close()
        return lists

    wanted = asyncio.run(expected())
    found: Lists = {}
    for line in sorted(lines_of(out), key=lambda line: line["rank"]):
        found.setdefault(line["user_id"], []).append((line["item_id"], line["score"], line["source"]))
    assert wanted.keys() == found.keys()
    for user, items in wanted.items():
        assert [each[::2] for each in found[user]] == [each[::2] for each in items]
        assert [each[1] for each in found[user]] == pytest.approx([each[1] for each in items], abs=1e-4)
    fingerprint = opened.engine.identity.fingerprint()
    assert {(line["version"], line["model_fingerprint"]) for line in lines_of(out)} == {(artifact.version, fingerprint)}
    assert result.model_fingerprint == fingerprint
    assert {line["source"] for line in lines_of(out)} == {"model", "popularity"}
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["complete"]
    assert not (out / "staging").exists()


def test_a_run_that_was_cut_off_goes_on_with_what_is_left(request_of: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(request_of(), out, InProcess(stop_after=2))
    assert json.loads((out / "manifest.json").read_text(encoding="utf-8"))["complete"] is False
    (out / "recommendations" / ".part-000003.parquet-abc").write_bytes(b"half")  # a writer was killed
    damaged = out / "recommendations" / "part-000000.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    rest = InProcess()
    run(request_of(), out, rest)
    assert rest.answered == [0, 2, 3, 4]
    require_each_row_once(out)
    assert sorted(path.name for path in (out / "recommendations").iterdir()) == [
        f"part-{chunk:06d}.parquet" for chunk in range(5)
    ]


def test_a_complete_run_is_left_alone_and_a_lost_part_made_again(request_of: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run(request_of(), out)
    nothing = InProcess()
    assert run(request_of(), out, nothing) == result
    (out / "recommendations" / "part-000001.parquet").unlink()
    one = InProcess()
    assert run(request_of(), out, one) == result
    assert (nothing.answered, one.answered) == ([], [1])
    require_each_row_once(out)


def test_a_chunk_that_is_answered_twice_stays_as_it_is(request_of: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"

    class Twice(InProcess):
        def __call__(self, job: BatchJob, chunks: Sequence[int], told: Callable[[PartReport], None]) -> None:
            worker = ChunkWorker(job)
            for chunk in chunks:
                told(worker.answer(chunk))
                before = (out / "recommendations" / f"part-{chunk:06d}.parquet").stat().st_ino
                worker.answer(chunk)
                assert (out / "recommendations" / f"part-{chunk:06d}.parquet").stat().st_ino == before
            worker.close()

    run(request_of(), out, Twice())
    require_each_row_once(out)


def test_a_chunk_over_which_workers_die_ends_the_run_and_may_be_tried_again(request_of: Any, tmp_path: Path) -> None:
    class Dying(InProcess):
        def __call__(self, job: BatchJob, chunks: Sequence[int], told: Callable[[PartReport], None]) -> None:
            staging = Staging(RunFolder(job.out).staging)
            for _ in range(MOST_TRIES):
                staging.count_try(chunks[0])  # as a worker does before it dies
            super().__call__(job, chunks, told)

    with pytest.raises(EngineError, match=f"chunk 0: {MOST_TRIES} workers have died over it, or been stopped"):
        run(request_of(), tmp_path / "out", Dying())
    run(request_of(), tmp_path / "out")
    require_each_row_once(tmp_path / "out")


def test_parts_that_are_missing_are_told(request_of: Any, tmp_path: Path) -> None:
    class Forgetful(InProcess):
        def __call__(self, job: BatchJob, chunks: Sequence[int], told: Callable[[PartReport], None]) -> None:
            super().__call__(job, chunks[1:], told)

    with pytest.raises(EngineError, match="4 of 5 parts"):
        run(request_of(), tmp_path / "out", Forgetful())
    assert json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))["complete"] is False


def test_another_run_in_the_folder_is_refused_by_what_differs(
    request_of: Any, tmp_path: Path, checkpoint_of: Any, definition: dict[str, Any]
) -> None:
    out, rows = tmp_path / "out", tmp_path / "rows.csv"
    run(request_of(), out)
    other = write_checkpoint(tmp_path / "other", checkpoint_of("qwen3-fp32").model, definition)
    for changes, told in (
        ({"asked": {"k": 3, "beams": 5}}, "beams was 4, now it is 5"),
        ({"chunk_rows": 6}, "chunk_rows was 5, now it is 6"),
        ({"on_unknown": "drop"}, 'on_unknown_item was "error", now it is "drop"'),
        ({"options": EngineOptions(model=other, device="cpu")}, "model was "),
        ({"reading": Reading(on_bad_row="skip", delimiter=";")}, "file 'rows.csv' has changed, or is read otherwise"),
    ):
        with pytest.raises(DataError, match=told):
            run(request_of(**changes), out)
    before = rows.read_bytes()
    rows.write_bytes(before + b"late,item-1\n")
    with pytest.raises(DataError, match=r"file 'rows\.csv' has changed"):
        run(request_of(), out)
    rows.write_bytes(before)
    nothing = InProcess()
    run(request_of(), out, nothing)
    assert not nothing.answered


def test_rows_for_which_nothing_may_come_back_are_in_the_side_file(request_of: Any, tmp_path: Path) -> None:
    request = request_of(query=Query(history=(), k=3, beams=4, allow=[ItemIndex(1)], explain=False))
    result = run(request, tmp_path / "out")
    seen = {row + 2 for row in range(ROWS - 2) if 1 in (row % 5, (row * 7) % 24)}
    rejected = {each["row"]: each["reason"] for each in rejected_of(tmp_path / "out")}
    assert {row for row, reason in rejected.items() if reason == NOTHING} >= seen
    assert len(lines_of(tmp_path / "out")) + len(rejected) == ROWS
    assert (result.answered, result.rejected) == (ROWS - len(rejected), len(rejected))


def test_a_model_that_changes_during_the_run_is_refused(
    request_of: Any, tmp_path: Path, checkpoint_of: Any, definition: dict[str, Any]
) -> None:
    model = write_checkpoint(tmp_path / "mine", checkpoint_of("llama-fp32").model, definition)
    request = request_of(options=EngineOptions(model=model, device="cpu"))

    class Swapped(InProcess):
        def __call__(self, job: BatchJob, chunks: Sequence[int], told: Callable[[PartReport], None]) -> None:
            (model / "generation_config.json").write_text("{}", encoding="utf-8")
            super().__call__(job, chunks, told)

    with pytest.raises(ModelError, match="has changed since the run began"):
        run(request, tmp_path / "out", Swapped())


def test_what_an_actor_cannot_do_is_a_result_for_the_driver(request_of: Any, tmp_path: Path) -> None:
    class OnActors(InProcess):
        def __call__(self, job: BatchJob, chunks: Sequence[int], told: Callable[[PartReport], None]) -> None:
            missing = ChunkActor(replace(job, options=EngineOptions(model=tmp_path / "gone", device="cpu")))
            (answer,) = missing({"chunk": np.array([0])})["error"].tolist()
            assert "gone" in answer
            actor = ChunkActor(job)
            found = actor({"chunk": np.array([1, 99])})
            assert (found["rows"].tolist(), found["chunk"].tolist()) == ([5, 0], [1, 99])
            first, second = found["error"].tolist()
            assert (first, "000099.arrow" in second) == ("", True)
            assert "was not tuned" in found["untuned"][0]
            assert actor._worker is not None
            actor._worker.close()
            super().__call__(job, chunks, told)

    run(request_of(), tmp_path / "out", OnActors())
    require_each_row_once(tmp_path / "out")


def test_machines_whose_scores_differ_do_not_share_a_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.claim_model("aa")
    folder.claim_model("aa")
    with pytest.raises(ModelError, match="model_fingerprint: bb here, and aa in other answers"):
        folder.claim_model("bb")
    folder.claim_model("aa")
    assert folder.fingerprints() == ["aa"]


def test_a_folder_is_written_by_one_process_and_holds_one_run(request_of: Any, tmp_path: Path) -> None:
    with locked_folder(tmp_path / "out"), pytest.raises(DataError, match="another process is writing it"):
        run(request_of(), tmp_path / "out")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(DataError, match=r"holds 'notes\.txt', and no run of igd batch"):
        run(request_of(), tmp_path / "taken")
    (tmp_path / "out" / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"manifest\.json: cannot be read"):
        run(request_of(), tmp_path / "out")


def test_a_part_copied_over_another_and_a_lost_side_file_are_made_again(request_of: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run(request_of(), out)
    parts, side_file = out / "recommendations", out / "rejected.jsonl"
    (parts / "part-000001.parquet").write_bytes((parts / "part-000002.parquet").read_bytes())
    seen = []

    class Looking(InProcess):
        def __call__(self, job: BatchJob, chunks: Sequence[int], told: Callable[[PartReport], None]) -> None:
            seen.append(json.loads((out / "manifest.json").read_text(encoding="utf-8"))["complete"])
            super().__call__(job, chunks, told)

    one = Looking()
    assert run(request_of(), out, one) == result
    assert (one.answered, seen) == ([1], [False])
    for damage in (side_file.unlink, lambda: side_file.write_text("", encoding="utf-8")):
        damage()
        nothing = InProcess()
        assert run(request_of(), out, nothing) == result
        assert not nothing.answered
        require_each_row_once(out)


def test_what_was_cut_off_after_completion_is_tidied_up(request_of: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run(request_of(), out)
    (out / "staging").mkdir()
    assert run(request_of(), out) == result
    assert not (out / "staging").exists()


def test_a_reader_of_parts_can_find_a_byte_that_flipped(request_of: Any, tmp_path: Path) -> None:
    run(request_of(), tmp_path / "out", InProcess())
    part = tmp_path / "out" / "recommendations" / "part-000000.parquet"
    whole, data = pq.read_table(part, page_checksum_verification=True), bytearray(part.read_bytes())
    assert len(whole)
    data[pq.read_metadata(part).row_group(0).column(0).data_page_offset + 40] ^= 1
    part.write_bytes(data)
    with pytest.raises(OSError, match="CRC"):
        pq.read_table(part, page_checksum_verification=True)


def test_a_run_without_a_part_gives_way_to_the_corrected_command(request_of: Any, tmp_path: Path) -> None:
    out, rows = tmp_path / "out", tmp_path / "rows.csv"
    right = rows.read_bytes()
    rows.write_bytes(right.replace(b"history_item_ids", b"history", 1))
    with pytest.raises(DataError, match="no column 'history_item_ids'"):
        run(request_of(), out)
    RunFolder(out).claim_model("of a machine that answered nothing")
    rows.write_bytes(right)
    run(request_of(), out)
    require_each_row_once(out)


def test_answers_do_not_go_among_the_rows(request_of: Any, tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    rows.mkdir()
    for out in (rows, rows / "lists"):
        with pytest.raises(DataError, match="whose files are read as rows"):
            run(request_of(rows=Source.of(rows)), out)
    assert not list(rows.iterdir())


def test_a_full_disk_is_told_with_the_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(DataError, match=f"out: {tmp_path}: No space left on device"), folder.written():
        raise OSError(errno.ENOSPC, "Error writing bytes to file. Detail: [errno 28] No space left on device")
    with pytest.raises(FileNotFoundError), folder.written():
        (tmp_path / "gone").read_bytes()
    with pytest.raises(ConnectionRefusedError), folder.written():
        raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")


def test_others_may_read_what_a_run_has_written(request_of: Any, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        run(request_of(), tmp_path / "out")
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file() and not path.name.startswith(".")]
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in files} == {path.name: "0o644" for path in files}
