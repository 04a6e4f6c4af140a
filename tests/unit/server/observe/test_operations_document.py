"""docs/reference names everything that an operator can set or see, and nothing that is not there.

The tables come from docs/generate.py, which reads declarations; what is held against them here is what a server has.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from pathlib import Path
from typing import TYPE_CHECKING

import igd_server
from film_apps import ask, running
from igd_server.api.problems import ProblemKind
from igd_server.replicas.operations import ReplicaMetrics
from igd_server.settings import PREFIX, Settings
from prometheus_client import generate_latest

if TYPE_CHECKING:
    from igd_core.artifact import Artifact
    from igd_core.catalogue.tokenization import TitleTokenizer

ROOT = Path(__file__).parents[4]
REFERENCE = ROOT / "docs" / "reference"


def rows(page: str) -> list[list[str]]:
    """Cells of the table of a page, without its head."""
    table = [line for line in (REFERENCE / page).read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert len(table) > 2
    return [[cell.strip() for cell in re.split(r" \|(?= )", line.strip("|"))] for line in table[2:]]


def test_every_setting_is_documented_with_its_default_and_no_other() -> None:
    documented = {row[0].strip("`"): row[1].strip("`") for row in rows("settings.md")}
    assert set(documented) == {PREFIX + name.upper() for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        shown = documented[PREFIX + name.upper()]
        if field.is_required():
            assert shown == "required"
        elif field.default is None or field.default == ():
            assert shown == "", name
        elif shown.endswith("MiB"):
            assert int(shown.split()[0]) << 20 == field.default, name
        else:
            assert shown == (
                str(field.default).lower()
                if isinstance(field.default, bool)
                else f"{field.default:g}"
                if isinstance(field.default, float)
                else str(field.default)
            ), name


async def test_every_metric_is_documented_with_its_kind_unit_and_labels_and_no_other(
    films: Artifact, tokenizer: TitleTokenizer, tmp_path: Path
) -> None:
    async with running(films, tokenizer, tmp_path) as apps:
        text = (await ask(apps, "/metrics")).text
        labels = {metric: set(names) for metric, names in _labels(apps.metrics._registry)}
    of_several = ReplicaMetrics([1]).registry
    text += generate_latest(of_several).decode()
    labels |= {metric: set(names) for metric, names in _labels(of_several)}
    kinds = dict(re.findall(r"^# TYPE (igd_\S+(?<!_created)) (\S+)$", text, re.MULTILINE))
    documented = {row[0].strip("`"): row for row in rows("metrics.md")}
    assert set(documented) == set(kinds)
    for name, kind in kinds.items():
        assert documented[name][1].split(",")[0] == kind, name
        assert set(re.findall(r"`(\w+)`", documented[name][2])) == labels[name.removesuffix("_total")], name


def _labels(registry: object) -> list[tuple[str, tuple[str, ...]]]:
    """Of metrics kept up to date, as they were declared; of those asked for, as their samples have them."""
    found = []
    for collector in registry._collector_to_names:  # type: ignore[attr-defined]
        if hasattr(collector, "_labelnames"):
            found.append((collector._name, collector._labelnames))
        else:
            found += [(family.name, tuple(family.samples[0].labels)) for family in collector.collect()]
    return found


def test_every_log_event_is_documented_and_no_other() -> None:
    logged = {"log"}
    for path in (ROOT / "server").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                of_log = isinstance(node.func.value, ast.Name) and node.func.value.id == "_log"
                event = next((at.value for at in node.args if isinstance(at, ast.Constant)), None)
                if of_log and isinstance(event, str):
                    logged.add(event)
    assert {row[0].strip("`") for row in rows("log-events.md")} == logged


def test_every_problem_is_documented_and_no_other() -> None:
    kinds: dict[str, int] = {}
    for module in pkgutil.walk_packages(igd_server.__path__, "igd_server."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, ProblemKind):
                kinds[value.name] = value.status
    assert {row[1].strip("`"): int(row[0]) for row in rows("problems.md")} == kinds
