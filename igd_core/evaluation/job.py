"""The three steps of an evaluation in one folder: decode a shard's rows, rank the baselines, summarise.

Each step continues from what earlier runs have written to the folder.
"""

from __future__ import annotations

import asyncio
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from igd_core.datasets.rows import HistoryRows
from igd_core.datasets.sequences import read_training, training_sequences
from igd_core.datasets.sources import DEFAULT_READING, Reading, Source
from igd_core.engines.open import checkpoint_sha256, open_engine
from igd_core.evaluation.baselines import ADDING_UP, NEED_TRAINING, make_ranker, ranked_lists
from igd_core.evaluation.gammas import choose_gamma
from igd_core.evaluation.journal import Journal
from igd_core.evaluation.plots import draw_accuracy, draw_slices
from igd_core.evaluation.ranks import RANKS_FILE, MethodRanks, RankedRun, to_ranks_json
from igd_core.evaluation.report import RESULTS, collect, report, table
from igd_core.evaluation.results import summarise, title_ranks
from igd_core.evaluation.sasrec_settings import SASRecSettings
from igd_core.evaluation.shard import ShardRun, decoding_header
from igd_core.evaluation.shared_session import widest_node
from igd_core.scorers.gamma_file import GAMMA_FILE
from igd_core.whole_files import write_json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    from numpy.typing import NDArray

    from igd_core.artifact import Artifact
    from igd_core.engines.open import EngineOptions
    from igd_core.evaluation.gammas import GammaChoice
    from igd_core.evaluation.methods import DecodingSetting, Seen
    from igd_core.evaluation.results import ResultSettings
    from igd_core.evaluation.rows import EvaluationRows
    from igd_core.evaluation.shard import RunIdentity, Shard
    from igd_core.search.engine import Engine

    Sequences: TypeAlias = Sequence[NDArray[np.int32]] | None

