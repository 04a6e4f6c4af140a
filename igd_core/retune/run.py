"""One round of retuning, each stage a command of `igd`; what a round has done already is not done again.

served    (the store)             the version that is served now, and its model
export    igd export              what people chose
data      igd data prepare store  rows, split by time: the newest to judge by, those before them to stop by
tune      igd tune                on from the served model
merge     igd tune merge          where an adapter was tuned on a published checkpoint
judge     igd evaluate, twice     the served model and the retuned one, on the newest rows
publish   igd publish             if the rule holds
"""

from __future__ import annotations

import asyncio
import json
import shlex
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igd_core.artifact import load_artifact
from igd_core.engines.embedded.adapters import CONFIG_FILE, read_adapter_config
from igd_core.engines.tuned_prompt import read_tuned_prompt
from igd_core.errors import InputError
from igd_core.evaluation.ranks import read_ranks
from igd_core.retune.verdict import judge
from igd_core.scorers.gamma_file import GAMMA_FILE, ChosenGamma
from igd_core.store.names import MODELS
from igd_core.tuning.record import going_on
from igd_core.whole_files import write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from igd_core.artifact import Artifact
    from igd_core.retune.folder import RetuneFolder
    from igd_core.retune.verdict import Rule, Verdict
    from igd_core.store.base import Store

_MAX_NAME_CHARS = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a round is told.

    Attributes:
        catalogue: whose model is retuned.
        model: the servers' own checkpoint, ``IGD_MODEL``.
        recipe: settings of the tuning, a file or a name; None for those of the served model and defaults.
        rank: of a new adapter, where the servers' own model is served.
        device: ``auto``, ``cpu``, ``cuda``.
        rule: when to publish.
        least_rows: on fewer held-out rows nothing is published.
        judged_rows: at most; more are drawn from.
    """

    catalogue: str
    model: str
    recipe: str | None
    rank: int
    device: str
    rule: Rule
    least_rows: int
    judged_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a round ended: ``version`` is what was published, or None; ``why`` is in words."""

    version: str | None
    why: str
    verdict: Verdict | None = None


