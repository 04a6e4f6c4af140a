"""Which pod may reach which, by the NetworkPolicies of rendered manifests: Kubernetes' own rules, in as many words.

A pod that no policy of a direction selects may do everything in it; one that some select may do what any of them
allows. A connection needs its source's egress and its destination's ingress. See the API's description of
``networking.k8s.io/v1`` ``NetworkPolicy``.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Manifest: TypeAlias = "dict[str, Any]"
Direction: TypeAlias = Literal["Ingress", "Egress"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """One pod.

    Attributes:
        namespace: its namespace's name.
        labels: its own.
        ports: its containers' named ports.
        namespace_labels: those of its namespace, besides the name that Kubernetes gives every namespace as a label.
    """

    namespace: str
    labels: Mapping[str, str]
    ports: Mapping[str, int] = field(default_factory=dict)
    namespace_labels: Mapping[str, str] = field(default_factory=dict)


Peer: TypeAlias = Pod | ipaddress.IPv4Address | ipaddress.IPv6Address
"""A pod, or an address outside the cluster."""


def pods_of(manifests: Sequence[Manifest]) -> dict[str, Pod]:
    """What the workloads start, by the workload's kind and name."""
    labels_of = {
        one["metadata"]["name"]: one["metadata"].get("labels", {}) for one in manifests if one["kind"] == "Namespace"
    }
    found = {}
    for one in manifests:
        spec = one.get("spec", {})
        template = spec.get("jobTemplate", {}).get("spec", spec).get("template")
        if template is None:
            continue
        namespace = one["metadata"]["namespace"]
        found[f"{one['kind']}/{one['metadata']['name']}"] = Pod(
            namespace=namespace,
            labels=template["metadata"]["labels"],
            ports={
                port["name"]: port["containerPort"]
                for container in template["spec"]["containers"]
                for port in container.get("ports", ())
            },
            namespace_labels=labels_of.get(namespace, {}),
        )
    return found


@dataclass(frozen=True, slots=True)
class Policies:
    """All NetworkPolicies of a cluster."""

    manifests: Sequence[Manifest]

    def allow(self, source: Peer, destination: Peer, port: int, protocol: str = "TCP") -> bool:
        """Whether a connection may be made."""
        return self._passes("Egress", source, destination, destination, port, protocol) and self._passes(
            "Ingress", destination, source, destination, port, protocol
        )

    def _passes(
        self, direction: Direction, subject: Peer, peer: Peer, destination: Peer, port: int, protocol: str
    ) -> bool:
        if not isinstance(subject, Pod):  # nothing outside the cluster is under its policies
            return True
        selecting = list(self._selecting(direction, subject))
        return not selecting or any(
            _admits(rule, direction, namespace, peer) and _has_port(rule, destination, port, protocol)
            for namespace, rules in selecting
            for rule in rules
        )

    def _selecting(self, direction: Direction, pod: Pod) -> Iterator[tuple[str, list[Manifest]]]:
        """Namespace and rules of each policy that decides for ``pod``."""
        for one in self.manifests:
            if one["kind"] != "NetworkPolicy" or one["metadata"]["namespace"] != pod.namespace:
                continue
            spec = one["spec"]
            kinds = spec.get("policyTypes") or ["Ingress", *(["Egress"] if "egress" in spec else [])]
            if direction in kinds and _selects(spec["podSelector"], pod.labels):
                yield pod.namespace, spec.get(direction.lower()) or []


def _admits(rule: Manifest, direction: Direction, namespace: str, peer: Peer) -> bool:
    peers = rule.get("from" if direction == "Ingress" else "to")
    return not peers or any(_is(each, namespace, peer) for each in peers)


def _is(described: Manifest, namespace: str, peer: Peer) -> bool:
    block = described.get("ipBlock")
    if block is not None:
        return not isinstance(peer, Pod) and (
            peer in ipaddress.ip_network(block["cidr"])
            and not any(peer in ipaddress.ip_network(cidr) for cidr in block.get("except", ()))
        )
    if not isinstance(peer, Pod):
        return False
    if "namespaceSelector" in described:
        known = {"kubernetes.io/metadata.name": peer.namespace, **peer.namespace_labels}
        if not _selects(described["namespaceSelector"], known):
            return False
    elif peer.namespace != namespace:
        return False
    return "podSelector" not in described or _selects(described["podSelector"], peer.labels)


def _has_port(rule: Manifest, destination: Peer, port: int, protocol: str) -> bool:
    ports = rule.get("ports")
    if not ports:
        return True
    for each in ports:
        wanted = each.get("port")
        if isinstance(wanted, str):  # a name means what the destination's containers call so
            wanted = destination.ports.get(wanted, -1) if isinstance(destination, Pod) else -1
        if each.get("protocol", "TCP") == protocol and (
            wanted is None or wanted <= port <= each.get("endPort", wanted)
        ):
            return True
    return False


def _selects(selector: Manifest, labels: Mapping[str, str]) -> bool:
    """An empty selector selects everything."""
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    return all(_expression(each, labels) for each in selector.get("matchExpressions") or ())


def _expression(each: Manifest, labels: Mapping[str, str]) -> bool:
    value = labels.get(each["key"])
    match each["operator"]:
        case "In":
            return value in each["values"]
        case "NotIn":
            return value not in each["values"]
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case operator:
            raise ValueError(f"no operator {operator!r}")