_ADAPTER = "adapter"
_CONCURRENCY = {"tree": 2, "vllm": 16}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelChoice:
    """The model to decode with.

    Attributes:
        options: of the engine; `EvaluationJob.decode` sets their ``adapters``.
        adapter: directory of a LoRA adapter for the model.
        concurrency: rows decoded at once; None for the engine's default.
    """

    options: EngineOptions
    adapter: Path | None = None
    concurrency: int | None = None

    @property
    def name(self) -> str:
        """The last part of the model's path, and of the adapter's."""
        return Path(self.options.model).name + ("" if self.adapter is None else f"+{self.adapter.name}")


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineChoice:
    """The baselines to rank.

    Attributes:
        names: of `baselines.BASELINES`.
        train: training rows, for baselines that learn.
        seen: with items of the history allowed, excluded, or once each.
        depth: length of the lists.
        seed: for baselines with random numbers.
        reading: how to read the file of training rows.
        sasrec: size and training of that baseline.
    """

    names: Sequence[str]
    train: Path | None
    seen: Sequence[Seen]
    depth: int
    seed: int
    reading: Reading = DEFAULT_READING
    sasrec: SASRecSettings = field(default_factory=SASRecSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The summary of a folder.

    Attributes:
        missing: rows that no shard has decoded yet; if there are any, the rest is empty.
        content: of ``results.json``.
        table: the results as text for the terminal.
        gamma: the gamma to serve; None where no setting was tried with several.
    """

    missing: int = 0
    content: dict[str, Any] = dataclasses.field(default_factory=dict)
    table: str = ""
    gamma: GammaChoice | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationJob:
    """An evaluation: rows, their catalogue, and the folder for results.

    Attributes:
        artifact: its prompts and paths are decoded.
        rows: histories and targets.
        identity: distinguishes these rows from others; every file of the folder has it.
        out: the folder; exists.
    """

    artifact: Artifact
    rows: EvaluationRows
    identity: RunIdentity
    out: Path

    def decode(self, choice: ModelChoice, settings: Sequence[DecodingSetting], shard: Shard) -> None:
        """Decode the shard's rows that its journal lacks; load the model only if there are any.

        Raises:
            DataError: the journal is of another run, or another process is writing it.
            ModelError: the checkpoint or adapter cannot be loaded.
            EngineError: a row could not be decoded; earlier rows are kept.
        """
        options, adapter = choice.options, None
        header = decoding_header(
            self.identity,
            settings,
            model=choice.name,
            engine=options.engine,
            dtype=options.dtype if options.precision == "fp32" else f"{options.dtype}, products {options.precision}",
            sha256=checkpoint_sha256(options.model, choice.adapter),
        )
        if choice.adapter is not None:
            adapter = _ADAPTER
            options = dataclasses.replace(options, adapters={_ADAPTER: choice.adapter})
        with Journal(self.out / shard.file_name, header, items=len(self.artifact.catalogue)) as journal:
            concurrency = choice.concurrency or _CONCURRENCY[options.engine]
            shard_run = ShardRun(journal, self.rows, shard, concurrency=concurrency)
            if shard_run.left:
                asyncio.run(self._run(shard_run, _open(options, self.artifact), settings, adapter))

    async def _run(
        self, shard_run: ShardRun, engine: Engine, settings: Sequence[DecodingSetting], adapter: str | None
    ) -> None:
        try:
            await engine.load(self.artifact)
            await shard_run.decode(engine, self.artifact, settings, adapter=adapter)
        finally:
            await engine.close()

    def rank_baselines(self, choice: BaselineChoice) -> None:
        """Rank the rows by each baseline that the folder lacks.

        Raises:
            DataError: training rows that cannot be read, or a journal of another run.
            InputError: a baseline whose library is not installed.
        """
        sequences = train_sha256 = None
        by_time = False
        if choice.train is not None and choice.names:
            read = read_training(
                choice.train,
                self.artifact.catalogue,
                on_unknown="error" if self.identity.on_unknown == "error" else "drop",
                reading=choice.reading,
            )
            sequences = training_sequences(read.data)
            by_time = isinstance(read.data, HistoryRows) and read.data.is_timed
            train_sha256 = Source.of(choice.train).sha256(choice.reading)
        for name in choice.names:
            methods = [{"name": name, "known_as": "", "seen": seen, "depth": choice.depth} for seen in choice.seen]
            header = self.identity.header(kind="baseline", train_sha256=train_sha256, methods=methods)
            if name in ADDING_UP:  # lists of releases that took a title's best item are none of these
                header["titles"] = "added up"
            if name in NEED_TRAINING and by_time:  # nor those that took rows as they stand
                header["sequences"] = "by time"
            if name == "sasrec" and (changed := choice.sasrec.model_dump(exclude_defaults=True)):
                header["settings"] = changed
            with Journal(self.out / f"baseline-{name}.jsonl", header, items=len(self.artifact.catalogue)) as journal:
                if len(journal.records) < len(self.rows):
                    self._rank(name, choice, journal, sequences)

    def _rank(self, name: str, choice: BaselineChoice, journal: Journal, sequences: Sequences) -> None:
        ranker = make_ranker(name, self.artifact, sequences, seed=choice.seed, scratch=self.out, sasrec=choice.sasrec)
        histories = self.rows.histories
        by_seen = [
            list(ranked_lists(ranker, histories, self.artifact, depth=choice.depth, seen=seen)) for seen in choice.seen
        ]
        done = {int(record["row"]) for record in journal.records}
        records = (
            {"row": row, "lists": lists if self.rows.target[row] >= 0 else None}
            for row, lists in enumerate(zip(*by_seen, strict=True))
        )
        journal.append(*(record for record in records if record["row"] not in done))

    def sum_up(self, summing: ResultSettings, *, chooses_gamma: bool, untuned: str | None = None) -> Summary:
        """Write ``results.json``, ``ranks.json`` and the plots, once every row is decoded; and perhaps ``gamma.json``.

        Args:
            summing: how lists are summarised.
            chooses_gamma: whether several gammas were tried.
            untuned: why the model does not count as tuned for the catalogue; None if it does, or does not say.

        Raises:
            DataError: a journal is damaged, or of another run.
        """
        collected = collect(self.out, self.identity.header(), rows=len(self.rows), items=len(self.artifact.catalogue))
        if collected.missing:
            return Summary(missing=collected.missing)
        results = summarise(collected.methods, self.rows, self.artifact, summing)
        content = report(collected, results, rows=self.rows, artifact=self.artifact, settings=summing)
        content["untuned"] = untuned
        ranks = [
            MethodRanks(
                name=lists.method.name,
                seen=lists.method.seen,
                known_as=lists.known_as,
                depth=lists.depth,
                titles=titles,
            )
            for lists, titles in zip(
                collected.methods, title_ranks(collected.methods, self.rows, self.artifact), strict=True
            )
        ]
        ranked = RankedRun(
            path=self.out / RANKS_FILE,
            identity=self.identity.of_ranks(),
            methods=ranks,
            rows=self.rows.number,
            targets=self.rows.target_groups(self.artifact),
        )
        shown = summing.shown_cutoff(result.depth for result in results)
        chosen = self._choose_gamma(ranks, k=shown, seed=summing.resampling.seed) if chooses_gamma else None
        if chosen is not None:
            content["gamma"] = {"served": chosen.gamma, **dataclasses.asdict(chosen)}
        write_json(self.out / RESULTS, content)
        write_json(ranked.path, to_ranks_json(ranked), dense=True)
        draw_accuracy(results, shown, self.out / "accuracy.png")
        draw_slices(results, shown, self.out / "slices.png")
        return Summary(content=content, table=table(results, summing), gamma=chosen)

    def _choose_gamma(self, ranks: Sequence[MethodRanks], *, k: int, seed: int) -> GammaChoice | None:
        scorer = self.artifact.manifest.scorer
        lengths = np.array([len(history) for history in self.rows.histories], np.int64)
        chosen = choose_gamma(ranks, lengths, self.rows.target_leaf(self.artifact), k=k, seed=seed)
        if chosen is None or scorer is None:
            return None
        content = chosen.to_json(scorer=scorer.name, artifact=self.artifact.version, rows_sha256=self.rows.sha256)
        write_json(self.out / GAMMA_FILE, content)
        return chosen


def _open(options: EngineOptions, artifact: Artifact) -> Engine:
    if options.engine == "vllm":
        # All children of a node are asked for at once, and vLLM needs to know their greatest number when it starts.
        beams = max(int(options.vllm.get("max_beams", 1)), -(-widest_node(artifact) // 2))
        options = dataclasses.replace(options, vllm={**options.vllm, "max_beams": beams})
    return open_engine(options).engine