class Retune:
    """The stages of one round, in its folder."""

    def __init__(
        self,
        asked: Asked,
        folder: RetuneFolder,
        *,
        store: Callable[[], Store],
        command: Callable[[Sequence[str]], Mapping[str, Any]],
        say: Callable[[str], None],
    ) -> None:
        """``store`` opens it; ``command`` runs ``igd`` with arguments and returns what its ``--json`` prints."""
        self._asked = asked
        self._folder = folder
        self._store = store
        self._command = command
        self._say = say
        self._at = folder.at

    def run(self) -> Outcome:
        """Go through the stages, publish or keep, and end the round."""
        self._at.mkdir(parents=True, exist_ok=True)
        served = self._served()
        export = self._export()
        facts = {name: export[name] for name in ("events", "impressions")}
        if facts == self._folder.last_export:
            outcome = Outcome(version=None, why="no event is new since the last round")
        else:
            outcome = self._retuned(served)
        told = asdict(outcome)
        self._folder.end({"export": facts, "served": dict(served), **json.loads(json.dumps(told))})
        return outcome

    def _retuned(self, served: Mapping[str, Any]) -> Outcome:
        at, asked = self._at, self._asked
        artifact = load_artifact(at / "served" / served["version"])
        self._data(artifact, at / "served" / served["version"])
        candidate = self._tune(served)
        verdict = self._judge(served, candidate, artifact)
        if not verdict.publish:
            return Outcome(version=None, why=verdict.why, verdict=verdict)
        now = asyncio.run(self._look())
        if now["model"] != served["model"]:
            why = f"{verdict.why}, but than a model that is not served any more: model {now['model'] or 'own'} is"
            return Outcome(version=None, why=why, verdict=verdict)
        base = ["--base", asked.model] if (candidate / CONFIG_FILE).is_file() else []
        name = f"{asked.catalogue[:_MAX_NAME_CHARS]}-round-{self._folder.number}"
        published = self._stage(
            "publish", [["publish", "--catalogue", asked.catalogue, "--model", candidate, *base, "--name", name]]
        )
        return Outcome(version=published["version"], why=verdict.why, verdict=verdict)

    def _served(self) -> Mapping[str, Any]:
        """The version that is served, and its model, on this disk."""
        if "served" not in self._folder.done:
            self._folder.keep("served", asyncio.run(self._fetch()))
        served = self._folder.done["served"]
        self._say(f"served now: version {served['version']}, model {served['model'] or 'own'}")
        return served

    async def _look(self) -> dict[str, Any]:
        store = self._store()
        try:
            versions = await store.versions(self._asked.catalogue)
        finally:
            await store.close()
        current = next((stored for stored in versions if stored.is_current), None)
        if current is None:
            raise InputError(f"catalogue: nothing is published under {self._asked.catalogue!r}")
        return {"version": current.version, "model": current.model}

    async def _fetch(self) -> dict[str, Any]:
        served = await self._look()
        store = self._store()
        try:
            await store.fetch(self._asked.catalogue, served["version"], self._at / "served")
            if served["model"] is not None:
                await store.fetch(MODELS, served["model"], self._at / "served")
        finally:
            await store.close()
        return served

    def _export(self) -> Mapping[str, Any]:
        out = self._at / "export"
        if "export" not in self._folder.done and (out / "manifest.json").exists():
            shutil.rmtree(out)  # finished, but perhaps long ago
        return self._stage("export", [["export", "--out", out]])

    def _data(self, artifact: Artifact, folder: Path) -> None:
        longest = artifact.manifest.template.max_history
        self._stage(
            "data",
            [["data", "prepare", "store", "--export", self._at / "export", "--items", folder / "items.parquet",
              "--held-out", self._asked.judged_rows, "--max-history", longest, "--on-unknown-item", "drop",
              "--out", self._at / "data", "--force"]],
        )  # fmt: skip

    def _tune(self, served: Mapping[str, Any]) -> Path:
        """The retuned model's folder."""
        at, asked, run = self._at, self._asked, self._at / "run"
        model, adapter = self._model_of(served)
        argv: list[object] = ["tune", *(["--recipe", asked.recipe] if asked.recipe else [])]
        argv += ["--artifact", at / "served" / served["version"], "--model", model]
        argv += ["--train", at / "data" / "train.csv", "--valid", at / "data" / "valid.csv"]
        argv += ["--on-unknown-item", "drop", "--device", asked.device]
        if adapter is not None:
            argv += ["--adapter", adapter, *_shape_of(adapter)]
        elif served["model"] is None and asked.rank:
            argv += ["--lora-rank", asked.rank]
        tuned = read_tuned_prompt(adapter or Path(model)) if Path(adapter or model).is_dir() else None
        if tuned is not None and not asked.recipe:
            argv += ["--normalise", tuned.scored.normalise, "--temperature", tuned.scored.temperature]
        go_on = going_on(run)
        if "tune" not in self._folder.done and not go_on:
            shutil.rmtree(run, ignore_errors=True)
        self._stage("tune", [[*argv, *go_on, "--out", run]])
        if not (run / "adapter").is_dir():
            return run / "model"
        if served["model"] is None or adapter is not None:
            return run / "adapter"
        if "merge" not in self._folder.done:
            shutil.rmtree(at / "merged", ignore_errors=True)
        self._stage("merge", [["tune", "merge", "--run", run, "--out", at / "merged"]])
        return at / "merged"

    def _model_of(self, served: Mapping[str, Any]) -> tuple[str, Path | None]:
        """The checkpoint that is served, and the adapter on it, if one is."""
        if served["model"] is None:
            return self._asked.model, None
        folder = self._at / "served" / served["model"]
        return (self._asked.model, folder) if (folder / CONFIG_FILE).is_file() else (str(folder), None)

    def _judge(self, served: Mapping[str, Any], candidate: Path, artifact: Artifact) -> Verdict:
        """Both models on the newest rows, as the catalogue is served."""
        at, manifest = self._at, artifact.manifest
        as_served: list[object] = ["--alphas", manifest.alpha, "--length-penalties", 0, "--seen", "excluded"]
        if manifest.scorer is not None:
            scorer = manifest.scorer
            chosen = ChosenGamma(gamma=scorer.gamma, mixture=scorer.mixture, scorer=scorer.name)
            write_json(at / GAMMA_FILE, chosen.to_json())
            as_served += ["--gamma-from", at / GAMMA_FILE]
        is_adapter = (candidate / CONFIG_FILE).is_file()
        models = {
            "served": self._model_of(served),
            "retuned": (self._asked.model, candidate) if is_adapter else (str(candidate), None),
        }
        for name, (model, adapter) in models.items():
            self._stage(
                f"judge {name}",
                [["evaluate", "--artifact", at / "served" / served["version"], "--model", model,
                  *([] if adapter is None else ["--adapter", adapter]), "--rows", at / "data" / "test.csv",
                  "--limit", self._asked.judged_rows, *as_served, "--on-unknown-item", "miss",
                  "--device", self._asked.device, "--draw", "targets", "--out", at / f"judged-{name}"]],
            )  # fmt: skip
        ranks = {name: read_ranks(at / f"judged-{name}") for name in models}
        return judge(ranks["served"], ranks["retuned"], rule=self._asked.rule, least_rows=self._asked.least_rows)

    def _stage(self, name: str, commands: Sequence[Sequence[object]]) -> Mapping[str, Any]:
        """Run the commands of a stage unless they are done; what the last one printed."""
        if name in self._folder.done:
            self._say(f"{name}: done before")
            return self._folder.done[name]
        result: Mapping[str, Any] = {}
        for arguments in commands:
            argv = [str(each) for each in arguments]
            self._say(f"$ {shlex.join(['igd', *argv])}")
            result = self._command(argv)
        self._folder.keep(name, _short(name, result))
        return self._folder.done[name]


def _short(stage: str, result: Mapping[str, Any]) -> Mapping[str, Any]:
    """What later stages and people need of a result; a run's record and an evaluation's results have files."""
    if stage == "export":
        return {name: result[name] for name in ("users", "events", "impressions")}
    return result if stage in ("data", "publish") else {}


def _shape_of(adapter: Path) -> list[object]:
    """The flags that say of what shape an adapter is, which one that goes on from it must have."""
    config = json.loads((adapter / CONFIG_FILE).read_text(encoding="utf-8"))
    known = read_adapter_config(adapter)
    flags: list[object] = ["--lora-rank", known.rank, "--lora-alpha", known.alpha]
    targets = config.get("target_modules")
    if isinstance(targets, list) and targets:
        flags += ["--lora-targets", ",".join(sorted(targets))]
    layers = config.get("layers_to_transform")
    if isinstance(layers, list) and layers:
        flags += ["--lora-layers", len(layers)]
    return flags
