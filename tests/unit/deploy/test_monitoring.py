"""Rules and dashboard as files; tests/integration/test_deploy_prometheus.py asks a real Prometheus their queries."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[3]
RULES = ROOT / "deploy" / "prometheus" / "rules"
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "igd.json"
METRIC = re.compile(r"\bigd_\w+")


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((RULES / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_the_dashboard_is_what_its_script_writes() -> None:
    """In a process of its own: the script's modules are no package."""
    program = "import dashboard, sys; sys.stdout.buffer.write(dashboard.text().encode())"
    written = subprocess.run(
        [sys.executable, "-B", "-c", program], cwd=ROOT / "deploy" / "grafana", capture_output=True, check=True
    )
    assert written.stdout == DASHBOARD.read_bytes()


def test_panels_do_not_overlap() -> None:
    import json

    cells: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        place = panel["gridPos"]
        covered = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not covered & cells, panel["title"]
        assert max(x for x, _ in covered) < 24
        cells |= covered


def test_every_alert_says_how_urgent_it_is_and_has_its_entry_in_the_runbook_and_no_entry_lacks_one() -> None:
    entries = re.findall(
        r"^## (Igd\w+)$", (ROOT / "docs" / "how-to" / "alerts.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert [rule["alert"] for rule in alerts()] == entries
    for rule in alerts():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["runbook"] == f"docs/how-to/alerts.md#{rule['alert'].lower()}"


def test_every_alert_fires_in_a_unit_test_of_the_rules() -> None:
    files = RULES.parent.glob("rules*_test.yml")
    cases = [case for path in files for case in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]]
    fires = {case["alertname"] for one in cases for case in one.get("alert_rule_test", ()) if case["exp_alerts"]}
    assert fires == {rule["alert"] for rule in alerts()}


def test_rules_and_dashboard_ask_for_documented_metrics_only() -> None:
    documented = set(METRIC.findall((ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")))
    asked = set(METRIC.findall(DASHBOARD.read_text(encoding="utf-8")))
    for path in RULES.iterdir():
        asked |= set(METRIC.findall(path.read_text(encoding="utf-8")))
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked} <= documented


def test_recorded_series_that_are_asked_for_are_recorded() -> None:
    recorded = set(re.findall(r"- record: (\S+)", (RULES / "recording.yml").read_text(encoding="utf-8")))
    texts = (DASHBOARD.read_text(encoding="utf-8"), (RULES / "alerts.yml").read_text(encoding="utf-8"))
    asked = {name for text in texts for name in re.findall(r"\bigd:\w+:\w+", text)}
    assert asked <= recorded
