"""Run the stages of a start, each a command of `igd`; what a folder holds already is not done again.

data      igd data prepare csv            rows, split by time, from the two exports
tokens    igd build, igd tune tokenizer   a vocabulary of the titles' own (models from scratch)
scorers   igd build, igd evaluate         the item scorer that ranks validation rows best
titles    igd inspect                     what the tokens of the titles decide
tune      igd tune (, igd tune merge)     the model, as long as the minutes allow
choose    igd evaluate                    gamma and beams, by validation rows
shop      igd build                       the catalogue with all of that
judge     igd evaluate                    test rows, beside baselines
serve     igd serve                       one answer over HTTP
"""

from __future__ import annotations

import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igd_core.errors import DataError
from igd_core.evaluation.ranks import read_ranks
from igd_core.start.budget import LEAST_ROWS, Machine, TuningPlan, rows_within, told_rows, users_of
from igd_core.start.folder import LAYOUT_FILE, REPORT_FILE
from igd_core.start.prepared import first_history, have_two_sequences
from igd_core.start.serving import ask_server
from igd_core.start.verdict import judge
from igd_core.start.words import listed, shown_command, shown_fact, shown_time
from igd_core.tuning.record import going_on

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from igd_core.start.folder import StartFolder
    from igd_core.start.verdict import Verdict
    from igd_core.tuning.recipes import Recipe

