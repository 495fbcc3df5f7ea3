"""Pods run without privileges, and each component can reach only what it needs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.conftest import Rendered
from tests.deploy.helm import Manifest
from tests.deploy.value_sets import VALUE_SETS

COMPOSE = yaml.safe_load((Path(__file__).parents[2] / "docker-compose.yml").read_text("utf-8"))
DNS_PORTS = {(53, "UDP"), (53, "TCP")}


def pods(manifests: list[Manifest]) -> Iterator[tuple[str, dict[str, str], dict[str, Any]]]:
    """Yield the name, the labels and the specification of each pod."""
    for each in manifests:
        template = each if each["kind"] == "Pod" else each.get("spec", {}).get("template")
        if template:
            yield each["metadata"]["name"], template["metadata"]["labels"], template["spec"]


def component(labels: dict[str, str]) -> str:
    return labels["app.kubernetes.io/component"]


def policies(manifests: list[Manifest], labels: dict[str, str]) -> list[dict[str, Any]]:
    """Return the network policies that select a pod with these labels."""
    specs = [each["spec"] for each in manifests if each["kind"] == "NetworkPolicy"]
    return [each for each in specs if each["podSelector"]["matchLabels"].items() <= labels.items()]


def destinations(policy: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the egress rules of a policy, except for the one for DNS."""
    ports = [{(port["port"], port["protocol"]) for port in rule["ports"]} for rule in policy["egress"]]
    return [rule for rule, each in zip(policy["egress"], ports, strict=True) if each != DNS_PORTS]


@pytest.mark.parametrize("name", VALUE_SETS)
def test_every_pod_runs_without_privileges(rendered: Rendered, name: str) -> None:
    found = list(pods(rendered(name)))
    assert {component(labels) for _, labels, _ in found} >= {"server", "worker", "test"}
    for pod_name, _, pod in found:
        assert pod["automountServiceAccountToken"] is False, pod_name
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"], pod_name


@pytest.mark.parametrize("name", VALUE_SETS)
def test_each_pod_receives_only_the_secrets_of_its_role(rendered: Rendered, name: str) -> None:
    allowed = {
        "server": {"server_redis_url", "server_queue_urls", "server_image_store", "api_keys"},
        "worker": {"worker_redis_url", "worker_queue_urls", "worker_image_store"},
        "valkey": {"users.acl", "admin_password"},
        "test": {"api_keys"},
    }
    for pod_name, labels, pod in pods(rendered(name)):
        sources = [volume["secret"] for volume in pod.get("volumes", []) if "secret" in volume]
        for volume in pod.get("volumes", []):
            sources += [each["secret"] for each in volume.get("projected", {}).get("sources", [])]
        certificates = [each for each in sources if each.get("name") == "redis-certificates"]
        keys = {item["key"] for each in sources if each not in certificates for item in each["items"]}
        assert keys <= allowed[component(labels)], pod_name
        references = [
            variable["valueFrom"]["secretKeyRef"]["name"]
            for container in pod["containers"]
            for variable in container.get("env", [])
            if "valueFrom" in variable
        ]
        assert set(references) <= {"hub-token"}, pod_name


@pytest.mark.parametrize("name", [name for name in VALUE_SETS if name != "external without policies"])
def test_every_pod_of_a_component_has_exactly_one_network_policy(rendered: Rendered, name: str) -> None:
    manifests = rendered(name)
    for pod_name, labels, _ in pods(manifests):
        expected = 0 if component(labels) == "test" else 1
        selected = policies(manifests, labels)
        assert len(selected) == expected, pod_name
        for policy in selected:
            assert policy["policyTypes"] == ["Ingress", "Egress"], "a missing type allows all traffic"


def test_a_worker_reaches_only_the_queue_and_only_if_configured_the_hub(rendered: Rendered) -> None:
    manifests = rendered("hub")
    for pod_name, labels, _ in pods(manifests):
        if component(labels) != "worker":
            continue
        [policy] = policies(manifests, labels)
        assert policy["ingress"] == []
        queue, *others = destinations(policy)
        [peer] = queue["to"]
        assert peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "valkey"
        assert queue["ports"] == [{"port": 6379, "protocol": "TCP"}]
        assert len(others) == (pod_name == "demo-llava-serve-worker-llava"), pod_name
        for hub in others:
            assert hub["ports"] == [{"port": 443, "protocol": "TCP"}]
            excluded = [network for peer in hub["to"] for network in peer["ipBlock"]["except"]]
            assert {"10.0.0.0/8", "169.254.0.0/16", "fc00::/7"} <= set(excluded)


