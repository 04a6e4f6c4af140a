"""A batch from beginning to end: plan, have the chunks answered that are not, say that all are.

Whoever answers chunks is handed in: `igd_core.batch.on_ray` does it with a pool of actors.
"""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from igd_core.batch.inputs import InputFiles, InputReader
from igd_core.batch.parts import PartReport, Parts
from igd_core.batch.plan import Plan, Sorting, Staging
from igd_core.batch.run_folder import RunFolder, digest_of
from igd_core.engines.embedded.checkpoint import resolve_checkpoint
from igd_core.engines.identity import FolderDigests
from igd_core.engines.open import checkpoint_sha256
from igd_core.errors import DataError, EngineError
from igd_core.locked_folders import locked_folder
from igd_core.progress import progress
from igd_core.release import RELEASE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from igd_core.artifact import Artifact
    from igd_core.batch.worker import BatchJob
    from igd_core.datasets.sources import Reading, Source
    from igd_core.engines.open import EngineOptions
    from igd_core.search.query import Query

_ADAPTER = "adapter"


class Answering(Protocol):
    """Has chunks answered; calls ``told`` for each when its part is in its place."""

    def __call__(self, job: BatchJob, chunks: Sequence[int], told: Callable[[PartReport], None]) -> None:
        """Return when all are answered.

        Raises:
            IGDError: one cannot be; parts that are in their place stay.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRequest:
    """A batch, as it is asked for.

    Attributes:
        rows: a file or a folder of files.
        reading: how to read them.
        on_unknown: an entry of a history that the catalogue lacks makes its row a bad one, or is left out.
        artifact: folder of the artifact.
        options: of the engine, without the adapter.
        adapter: folder of a LoRA adapter.
        query: how each row is asked.
        asked: the same as plain values by name, for the manifest.
        chunk_rows: rows that are answered, and lost to a crash, together.
        concurrency: rows that a worker decodes at once.
    """

    rows: Source
    reading: Reading
    on_unknown: Literal["error", "drop"]
    artifact: Path
    options: EngineOptions
    adapter: Path | None
    query: Query
    asked: Mapping[str, Any]
    chunk_rows: int
    concurrency: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchResult:
    """What a complete batch came to.

    Attributes:
        rows: of the input.
        answered: rows with recommendations.
        rejected: the other rows, which are in the side file.
        popularity: answered rows that popularity ranked, because nothing of their history could be shown.
        lines: items that were recommended, all rows together.
        chunks: parts.
        dropped: entries left out of histories because the catalogue lacks them.
        model_fingerprint: of the model that answered; None where no row could be.
    """

    rows: int
    answered: int
    rejected: int
    popularity: int
    lines: int
    chunks: int
    dropped: int
    model_fingerprint: str | None


@dataclass(slots=True)
class BatchRun:
    """One process's work on a batch.

    Attributes:
        request: what is asked for.
        artifact: whose items come back.
        folder: of the run.
        notes: what a person should know, once `run` has returned.
        answered_now: rows that this process had answered.
        seconds: that it took to have them answered.
    """

    request: BatchRequest
    artifact: Artifact
    folder: RunFolder
    notes: list[str] = field(default_factory=list)
    answered_now: int = 0
    seconds: float = 0.0

    def run(self, answering: Answering) -> BatchResult:
        """Do what is left of the run in its folder.

        Raises:
            DataError: the input, or the folder holds something else.
            ModelError: the checkpoint cannot be found.
            IGDError: as ``answering`` raises it.
        """
        self._require_apart()
        with locked_folder(self.folder.path), self.folder.written():
            files = InputFiles.of(self.request.rows, self.request.reading)
            options = dataclasses.replace(self.request.options, model=resolve_checkpoint(self.request.options.model))
            adapter = self.request.adapter
            checkpoint = checkpoint_sha256(options.model)
            adapter_sha256 = None if adapter is None else _folder_sha256(adapter)
            identity = self._identity(files, checkpoint=checkpoint, adapter_sha256=adapter_sha256)
            run, before = digest_of(identity), self.folder.begin(identity)
            parts, staging = Parts(self.folder.recommendations, run), Staging(self.folder.staging)
            if before is not None:
                if self._is_whole(before, parts):
                    staging.remove()
                    return BatchResult(**before)
                self.folder.write_manifest(identity, None)
            plan = staging.read_plan(run) or self._plan(staging, files, run)
            parts.prepare(plan.chunks)
            self._answer(self._job(options, run, checkpoint, adapter_sha256), plan, parts, answering)
            result = self._finish(plan, parts, staging)
            self.folder.write_manifest(identity, dataclasses.asdict(result))
            staging.remove()
        return result

    def _require_apart(self) -> None:
        rows, out = self.request.rows.path.resolve(), self.folder.path.resolve()
        if rows.is_dir() and out.is_relative_to(rows):
            raise DataError(f"out: {out} lies in {rows}, whose files are read as rows; choose a folder elsewhere")

    def _is_whole(self, before: Mapping[str, Any], parts: Parts) -> bool:
        """Whether all that a complete run has written is still there."""
        there = sum(1 for _ in parts.done(before["chunks"]))
        return bool(there == before["chunks"] and self.folder.rejected() == before["rejected"])

    def _identity(self, files: InputFiles, *, checkpoint: str, adapter_sha256: str | None) -> dict[str, Any]:
        """All that decides the answers, and how rows are divided among parts."""
        request = self.request
        return {
            "release": RELEASE,
            "files": dict(files.sha256),
            "artifact": self.artifact.version,
            "model": checkpoint,
            "adapter": adapter_sha256,
            "engine": request.options.engine,
            "dtype": request.options.dtype,
            "forward": request.options.forward,
            "precision": request.options.precision,
            "vllm": dict(request.options.vllm),
            **request.asked,
            "on_bad_row": request.reading.on_bad_row,
            "on_unknown_item": request.on_unknown,
            "chunk_rows": request.chunk_rows,
        }

    def _plan(self, staging: Staging, files: InputFiles, run: str) -> Plan:
        request = self.request
        reader = InputReader(files, self.artifact.catalogue, request.reading, on_unknown=request.on_unknown)
        sorting = Sorting.of(self.artifact.manifest.template, files.num_bytes)
        with progress(unit="row", desc="reading") as bar:

            def counted() -> Iterator[Any]:
                for batch in reader.batches():
                    yield batch
                    bar.update(len(batch.rows) + len(batch.rejected))
                files.require_unchanged()

            plan = staging.make(counted(), sorting, run=run, chunk_rows=request.chunk_rows)
        self.notes += reader.notes
        return plan

    def _job(self, options: EngineOptions, run: str, checkpoint: str, adapter_sha256: str | None) -> BatchJob:
        from igd_core.batch.worker import BatchJob

        request, adapter = self.request, self.request.adapter
        return BatchJob(
            out=self.folder.path.resolve(),
            run=run,
            artifact=request.artifact.resolve(),
            version=self.artifact.version,
            options=dataclasses.replace(
                options,
                model=options.model if isinstance(options.model, str) else options.model.resolve(),
                adapters={} if adapter is None else {_ADAPTER: adapter.resolve()},
            ),
            checkpoint=checkpoint,
            adapter=None if adapter is None else _ADAPTER,
            adapter_sha256=adapter_sha256,
            query=request.query,
            concurrency=request.concurrency,
        )

    def _answer(self, job: BatchJob, plan: Plan, parts: Parts, answering: Answering) -> None:
        done = {report.chunk: report.rows for report in parts.done(plan.chunks)}
        left = [chunk for chunk in range(plan.chunks) if chunk not in done]
        if not left:
            return
        Staging(self.folder.staging).forget_tries()
        started = time.perf_counter()
        with progress(total=plan.answerable, initial=sum(done.values()), unit="row", desc="answering") as bar:

            def told(report: PartReport) -> None:
                self.answered_now += report.rows
                bar.update(report.rows)

            answering(job, left, told)
        self.seconds = time.perf_counter() - started

    def _finish(self, plan: Plan, parts: Parts, staging: Staging) -> BatchResult:
        """Look at every part, and write the side file of all.

        Raises:
            EngineError: a part is missing, or rows are.
        """
        reports = list(parts.done(plan.chunks))
        if len(reports) != plan.chunks or sum(each.rows for each in reports) != plan.answerable:
            raise EngineError(
                f"{len(reports)} of {plan.chunks} parts are in {parts.folder}; the same command goes on with the others"
            )

        def lines() -> Iterator[str]:
            with staging.rejected.open(encoding="utf-8") as before:
                yield from before
            for report in reports:
                for each in parts.rejected(report.chunk) if report.rejected else ():
                    yield json.dumps(dataclasses.asdict(each), ensure_ascii=False) + "\n"

        rejected = self.folder.write_side_file(lines())
        return BatchResult(
            rows=plan.rows,
            answered=plan.rows - rejected,
            rejected=rejected,
            popularity=sum(each.popularity for each in reports),
            lines=sum(each.lines for each in reports),
            chunks=plan.chunks,
            dropped=plan.dropped,
            model_fingerprint=next(iter(self.folder.fingerprints()), None),
        )


def _folder_sha256(adapter: Path) -> str:
    with FolderDigests(adapter) as digests:
        return digests.together()