_GAMMAS = "0,0.3,0.6,0.8,1"
_BEAMS = "10,40"
_MEASURED_STEPS = 3
_MEASURED_ROWS = 10
_AT_ONCE = 2
"""Rows that `igd evaluate` decodes at once: each then takes that many times as long as a row does."""
_WHOLE_HISTORIES, _MANY_EVENTS = 1000, 200_000
_VALID_ROWS = 1000
_SHAPES = ("max_history", "drop_block")
_NOT_OF_RECIPES = frozenset({"name", "model_id", "scorer", "alpha", "beams", "on_unspellable"})
"""What of a recipe's catalogue is chosen here instead."""
_SETTINGS = ("--seen", "excluded", "--alphas", "0", "--length-penalties", "0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a start is told.

    Attributes:
        items: the export of items.
        events: the export of events.
        many_events: whether there are so many that rows cannot keep whole histories.
        model: checkpoint to tune; None for a small one from scratch.
        recipe: how it is built and tuned.
        recipe_name: by which `igd tune` finds it: a name, or a file.
        own_recipe: whether it was made for these items, and not for those of the demo.
        find_tokenizer: finds the directory of the tokenizer, of ``model`` or to be cut down, and makes it if need be.
        minutes: that tuning, choosing and judging may take together, about.
        baselines: to compare with.
        device: ``auto``, ``cpu``, ``cuda``.
        on_unspellable: what becomes of titles that the tokenizer cannot spell.
    """

    items: Path
    events: Path
    many_events: bool
    model: str | None
    recipe: Recipe
    recipe_name: str
    own_recipe: bool
    find_tokenizer: Callable[[], Path]
    minutes: float
    baselines: tuple[str, ...]
    device: str
    on_unspellable: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of it.

    Attributes:
        verdict: on the test rows.
        serve: arguments of ``igd serve``.
        test_rows: that there are, of which the verdict's were drawn.
    """

    verdict: Verdict
    serve: tuple[str, ...]
    test_rows: int

    def told(self) -> str:
        """The verdict in words, and what would give a surer one."""
        told, more = self.verdict.told(), self.test_rows - self.verdict.rows
        if self.verdict.says == "too few rows" and more:
            enough = self.test_rows >= (self.verdict.needed or 0)
            are = "more --minutes use them" if enough else "more --minutes use them; more events are needed as well"
            return f"{told}\n{more:,} more test rows are there already: {are}"
        return told


class Start:
    """The stages, in a folder."""

    def __init__(
        self,
        asked: Asked,
        folder: StartFolder,
        *,
        command: Callable[[Sequence[str]], Mapping[str, Any]],
        say: Callable[[str], None],
    ) -> None:
        """``command`` runs ``igd`` with arguments and returns what its ``--json`` prints; ``say`` tells a person."""
        self._asked = asked
        self._folder = folder
        self._command = command
        self._say = say
        self._at = folder.path
        self._machine = Machine.here(asked.device)

    def data(self) -> Mapping[str, Any]:
        """Rows from the exports, and a report of what they hold."""
        at, asked = self._at, self._asked
        longest = 100 if asked.many_events else _WHOLE_HISTORIES
        files = ["--items", asked.items, "--interactions", asked.events, "--layout", at / LAYOUT_FILE]
        made = self._stage(
            "data",
            "the exports become rows, split by time: 8 of 10 events to learn from, 1 to choose, 1 to judge",
            [["data", "prepare", "csv", *files, "--max-history", longest, "--out", at / "data", "--force"]],
        )
        self._table(made)
        return made

    def rest(self) -> Outcome:
        """Everything after the data."""
        at, asked = self._at, self._asked
        self._machine.use()
        self._say(
            f"\nThis machine: {self._machine.told()}. Of {asked.minutes:g} minutes about half are for tuning, a third "
            "for choosing and judging; item scorers and baselines take what they take."
        )
        tokenizer = self._tokens()
        scorer = self._scorers(tokenizer)
        artifact = at / "scorers" / scorer
        self._table(
            self._stage(
                "titles",
                "what the tokens of your titles decide",
                [["inspect", "--artifact", artifact, "--tokenizer", tokenizer, "--plot", at / "gain.png"]],
            ),
            ("items", "distinct_paths", "truncated_titles", "cold_items", "tokens_per_path", "zero_share_catalogue",
             "decisions_per_path", "first_tokens"),
        )  # fmt: skip
        model = self._tune(artifact, tokenizer)
        beams = self._choose(artifact, model)
        self._shop(tokenizer, scorer, beams)
        self._judge(model)
        verdict = judge(read_ranks(at / "judged"))
        serve = ("--artifact", str(at / "shop"), "--model", str(model))
        self._serve(serve)
        return Outcome(verdict=verdict, serve=serve, test_rows=int(self._result("data")["rows"]["test"]))

    def _tokens(self) -> Path:
        """The tokenizer that the catalogue is built with."""
        whole, cut = self._asked.find_tokenizer(), self._at / "tokenizer"
        if self._asked.model is not None or self._asked.recipe.tokenizer == "whole":
            return whole
        if "tokens" not in self._folder.done:
            shutil.rmtree(cut, ignore_errors=True)
        self._stage(
            "tokens",
            "a vocabulary of the pieces that your titles use: a model from scratch needs no others",
            [self._build(whole, self._at / "whole", "--no-usual-scorer"), ["tune", "tokenizer", "--artifact",
             self._at / "whole", "--tokenizer", whole, "--out", cut]],
        )  # fmt: skip
        return cut

    def _build(self, tokenizer: Path, out: Path, *more: object) -> list[object]:
        """`igd build` as the recipe builds."""
        data, said = self._at / "data", self._asked.recipe.build
        names = [name for name in said if name in _SHAPES or (self._asked.own_recipe and name not in _NOT_OF_RECIPES)]
        flags = [part for name in names for part in (_flag(name), said[name])]
        files = ["--items", data / "items.csv", "--interactions", data / "train_interactions.csv"]
        return [
            "build", *files, "--tokenizer", tokenizer, *flags, "--on-unspellable", self._asked.on_unspellable,
            "--name", "shop", *more, "--out", out, "--force",
        ]  # fmt: skip

    def _scorers(self, tokenizer: Path) -> str:
        """The item scorer that ranks validation rows best, by the kinds in it; each is built and ranked with."""
        at = self._at
        items = int(self._result("data")["items"])
        has_room = self._machine.has_room_for_ease(items)
        kinds = ["transitions", "neighbours", *(["ease", "transitions+ease"] if has_room else [])]
        if "titles" in self._folder.done:  # what follows was made with the best of those that were tried then
            kinds = [kind for kind in kinds if f"scorer {kind}" in self._folder.done]
        elif not has_room:
            self._say(f"\nEASE is left out: its inverse of {items:,} items does not fit into half of the free memory")
        values = {}
        for kind in kinds:
            made = at / "scorers" / kind
            ranked = self._stage(
                f"scorer {kind}",
                "an item scorer, counted from the events and ranked with on validation rows",
                [
                    self._build(tokenizer, made, *_scorer(kind)),
                    ["evaluate", "--artifact", made, "--rows", at / "data" / "valid.csv", "--limit", 5000, "--seen",
                     "excluded", "--baselines", "scorer", "--on-unknown-item", "miss", "--out",
                     at / "scorers" / "ranked" / kind],
                ],
            )  # fmt: skip
            values[kind] = float(_metric(ranked, "scorer"))
        best = max(values, key=values.__getitem__)
        shown = ", ".join(f"{kind} {value:.4f}" for kind, value in values.items())
        self._say(f"  NDCG@10 on validation rows: {shown}; {best} is taken")
        return best

    def _tune(self, artifact: Path, tokenizer: Path) -> Path:
        """The tuned model's folder."""
        at, asked = self._at, self._asked
        run, tuning = at / "run", asked.recipe.tuning
        data = ["--train", at / "data" / "train.csv", "--valid", at / "data" / "valid.csv"]
        start = ["--tokenizer", tokenizer] if asked.model is None else ["--model", asked.model]
        command = [
            "tune",
            "--recipe",
            asked.recipe_name,
            "--artifact",
            artifact,
            *start,
            *data,
            "--device",
            asked.device,
        ]
        command += tuning_flags({} if not asked.own_recipe else tuning)
        batch = int(tuning.get("batch", 128))
        if "tune" not in self._folder.done:
            shutil.rmtree(at / "speed", ignore_errors=True)
        available, users = int(self._result("data")["rows"]["train"]), int(self._result("data")["users"])
        few = ["--epochs", 1, "--train-users", users_of(_MEASURED_STEPS * batch, available, users), "--valid-rows", 16]
        measured = self._stage(
            "speed", f"how fast this machine tunes: {_MEASURED_STEPS} steps", [[*command, *few, "--out", at / "speed"]]
        )
        rate = max(1e-3, float(measured["examples_per_second"] or 1e-3))
        plan = TuningPlan.of(available, users, rate, asked.minutes)
        steps = plan.steps(batch)
        warmup = min(int(tuning.get("warmup_steps", 20)), max(1, steps // 10))
        sizes = ["--epochs", plan.epochs, "--warmup-steps", warmup, "--valid-rows", _VALID_ROWS]
        sizes += ["--save-every", max(10, min(200, steps // 20))]
        if plan.users:
            sizes += ["--train-users", plan.users]
        if not (run / "run.json").exists():
            shutil.rmtree(run, ignore_errors=True)
        go_on = going_on(run)
        of = "a small Llama from scratch" if asked.model is None else f"an adapter for {asked.model}"
        record = self._stage("tune", f"{of}: {plan.told()}", [[*command, *sizes, *go_on, "--out", run]])
        losses = [entry["eval_loss"] for entry in record["history"] if "eval_loss" in entry]
        self._say(f"  validation loss by epoch: {', '.join(f'{loss:.3f}' for loss in losses)}")
        if (run / "model").is_dir():
            return run / "model"
        if "merge" not in self._folder.done:
            shutil.rmtree(at / "model", ignore_errors=True)
        self._stage(
            "merge", "the adapter goes into its model", [["tune", "merge", "--run", run, "--out", at / "model"]]
        )
        return at / "model"

    def _choose(self, artifact: Path, model: Path) -> int:
        """The number of beams that the validation rows choose; gamma is written to ``chosen/gamma.json``."""
        at = self._at
        command = ["evaluate", "--artifact", artifact, "--model", model, "--device", self._asked.device, "--rows",
                   at / "data" / "valid.csv", *_SETTINGS, "--gammas", _GAMMAS, "--beams", _BEAMS,
                   "--on-unknown-item", "miss"]  # fmt: skip
        words = self._decoding("choose", "valid", command)
        chosen = self._stage(
            "choose",
            f"gamma (how much of the item scorer) and beams, by validation rows: {words.told}",
            [[*command, "--limit", words.rows, "--out", at / "chosen"]],
        )
        gamma = chosen.get("gamma")
        if gamma is None:
            raise DataError(
                f"{at / 'data' / 'valid.csv'}: no row has a history and an item of the catalogue to choose by"
            )
        beams = int(re.search(r"beams=(\d+)", gamma["setting"])[1])  # type: ignore[index]  # every name has them
        served = gamma["served"]
        if isinstance(served, list):  # a gamma for each bucket of histories
            ndcg = sum(each["rows"] * each["ndcg"] for each in gamma["buckets"]) / gamma["rows"]
        else:
            ndcg = gamma["ndcg"][gamma["gammas"].index(gamma["one"])]
        self._say(f"  gamma {served}, {beams} beams: NDCG@{gamma['k']} {ndcg:.4f} on the rows that chose")
        if served == 1:
            self._say(
                "  gamma 1 is the item scorer alone: as far as it is tuned, the model adds nothing (more --minutes)"
            )
        return beams

    def _shop(self, tokenizer: Path, scorer: str, beams: int) -> None:
        chosen = ["--gamma-from", self._at / "chosen" / "gamma.json", "--alpha", 0, "--beams", beams]
        self._stage(
            "shop",
            "the catalogue to serve, with what was chosen",
            [self._build(tokenizer, self._at / "shop", *_scorer(scorer), *chosen)],
        )

    def _judge(self, model: Path) -> None:
        """Test rows, by the served setting and by every baseline."""
        at = self._at
        command = ["evaluate", "--artifact", at / "shop", "--model", model, "--device", self._asked.device, "--rows",
                   at / "data" / "test.csv", *_SETTINGS, "--on-unknown-item", "miss"]  # fmt: skip
        chosen = ["--gamma-from", at / "chosen" / "gamma.json"]
        words = self._decoding("judge", "test", [*command, *chosen])
        baselines = self._trainable(self._asked.baselines)
        names = ",".join(["scorer", *baselines])
        self._stage(
            "judge",
            f"test rows, newer than all others, which nothing has seen: {words.told}; then {names}",
            [[*command, *chosen, "--limit", words.rows, "--baselines", names, "--train",
              at / "data" / "train_interactions.csv", "--draw", "targets", "--reference", baselines[0],
              "--out", at / "judged"]],
        )  # fmt: skip

    def _trainable(self, baselines: Sequence[str]) -> Sequence[str]:
        """The baselines that can be trained on the events; most popular, if there is no other."""
        if "sasrec" not in baselines or have_two_sequences(self._at / "data" / "train_interactions.csv"):
            return baselines
        self._say("sasrec is left out: fewer than two people chose two items or more")
        return [name for name in baselines if name != "sasrec"] or ["popular"]

    def _serve(self, arguments: Sequence[str]) -> None:
        """One answer over HTTP."""
        history = first_history(self._at / "data" / "test.csv")
        started = time.perf_counter()
        if "serve" not in self._folder.done:
            self._say(f"\nserve: does it answer over HTTP?\n  $ {shown_command(['serve', *arguments])}")
            answer = ask_server([*arguments, "--device", self._asked.device], history, self._at / "serve.log")
            result = {name: getattr(answer, name) for name in ("history", "titles", "source", "milliseconds")}
            self._folder.keep("serve", result, time.perf_counter() - started)
        answered = self._result("serve")
        self._say(f"  after {listed(answered['history'])}")
        self._say(f"  comes {listed(answered['titles'])} ({answered['milliseconds']:.0f} ms, {answered['source']})")

    @property
    def report(self) -> Path:
        """Where the report goes."""
        return self._at / REPORT_FILE

    def _decoding(self, stage: str, part: str, command: Sequence[object]) -> _Rows:
        """How many rows of a part to decode, from the time that a few of them take."""
        name = f"speed-{stage}"
        available = int(self._result("data")["rows"][part])
        if available <= LEAST_ROWS:  # that many are decoded however long it takes
            return _Rows(rows=max(1, available), told=f"all {available:,} rows")
        measured = self._stage(
            f"speed of {stage}",
            f"how fast this machine searches: {min(available, _MEASURED_ROWS)} rows",
            [[*command, "--limit", _MEASURED_ROWS, "--out", self._at / name]],
        )
        seconds = max(1e-4, float(measured["cost"]["seconds_per_row"]) / _AT_ONCE)
        rows = rows_within(stage, available, seconds, self._asked.minutes)
        return _Rows(rows=rows, told=told_rows(rows, available, seconds))

    def _stage(self, name: str, words: str, commands: Sequence[Sequence[object]]) -> Mapping[str, Any]:
        """Run the commands of a stage unless they are done; what the last one printed."""
        if name in self._folder.done:
            self._say(f"\n{name}: done before, in {shown_time(self._folder.done[name]['seconds'])}")
            return self._result(name)
        self._say(f"\n{name}: {words}")
        started, result = time.perf_counter(), dict[str, Any]()
        for arguments in commands:
            argv = [str(each) for each in arguments]
            self._say(f"  $ {shown_command(argv)}")
            result = dict(self._command(argv))
        seconds = time.perf_counter() - started
        self._folder.keep(name, result, seconds)
        self._say(f"  {shown_time(seconds)}")
        return result

    def _result(self, stage: str) -> Mapping[str, Any]:
        result: Mapping[str, Any] = self._folder.done[stage]["result"]
        return result

    def _table(self, facts: Mapping[str, Any], names: Sequence[str] = ()) -> None:
        for name in names or [each for each in facts if each not in {"out", "multi", "split", "notes"}]:
            self._say(f"  {name.replace('_', ' '):<26}{shown_fact(facts[name])}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """How many rows, and that in words."""

    rows: int
    told: str


def _metric(results: Mapping[str, Any], name: str) -> float:
    """NDCG@10 by title of a method of results.json."""
    (method,) = (each for each in results["methods"] if each["name"] == name)
    return float(method["titles"]["NDCG@10"]["value"])


def tuning_flags(own: Mapping[str, Any]) -> list[str]:
    """How a start tunes whatever the demo's recipe does, unless a recipe of one's own says otherwise.

    Over children, as mixtures are scored and few rows teach more (docs/research/accuracy.md), and judged by validation
    rows of trained items (docs/research/sets.md).
    """
    ours = {"normalise": "children", "valid_targets": "trained"}
    return [part for name, value in ours.items() if name not in own for part in (_flag(name), value)]


def has_many_events(rows: int) -> bool:
    """Whether rows of so many events cannot each hold a whole history."""
    return rows > _MANY_EVENTS


def _scorer(kinds: str) -> list[str]:
    """Flags of `igd build`, of one kind or the mean of several, as ``transitions+ease``."""
    first, *others = kinds.split("+")
    return ["--scorer", first, *(["--scorer-also", ",".join(others)] if others else [])]


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
