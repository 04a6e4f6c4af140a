"""Chunks on Ray Data: a pool of actors, each with an engine, on this machine or on a cluster.

What travels are chunks' numbers: rows and answers lie on disks that all machines share. So neither the driver nor
Ray's object store grows with the input, and a task that Ray runs twice finds its part already there.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from igd_core.batch.parts import PartReport, Parts
from igd_core.batch.run_folder import RunFolder
from igd_core.errors import EngineError, IGDError, InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from igd_core.batch.worker import BatchJob, ChunkWorker

_MOST_TASKS = 10_000
"""Tasks that Ray Data gets; of more chunks, a task has several."""
_STORE_BYTES = 128 << 20
"""Ray's object store on this machine; it holds numbers of chunks."""
_REMOTE = re.compile(r"auto|(ray://)?[^/\s]+:[0-9]{1,5}(/.*)?")
_CLIENT = "ray://"
_REACHED_S, _LOOK_S = 10.0, 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Where the actors run, and what each of them takes.

    Attributes:
        address: of a cluster: ``auto``, ``ray://HOST:PORT``, ``HOST:PORT``; None for one on this machine, for this run.
        least: actors that the run needs.
        most: actors that it may have.
        cpus: of each; a fraction shares a core.
        gpus: of each; a fraction shares a card.
    """

    address: str | None
    least: int
    most: int
    cpus: float
    gpus: float

    def check(self) -> None:
        """Refuse what cannot be, before anything is read.

        Raises:
            InputError: an address of no known form or that is not reached, more than this machine has, or a fraction
                that Ray does not know.
        """
        for flag, each in (("cpus", self.cpus), ("gpus", self.gpus)):
            if each > 1 and each != int(each):
                raise InputError(f"{flag}: {each:g} is no whole number; only less than 1 may be a fraction")
        if self.address is not None:
            if not _REMOTE.fullmatch(self.address):
                raise InputError(f"address: {self.address!r} is not auto, ray://HOST:PORT or HOST:PORT")
            self._require_reached(self.address)
            return
        here = len(os.sched_getaffinity(0))
        if self.least * self.cpus > here:
            needed = f"{self.least} of {self.cpus:g} CPUs need {self.least * self.cpus:g}"
            raise InputError(f"actors: {needed}, and this machine has {here}")

    @staticmethod
    def _require_reached(address: str) -> None:
        """Ray itself gives up after minutes."""
        host, _, port = address.removeprefix(_CLIENT).partition("/")[0].rpartition(":")
        if address == "auto":
            return
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_REACHED_S).close()
        except (OSError, OverflowError) as error:
            told = getattr(error, "strerror", None) or str(error)
            raise InputError(f"address: {address!r} is not reached: {told}") from None


@dataclass(frozen=True, slots=True)
class RayAnswering:
    """Has chunks answered by actors on a cluster (`igd_core.batch.run.Answering`).

    Attributes:
        cluster: where.
        note: gets what a person should know.
    """

    cluster: Cluster
    note: Callable[[str], None]

    def __call__(self, job: BatchJob, chunks: Sequence[int], told: Callable[[PartReport], None]) -> None:
        """Return when all are answered.

        Raises:
            InputError: the cluster is not reached, or has too little.
            EngineError: a chunk cannot be answered.
        """
        import ray

        with _connected(self.cluster):
            self._require_room(ray.cluster_resources())
            try:
                if (self.cluster.address or "").startswith(_CLIENT):
                    error, notes = _drive_inside(job, chunks, self.cluster, told)
                else:
                    error, notes = _drive(job, chunks, self.cluster, told)
            except ray.exceptions.RayError as failed:
                raise EngineError(f"Ray: {_told(failed)}; the same command goes on") from failed
        for note in notes:
            self.note(note)
        if error:
            raise EngineError(error)

    def _require_room(self, resources: Mapping[str, float]) -> None:
        for name, flag, each in (("CPU", "cpus", self.cluster.cpus), ("GPU", "gpus", self.cluster.gpus)):
            needed, there = self.cluster.least * each, resources.get(name, 0.0)
            if needed <= there:
                continue
            told = f"{self.cluster.least} actors of {each:g} {name}s need {needed:g}, and there are {there:g}"
            if self.cluster.address is None:
                raise InputError(f"{flag}: {told}")
            self.note(f"{flag}: {told}; the run waits until the cluster has grown")


class ChunkActor:
    """What Ray Data calls with chunks' numbers. An error is a result: Ray would wrap one that is raised."""

    def __init__(self, job: BatchJob) -> None:
        self._worker: ChunkWorker | None = None
        self._refused = ""
        try:
            from igd_core.batch.worker import ChunkWorker

            self._worker = ChunkWorker(job)
        except IGDError as error:
            self._refused = str(error)

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Answer chunks; each result has the fields of a `PartReport`, ``error`` and ``untuned``."""
        rows = [self._answer(int(chunk)) for chunk in batch["chunk"]]
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}

    def _answer(self, chunk: int) -> dict[str, Any]:
        report, error = PartReport(chunk=chunk, rows=0, lines=0, popularity=0, rejected=0, seconds=0.0, worker=""), ""
        if self._worker is None:
            error = self._refused
        else:
            try:
                report = self._worker.answer(chunk)
            except (IGDError, OSError) as caught:
                error = str(caught)
        untuned = self._worker.untuned if self._worker else None
        fields = {name: getattr(report, name) for name in PartReport.__dataclass_fields__}
        return {**fields, "error": error, "untuned": untuned or ""}


def _drive(
    job: BatchJob, chunks: Sequence[int], cluster: Cluster, told: Callable[[PartReport], None] | None = None
) -> tuple[str, list[str]]:
    """Have chunks answered; returns the error of the first that cannot be, "" if all are, and notes for a person."""
    notes: set[str] = set()
    for found in _dataset(job, chunks, cluster).iter_rows():
        if found["error"]:
            return str(found["error"]), sorted(notes)
        if found["untuned"]:
            notes.add(f"{found['untuned']}; its rankings say little")
        if told is not None:
            told(PartReport(**{name: found[name] for name in PartReport.__dataclass_fields__}))
    return "", sorted(notes)


def _drive_inside(
    job: BatchJob, chunks: Sequence[int], cluster: Cluster, told: Callable[[PartReport], None]
) -> tuple[str, list[str]]:
    """The same from outside of a cluster: Ray Data does not run there, so a task inside drives it.

    How far it is, the parts tell.
    """
    import ray

    running = ray.remote(num_cpus=0, max_retries=0)(_drive).remote(job, list(chunks), cluster)
    parts, left, ended = Parts(RunFolder(job.out).recommendations, job.run), list(chunks), False
    while not ended:
        ended = bool(ray.wait([running], timeout=_LOOK_S)[0])
        there = {chunk: report for chunk in left if (report := parts.report(chunk)) is not None}
        for report in there.values():
            told(report)
        left = [chunk for chunk in left if chunk not in there]
    error, notes = ray.get(running)
    return str(error), list(notes)


def _dataset(job: BatchJob, chunks: Sequence[int], cluster: Cluster) -> Any:  # noqa: ANN401 - Ray's types are loose
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # `igd_core.progress` tells of rows, and of those of earlier sessions
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context.execution_no_progress_timeout_s = -1  # a chunk takes as long as it takes
    numbers = ray.data.from_items(
        [{"chunk": chunk} for chunk in chunks], override_num_blocks=min(len(chunks), _MOST_TASKS)
    )
    return numbers.map_batches(
        ChunkActor,
        fn_constructor_kwargs={"job": job},
        batch_size=1,
        batch_format="numpy",
        # One task in flight: a chunk that waits behind another one is a chunk that an idle actor does not get.
        compute=ray.data.ActorPoolStrategy(
            min_size=min(cluster.least, len(chunks)),
            max_size=min(cluster.most, len(chunks)),
            max_tasks_in_flight_per_actor=1,
        ),
        num_cpus=cluster.cpus,
        num_gpus=cluster.gpus,
    )


@contextlib.contextmanager
def _connected(cluster: Cluster) -> Iterator[None]:
    """Ray for the length of the block.

    Raises:
        InputError: the cluster is not reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if cluster.address is None:
        # Ray counts the same cores, but an actor of a fraction leaves none unused.
        cpus = max(len(os.sched_getaffinity(0)), math.ceil(cluster.least * cluster.cpus))
        options |= {"include_dashboard": False, "num_cpus": cpus, "object_store_memory": _STORE_BYTES}
    try:
        ray.init(address=cluster.address or "local", **options)
    except (ConnectionError, RuntimeError, TimeoutError, ImportError, ValueError) as error:
        raise InputError(f"address: {cluster.address or 'this machine'}: {_told(error)}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _told(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
