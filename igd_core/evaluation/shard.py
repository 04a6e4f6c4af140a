"""Decode all rows of a shard into its journal."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from igd_core.errors import DataError, EngineError, InputError
from igd_core.evaluation.decode import RowDecoder
from igd_core.evaluation.ranks import IN_FILE_ORDER
from igd_core.progress import progress

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tqdm import tqdm

    from igd_core.artifact import Artifact
    from igd_core.evaluation.journal import Journal
    from igd_core.evaluation.methods import DecodingSetting
    from igd_core.evaluation.rows import EvaluationRows
    from igd_core.search.engine import Engine

_SHARD = re.compile(r"([1-9][0-9]{0,4})/([1-9][0-9]{0,4})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Every ``count``-th row, beginning with the ``index``-th; both count from 1."""

    index: int = 1
    count: int = 1

    @staticmethod
    def parse(text: str) -> Shard:
        """Parse ``2/4``.

        Raises:
            InputError: not of this form, or the index is larger than the count.
        """
        match = _SHARD.fullmatch(text)
        if match is None or int(match[1]) > int(match[2]):
            raise InputError(f"shard {text!r}: expected I/N with 1 <= I <= N, such as 1/4")
        return Shard(index=int(match[1]), count=int(match[2]))

    @property
    def file_name(self) -> str:
        """Name of the shard's journal in a run's folder."""
        return f"rows-{self.index}-of-{self.count}.jsonl"

    def of(self, total: int) -> range:
        """Positions of the shard's rows among ``total``."""
        return range(self.index - 1, total, self.count)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunIdentity:
    """What determines a row's lists; an interrupted run continues only if it is equal.

    Attributes:
        artifact: its version.
        rows_sha256: of the rows' file.
        limit: size of the sample; None for all rows.
        seed: of the sample.
        on_unknown: ``error`` or ``miss``.
        has_unknown: whether the file has rows with a target that the catalogue lacks. Earlier releases put those behind
            all others, so what they wrote of such a file is not gone on with.
    """

    artifact: str
    rows_sha256: str
    limit: int | None
    seed: int
    on_unknown: str
    has_unknown: bool = False

    def header(self, **more: object) -> dict[str, Any]:
        """The journal's header; ``more`` is what belongs to the model or baseline."""
        return {
            "artifact": self.artifact,
            "rows_sha256": self.rows_sha256,
            "limit": self.limit,
            "seed": self.seed,
            "on_unknown": self.on_unknown,
            **(IN_FILE_ORDER if self.has_unknown else {}),
            **more,
        }

    def of_ranks(self) -> dict[str, Any]:
        """What `RankedRun.identity` holds: also where this catalogue has every target, since another may not."""
        return self.header() | (IN_FILE_ORDER if self.on_unknown == "miss" else {})


def decoding_header(
    identity: RunIdentity, settings: Sequence[DecodingSetting], *, model: str, engine: str, dtype: str, sha256: str
) -> dict[str, Any]:
    """Header of the journals of a decoding with one model."""
    methods = [
        {"name": each.name, "known_as": each.known_as, "seen": each.seen, "depth": each.beams} for each in settings
    ]
    return identity.header(
        kind="decoding", model=model, model_sha256=sha256, engine=engine, dtype=dtype, methods=methods
    )


class ShardRun:
    """Decodes the rows of a shard that its journal lacks."""

    def __init__(self, journal: Journal, rows: EvaluationRows, shard: Shard, *, concurrency: int) -> None:
        """Find the rows that are left.

        Args:
            journal: of this shard, open.
            rows: of the whole run.
            shard: which of the rows.
            concurrency: rows decoded at once.
        """
        self._journal = journal
        self._rows = rows
        self._shard = shard
        self._concurrency = concurrency
        self.done = {int(record["row"]) for record in journal.records}

    @property
    def left(self) -> int:
        """Number of the shard's rows that the journal lacks."""
        return sum(place not in self.done for place in self._shard.of(len(self._rows)))

    async def decode(
        self, engine: Engine, artifact: Artifact, settings: Sequence[DecodingSetting], *, adapter: str | None = None
    ) -> None:
        """Decode the rows that are left, with the model or one of its adapters. Rows done before an error are kept.

        Raises:
            EngineError: names the row that could not be decoded.
        """
        decoder = RowDecoder(engine, artifact, settings, adapter=adapter)
        places = self._shard.of(len(self._rows))
        waiting = iter([place for place in places if place not in self.done])
        with progress(total=len(places), initial=len(places) - self.left, unit="row", desc="decoding") as bar:
            workers = [
                asyncio.ensure_future(self._work(waiting, decoder, bar)) for _ in range(max(1, self._concurrency))
            ]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    async def _work(self, waiting: Iterator[int], decoder: RowDecoder, bar: tqdm[Any]) -> None:
        for place in waiting:
            started = time.perf_counter()
            if self._rows.target[place] < 0:
                self._journal.append({"row": place, "lists": None})  # no catalogue item: a miss for every model
            else:
                try:
                    answer = await decoder.answer(self._rows.histories[place])
                except EngineError as error:
                    raise EngineError(f"rows: {self._rows.places.told(int(self._rows.row[place]))}: {error}") from error
                self._journal.append(
                    {
                        "row": place,
                        "lists": answer.lists,
                        "rounds": answer.rounds,
                        "tokens": answer.model_tokens,
                        "left_out": answer.left_out,
                        "popularity": answer.popularity,
                        "seconds": round(time.perf_counter() - started, 4),
                    }
                )
            bar.update()


def make_run_folder(out: Path) -> None:
    """Create a run's folder.

    Raises:
        DataError: it cannot be created.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{out}: cannot be made: {error.strerror}") from None
