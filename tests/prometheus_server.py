"""A real Prometheus of a test, on a free port, with the deployed rules at `SPEED` times their speed."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from typing import TYPE_CHECKING, Any, Self

import httpx
import pytest
from redis_server import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

HOST = "127.0.0.1"
SPEED = 60
"""Minutes of the rules become seconds."""
_PATIENCE_S = 60
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_WINDOW = re.compile(r"(?<=\[)(\d+)([smhd])(?=\])|(?<=offset )(\d+)([smhd])\b|(?<=for: )(\d+)([smhd])\b")


def sped_up(rules: str) -> str:
    """Windows of rates, offsets and ``for``, each divided by `SPEED`; names and thresholds stay."""

    def shorter(match: re.Match[str]) -> str:
        number, unit = (group for group in match.groups() if group is not None)
        return f"{int(number) * _SECONDS[unit] * 1000 // SPEED}ms"

    return _WINDOW.sub(shorter, rules)


class PrometheusServer:
    """``with PrometheusServer(tmp_path, rules, {"igd": "127.0.0.1:9000"}) as prometheus: prometheus.ask("up")``."""

    def __init__(self, directory: Path, rules: Path, targets: Mapping[str, str]) -> None:
        self._directory = directory
        self._rules = rules
        self._targets = targets
        self._process: subprocess.Popen[bytes] | None = None
        self._client = httpx.Client(base_url=f"http://{HOST}:{free_port()}", timeout=10)

    def ask(self, query: str) -> list[dict[str, Any]]:
        """The samples of an instant query.

        Raises:
            ValueError: Prometheus cannot read the query.
        """
        answer = self._client.get("/api/v1/query", params={"query": query}).json()
        if answer["status"] != "success":
            raise ValueError(f"{query}: {answer['error']}")
        result = answer["data"]["result"]
        return result if answer["data"]["resultType"] == "vector" else [{"metric": {}, "value": result}]

    def firing(self) -> set[str]:
        """Names of the alerts that fire."""
        return {sample["metric"]["alertname"] for sample in self.ask('ALERTS{alertstate="firing"}')}

    def until(self, condition: Callable[[], bool], story: Callable[[], object]) -> None:
        """Look a few times a second whether something is so; give up after a minute, and tell the story."""
        deadline = time.monotonic() + _PATIENCE_S
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not in {_PATIENCE_S} s: {story()}")
            time.sleep(0.2)

    def __enter__(self) -> Self:
        binary = shutil.which("prometheus")
        if binary is None:
            pytest.skip("prometheus is not installed: apt-get install prometheus")
        rules = self._directory / "rules"
        rules.mkdir()
        for path in self._rules.glob("*.yml"):
            (rules / path.name).write_text(sped_up(path.read_text(encoding="utf-8")), encoding="utf-8")
        config = self._directory / "prometheus.yml"
        config.write_text(self._config(), encoding="utf-8")
        command = [
            binary,
            f"--config.file={config}",
            f"--storage.tsdb.path={self._directory / 'data'}",
            f"--web.listen-address={self._client.base_url.netloc.decode()}",
            "--log.level=warn",
        ]
        with (self._directory / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        self.until(self._is_ready, self._log)
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)

    def _is_ready(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(f"prometheus ended at once:\n{self._log()}")
        try:
            return self._client.get("/-/ready").is_success
        except httpx.TransportError:
            return False

    def _config(self) -> str:
        jobs = "".join(
            f"  - job_name: {job}\n    static_configs: [{{targets: ['{target}']}}]\n"
            for job, target in self._targets.items()
        )
        return (
            "global: {scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 500ms}\n"
            f"rule_files: [rules/*.yml]\nscrape_configs:\n{jobs}"
        )

    def _log(self) -> str:
        return (self._directory / "prometheus.log").read_text(encoding="utf-8", errors="replace")
