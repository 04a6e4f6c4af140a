"""Writes dashboards/igd.json, the dashboard that Grafana is given: ``python deploy/grafana/dashboard.py``.

What is asked stands in panels.py; here is what Grafana wants around it, the same for all panels.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from panels import ROWS, Panel

OUTPUT = Path(__file__).parent / "dashboards" / "igd.json"
_COLUMNS = 24
_HEIGHT = 7
_SOURCE = {"type": "prometheus", "uid": "prometheus"}


def dashboard() -> dict[str, Any]:
    """What Grafana reads."""
    panels: list[dict[str, Any]] = []
    top = 0
    for name, row in ROWS.items():
        panels.append(
            {"type": "row", "title": name, "collapsed": False, "panels": []}
            | _place(number=len(panels), left=0, top=top, width=_COLUMNS, height=1)
        )
        top += 1
        in_a_line = min(len(row), 4 if row[0].kind == "stat" else 3)
        for index, panel in enumerate(row):
            if index and index % in_a_line == 0:
                top += _HEIGHT
            width = _COLUMNS // in_a_line
            place = _place(number=len(panels), left=width * (index % in_a_line), top=top, width=width, height=_HEIGHT)
            panels.append(_panel(panel) | place)
        top += _HEIGHT
    return {
        "uid": "igd",
        "title": "IGD recommendations",
        "tags": ["igd"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "utc",
        "annotations": {"list": [_alerts_as_marks()]},
        "templating": {"list": [_job_choice()]},
        "panels": panels,
    }


def _place(*, number: int, left: int, top: int, width: int, height: int) -> dict[str, Any]:
    return {"id": number + 1, "gridPos": {"x": left, "y": top, "w": width, "h": height}}


def _panel(panel: Panel) -> dict[str, Any]:
    targets = [
        {
            "refId": chr(ord("A") + index),
            "datasource": _SOURCE,
            "expr": query.replace("$w", "$__rate_interval"),
            "legendFormat": legend or "__auto",
            "instant": panel.kind == "table",
            "format": "table" if panel.kind == "table" else "time_series",
        }
        for index, (legend, query) in enumerate(panel.queries.items())
    ]
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.note,
        "datasource": _SOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {}
        if panel.kind == "table"
        else {"reduceOptions": {"calcs": ["lastNotNull"]}}
        if panel.kind == "stat"
        else {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}},
    }


def _job_choice() -> dict[str, Any]:
    return {
        "name": "job",
        "label": "deployment",
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": "label_values(igd_build_info, job)", "refId": "job"},
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def _alerts_as_marks() -> dict[str, Any]:
    return {
        "name": "Alerts",
        "enable": True,
        "iconColor": "red",
        "datasource": _SOURCE,
        "expr": 'ALERTS{alertstate="firing", alertname=~"Igd.*"}',
        "titleFormat": "{{alertname}}",
    }


def text() -> str:
    """As the file holds it."""
    return json.dumps(dashboard(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    OUTPUT.write_text(text(), encoding="utf-8")
