"""The chart renders valid objects for every set of values, and rejects invalid values."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest

from tests.deploy.conftest import Rendered
from tests.deploy.helm import CHART, Helm, HelmError, named
from tests.deploy.object_schemas import problems
from tests.deploy.value_sets import EXTERNAL, SCALED, VALUE_SETS

KINDS = {
    "ConfigMap",
    "Deployment",
    "HTTPRoute",
    "HorizontalPodAutoscaler",
    "Ingress",
    "NetworkPolicy",
    "Pod",
    "PodDisruptionBudget",
    "ScaledObject",
    "Secret",
    "Service",
    "ServiceMonitor",
    "StatefulSet",
}


@pytest.mark.parametrize("name", VALUE_SETS)
def test_every_object_conforms_to_its_schema(rendered: Rendered, name: str) -> None:
    manifests = rendered(name)
    for manifest in manifests:
        assert problems(manifest) == [], (manifest["kind"], manifest["metadata"]["name"])
    names = Counter((each["kind"], each["metadata"]["name"]) for each in manifests)
    assert set(names.values()) == {1}, "two objects have the same name"


def test_the_sets_of_values_use_every_kind_of_object(rendered: Rendered) -> None:
    assert {each["kind"] for name in VALUE_SETS for each in rendered(name)} == KINDS


def test_the_chart_has_no_lint_findings(helm: Helm) -> None:
    helm.lint({})


@pytest.mark.parametrize(
    ("kind", "name", "path", "value"),
    [
        ("Deployment", "demo-llava-serve-server", ("spec", "template", "spec", "hostnetwork"), True),
        ("Deployment", "demo-llava-serve-server", ("spec", "replicas"), "three"),
        ("ScaledObject", "demo-llava-serve-worker-small", ("spec", "minReplicas"), 0),
        ("ScaledObject", "demo-llava-serve-worker-small", ("spec", "cooldownPeriod"), "300s"),
        ("Service", "demo-llava-serve-server", ("spec", "ports"), [{"port": None}]),
    ],
)
def test_an_invalid_object_is_detected(
    rendered: Rendered, kind: str, name: str, path: tuple[str, ...], value: Any
) -> None:
    manifest = copy.deepcopy(named(rendered("scale to zero"), kind, name))
    assert problems(manifest) == []
    parent = manifest
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    assert problems(manifest) != []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"server": {"replica": 2}}, "'replica' not allowed"),
        ({"models": {"llava-1.5": {}}}, "llava-1.5"),
        ({"models": {"llava": {"gpu": 1}}}, "'gpu' not allowed"),
        ({"worker": {"gpus": "all"}}, "got string, want integer"),
        ({"valkey": {"enabled": False}}, "Set redis.existingSecret, or redis.serverUrl"),
        ({**EXTERNAL, "redis": {**EXTERNAL["redis"], "peers": []}}, "Set redis.peers"),
        ({"redis": {"queueUrls": {"enabled": True}}}, "Set redis.existingSecret, or redis.queueUrls.server"),
        (
            {"imageStore": {"redis": {"enabled": True}}},
            "Set redis.existingSecret, or imageStore.redis.server",
        ),
        ({"ingress": {"enabled": True}}, "Set ingress.host"),
        ({"gateway": {"enabled": True}}, "Set gateway.parentRefs"),
    ],
)
def test_invalid_values_are_rejected_with_a_message(helm: Helm, values: dict[str, Any], message: str) -> None:
    with pytest.raises(HelmError, match=message):
        helm.render(values)


@pytest.mark.parametrize("name", VALUE_SETS)
def test_every_volume_has_one_type_and_every_strategy_one_form(rendered: Rendered, name: str) -> None:
    for manifest in (each for each in rendered(name) if each["kind"] in ("Deployment", "StatefulSet")):
        spec = manifest["spec"]
        for volume in spec["template"]["spec"].get("volumes", []):
            assert len(volume) == 2, volume  # the name and the type
        strategy = spec.get("strategy", {})
        assert strategy.get("type") != "Recreate" or set(strategy) == {"type"}


def test_volumes_and_strategies_of_a_model_replace_the_defaults(rendered: Rendered) -> None:
    manifests = rendered("replaced defaults")
    found = {}
    for key in "ab":
        spec = named(manifests, "Deployment", f"demo-llava-serve-worker-{key}")["spec"]
        volumes = {each["name"]: each for each in spec["template"]["spec"]["volumes"]}
        found[key] = (set(volumes["models"]), set(volumes["cache"]), set(spec["strategy"]))
    assert found["a"] == ({"name", "hostPath"}, {"name", "hostPath"}, {"type"})
    claim = {"name", "persistentVolumeClaim"}
    assert found["b"] == (claim, claim, {"rollingUpdate"})


def test_large_numbers_in_variables_are_not_written_as_floats(rendered: Rendered) -> None:
    values: dict[str, str | None] = {}
    for manifest in (each for each in rendered("replaced defaults") if each["kind"] == "Deployment"):
        [container] = manifest["spec"]["template"]["spec"]["containers"]
        values |= {each["name"]: each.get("value") for each in container["env"]}
    assert values["LLAVA_MAX_QUEUED_TOKENS"] == "20000000"
    assert values["LLAVA_KV_CACHE_MB"] == "1048576"
    assert values["LLAVA_HANG_TIMEOUT_S"] == "90.5"
    assert values["LLAVA_OTEL"] == "false"


def test_grace_periods_are_longer_than_drain_timeouts(rendered: Rendered) -> None:
    for name in VALUE_SETS:
        for manifest in (each for each in rendered(name) if each["kind"] == "Deployment"):
            pod = manifest["spec"]["template"]["spec"]
            [container] = pod["containers"]
            variables = {each["name"]: each.get("value") for each in container["env"]}
            hook = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
            drain_s = hook + int(variables["LLAVA_DRAIN_TIMEOUT_S"])
            assert pod["terminationGracePeriodSeconds"] >= drain_s + 10, (name, manifest["metadata"]["name"])


def test_a_worker_has_as_much_time_to_load_its_model_as_configured(rendered: Rendered) -> None:
    worker = named(rendered("gpu"), "Deployment", "demo-llava-serve-worker-llava-7b")["spec"]
    [container] = worker["template"]["spec"]["containers"]
    probe = container["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 1805
    assert worker["progressDeadlineSeconds"] > 1805
    assert "livenessProbe" not in container, "an outage of Redis would restart all workers"


def test_a_gpu_worker_requests_its_gpus_and_tolerates_their_taint(rendered: Rendered) -> None:
    worker = named(rendered("gpu"), "Deployment", "demo-llava-serve-worker-llava-34b")
    pod = worker["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["resources"]["limits"] == {"memory": "8Gi", "nvidia.com/gpu": 4}
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]
    variables = {each["name"]: each["value"] for each in container["env"]}
    assert (variables["LLAVA_DEVICE"], variables["LLAVA_TENSOR_PARALLEL"]) == ("cuda", "4")
    mounts = {each["mountPath"]: each for each in container["volumeMounts"]}
    assert mounts["/models"]["readOnly"] is True
    assert "/dev/shm" in mounts


def test_autoscalers_own_the_number_of_replicas(rendered: Rendered) -> None:
    for name in VALUE_SETS:
        scaled = {
            each["spec"]["scaleTargetRef"]["name"]
            for each in rendered(name)
            if each["kind"] in ("HorizontalPodAutoscaler", "ScaledObject")
        }
        deployments = [each for each in rendered(name) if each["kind"] == "Deployment"]
        assert scaled <= {each["metadata"]["name"] for each in deployments}
        for each in deployments:
            assert ("replicas" in each["spec"]) == (each["metadata"]["name"] not in scaled), name


def test_routes_do_not_buffer_or_end_streams(rendered: Rendered) -> None:
    ingress = named(rendered("ingress"), "Ingress", "demo-llava-serve")
    prefix = "nginx.ingress.kubernetes.io/"
    annotations = ingress["metadata"]["annotations"]
    assert annotations[f"{prefix}proxy-buffering"] == "off"
    assert int(annotations[f"{prefix}proxy-read-timeout"]) > 300 + 600
    assert annotations[f"{prefix}proxy-body-size"] == "64m", "own annotations take precedence"
    route = named(rendered("gateway"), "HTTPRoute", "demo-llava-serve")
    [rule] = route["spec"]["rules"]
    assert rule["timeouts"] == {"request": "1830s", "backendRequest": "1830s"}


def test_the_service_monitor_selects_the_admin_port_only(rendered: Rendered) -> None:
    manifests = rendered("monitoring")
    monitor = named(manifests, "ServiceMonitor", "demo-llava-serve")
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    services = [each for each in manifests if each["kind"] == "Service"]
    [service] = [each for each in services if wanted <= each["metadata"]["labels"].items()]
    assert [port["name"] for port in service["spec"]["ports"]] == ["admin"]
    assert monitor["spec"]["endpoints"][0]["port"] == "admin"
    alerts = (CHART.parents[1] / "prometheus" / "alerts.yaml").read_text("utf-8")
    job = service["metadata"]["labels"][monitor["spec"]["jobLabel"]]
    assert f'up{{job="{job}"}}' in alerts


def test_services_select_the_pods_of_one_component(rendered: Rendered) -> None:
    manifests = rendered("default")
    pods = {
        each["metadata"]["name"]: each["spec"]["template"]["metadata"]["labels"]
        for each in manifests
        if each["kind"] in ("Deployment", "StatefulSet")
    }
    for service in (each for each in manifests if each["kind"] == "Service"):
        selector = service["spec"]["selector"].items()
        assert len([labels for labels in pods.values() if selector <= labels.items()]) == 1


def test_the_notes_describe_the_first_steps_and_warn(helm: Helm) -> None:
    notes = helm.notes({})
    assert "exec deployment/demo-llava-serve-server -- llava-serve keys create" in notes
    assert "port-forward service/demo-llava-serve-server 8000:8000" in notes
    assert "WARNING" not in notes
    scaled = helm.notes({**SCALED, "networkPolicy": {"enabled": False}, "server": {"auth": False}})
    assert "llava-hf/llava-1.5-7b-hf has no worker until the first request" in scaled
    assert "Authentication is disabled" in scaled
    assert scaled.count("WARNING: server.queueTimeoutSeconds (300)") == 2
    assert scaled.count("WARNING: networkPolicy.enabled is false") == 1
