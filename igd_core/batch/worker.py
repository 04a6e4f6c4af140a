"""Answer chunks: one engine in one process, for as many chunks as it is given."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pyarrow as pa

from igd_core.artifact import load_artifact
from igd_core.batch.inputs import Rejected
from igd_core.batch.parts import LINES, PartReport, Parts
from igd_core.batch.plan import Staging
from igd_core.batch.run_folder import RunFolder
from igd_core.engines.open import open_engine
from igd_core.engines.tuned_prompt import why_untuned
from igd_core.errors import DataError, EngineClosed, EngineError, ModelError
from igd_core.ids import ItemIndex
from igd_core.search.recommender import Recommender

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from igd_core.artifact import Artifact
    from igd_core.engines.open import EngineOptions
    from igd_core.search.query import Query
    from igd_core.search.recommender import Recommendation

MOST_TRIES = 5
"""Workers that may die over one chunk, in one run of the command, before the chunk counts as what kills them."""
NOTHING = "no item may come back for this row"
"""Why a row that was answered is in the side file: a row without lines would be lost among the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchJob:
    """All that a worker must know; paths mean the same on every machine.

    Attributes:
        out: the run's folder.
        run: digest of the run.
        artifact: folder.
        version: of the artifact, as the run began.
        options: of the engine, its adapters included.
        checkpoint: sha256 of the checkpoint's folder, as the run began.
        adapter: which of the engine's, if one.
        adapter_sha256: of its folder.
        query: how each row is asked; its history is replaced.
        concurrency: rows decoded at once.
    """

    out: Path
    run: str
    artifact: Path
    version: str
    options: EngineOptions
    checkpoint: str
    query: Query
    concurrency: int
    adapter: str | None = None
    adapter_sha256: str | None = None


class ChunkWorker:
    """An engine with the job's artifact, and the chunks it has answered."""

    def __init__(self, job: BatchJob) -> None:
        """Load artifact and model.

        Raises:
            ArtifactError: the artifact cannot be read.
            ModelError: the model cannot be loaded, or is not the one that the run began with.
            DataError: the artifact is not the one that the run began with.
        """
        self._job = job
        self._staging = Staging(RunFolder(job.out).staging)
        self._parts = Parts(RunFolder(job.out).recommendations, job.run)
        self.artifact: Artifact = load_artifact(job.artifact)
        if self.artifact.version != job.version:
            raise DataError(f"artifact: {job.artifact} was {job.version} when the run began, and is another now")
        opened = open_engine(job.options)
        self.engine = opened.engine
        self.fingerprint = self.engine.identity.fingerprint(job.adapter)
        self.untuned = why_untuned(opened.tuned.get(job.adapter), self.artifact)
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._loop = asyncio.new_event_loop()
        try:
            self._require_model_of_run()
            self._loop.run_until_complete(self.engine.load(self.artifact))
        except BaseException:
            self.close()
            raise
        self._recommender = Recommender(self.artifact, self.engine)

    def _require_model_of_run(self) -> None:
        job, identity = self._job, self.engine.identity
        adapter_sha256 = None if job.adapter is None else identity.adapters[job.adapter]
        if (identity.checkpoint, adapter_sha256) != (job.checkpoint, job.adapter_sha256):
            raise ModelError(f"model: {job.options.model} has changed since the run began")
        RunFolder(job.out).claim_model(self.fingerprint)

    def answer(self, chunk: int) -> PartReport:
        """Answer a chunk and write its part; one that is there already stays as it is.

        Raises:
            DataError: the chunk cannot be read.
            EngineError: names the row that could not be decoded, or too many workers died over the chunk. Nothing of it
                is written.
            OSError: the part cannot be written.
        """
        there = self._parts.report(chunk)
        if there is not None:
            return there
        if self._staging.count_try(chunk) > MOST_TRIES:
            raise EngineError(
                f"chunk {chunk}: {MOST_TRIES} workers have died over it, or been stopped; is there memory?"
            )
        started = time.perf_counter()
        rows = self._staging.chunk(chunk)
        try:
            answers = self._loop.run_until_complete(self._decode(rows))
        except EngineClosed as error:
            # The device is lost to this process for good: a new one may have it.
            print(f"igd batch: {error}", file=sys.stderr, flush=True)  # noqa: T201 - the worker's log
            os._exit(1)
        lines, rejected = self._lines(rows, answers)
        report = PartReport(
            chunk=chunk,
            rows=len(rows),
            lines=len(lines),
            popularity=sum(answer.source == "popularity" for answer in answers),
            rejected=len(rejected),
            seconds=round(time.perf_counter() - started, 3),
            worker=self._name,
            made_at_ms=int(time.time() * 1000),
        )
        self._parts.write(report, lines, rejected)
        return report

    def close(self) -> None:
        """Stop the engine."""
        self._loop.run_until_complete(self.engine.close())
        self._loop.close()

    async def _decode(self, rows: pa.Table) -> list[Recommendation]:
        histories = rows.column("history").to_pylist()
        answers: list[Recommendation | None] = [None] * len(histories)
        waiting = iter(range(len(histories)))

        async def work(places: Iterator[int]) -> None:
            for place in places:
                query = replace(self._job.query, history=[ItemIndex(item) for item in histories[place]])
                try:
                    answers[place] = await self._recommender.recommend(query, adapter=self._job.adapter)
                except EngineClosed:
                    raise
                except EngineError as error:
                    where = f"{rows.column('file')[place].as_py()}: row {rows.column('row')[place].as_py()}"
                    raise EngineError(f"{where}: {error}") from error

        tasks = [asyncio.ensure_future(work(waiting)) for _ in range(self._job.concurrency)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return [answer for answer in answers if answer is not None]

    def _lines(self, rows: pa.Table, answers: Sequence[Recommendation]) -> tuple[pa.Table, list[Rejected]]:
        """The lines of all rows in file order, and the rows without any."""
        ids = self.artifact.catalogue.item_ids
        columns: dict[str, list[object]] = {name: [] for name in LINES.names}
        rejected = []
        told = zip(*(rows.column(name).to_pylist() for name in ("file", "row", "user_id")), answers, strict=True)
        for file, row, user, answer in sorted(told, key=lambda each: each[:2]):
            if not answer.items:
                rejected.append(Rejected(file=file, row=row, user_id=user, reason=NOTHING))
            for rank, found in enumerate(answer.items, start=1):
                line = (user, rank, ids[found.item], found.score, self.artifact.version, self.fingerprint)
                for name, value in zip(LINES.names, (*line, answer.source, file, row), strict=True):
                    columns[name].append(value)
        return pa.table(columns, schema=LINES), rejected