def test_a_worker_reaches_a_collector_only_if_configured(rendered: Rendered) -> None:
    found = {}
    for name in ("default", "tracing"):
        manifests = rendered(name)
        [labels] = [labels for _, labels, _ in pods(manifests) if component(labels) == "worker"]
        [policy] = policies(manifests, labels)
        _queue, *found[name] = destinations(policy)
    assert found["default"] == []
    [rule] = found["tracing"]
    assert rule["ports"] == [{"port": 4318, "protocol": "TCP"}]


def test_the_server_reaches_the_internet_only_to_fetch_images(rendered: Rendered) -> None:
    for name, expected in (("default", 1), ("fixed sizes", 2)):
        manifests = rendered(name)
        [labels] = [labels for _, labels, _ in pods(manifests) if component(labels) == "server"]
        [policy] = policies(manifests, labels)
        assert len(destinations(policy)) == expected


def test_the_queue_is_reachable_only_from_servers_and_workers(rendered: Rendered) -> None:
    manifests = rendered("default")
    [labels] = [labels for _, labels, _ in pods(manifests) if component(labels) == "valkey"]
    [policy] = policies(manifests, labels)
    assert policy["egress"] == []
    [rule] = policy["ingress"]
    peers = [peer["podSelector"]["matchLabels"] for peer in rule["from"]]
    assert [peer["app.kubernetes.io/component"] for peer in peers] == ["server", "worker"]
    assert all(peer["app.kubernetes.io/instance"] == "demo" for peer in peers), "not of another release"


def test_the_admin_port_is_reachable_only_from_operators(rendered: Rendered) -> None:
    for name in ("default", "ingress"):
        manifests = rendered(name)
        [labels] = [labels for _, labels, _ in pods(manifests) if component(labels) == "server"]
        [policy] = policies(manifests, labels)
        rules = {rule["ports"][0]["port"]: rule for rule in policy["ingress"]}
        assert set(rules) == {"http", "admin"}
        assert all(len(rule["ports"]) == 1 for rule in rules.values())
        assert all("namespaceSelector" in peer for peer in rules["admin"]["from"])
        clients = rules["http"].get("from")
        assert (clients is None) == (name == "default")


def test_an_external_redis_is_the_only_destination_of_a_worker(rendered: Rendered) -> None:
    manifests = rendered("external cluster")
    [labels] = [labels for _, labels, _ in pods(manifests) if component(labels) == "worker"]
    [policy] = policies(manifests, labels)
    [rule] = destinations(policy)
    assert rule == {
        "to": [{"ipBlock": {"cidr": "10.1.2.0/24"}}],
        "ports": [{"port": 6380, "protocol": "TCP"}],
    }


def test_pods_reach_the_servers_of_the_shards_and_valkey(rendered: Rendered) -> None:
    manifests = rendered("shards on several servers")
    for name in ("server", "worker"):
        [labels] = [labels for _, labels, _ in pods(manifests) if component(labels) == name]
        [policy] = policies(manifests, labels)
        valkey, queue = (rule["to"][0]["podSelector"]["matchLabels"] for rule in destinations(policy))
        assert valkey["app.kubernetes.io/component"] == "valkey"
        assert queue == {"app": "queue"}


def test_the_chart_and_compose_use_the_same_valkey(rendered: Rendered) -> None:
    [valkey] = [pod for _, labels, pod in pods(rendered("default")) if component(labels) == "valkey"]
    [container], service = valkey["containers"], COMPOSE["services"]["redis"]
    assert container["image"] == service["image"]
    security = valkey["securityContext"]
    assert f"{security['runAsUser']}:{security['runAsGroup']}" == service["user"]
    variables = {"/run/secrets/": "/run/secrets/redis/", "${LLAVA_REDIS_MAXMEMORY:-1gb}": "1gb"}
    expected = service["command"]
    for old, new in variables.items():
        expected = [word.replace(old, new) for word in expected]
    assert container["command"] == expected


def test_the_default_images_are_those_that_compose_builds(rendered: Rendered) -> None:
    images = {
        component(labels): container["image"]
        for _, labels, pod in pods(rendered("default"))
        for container in pod["containers"]
    }
    for name in ("server", "worker"):
        assert images[name] == COMPOSE["services"][name]["image"]
