"""The chart rejects values that have no effect or contradict each other, with the value and the remedy."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from llava_worker.settings import Settings as WorkerSettings

from tests.deploy.helm import CHART, Helm, HelmError

VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
RULES: list[dict[str, Any]] = yaml.safe_load((CHART / "files" / "conditions.yaml").read_text("utf-8"))
QUEUE_URLS = {"enabled": True, "server": "redis://a redis://b", "worker": "redis://c redis://d"}
PEERS = [{"ipBlock": {"cidr": "10.1.2.0/24"}}]
OTHER_VALUES: dict[type, Any] = {
    bool: True,
    int: 7,
    str: "http://other",
    list: [{"a": "b"}],
    dict: {"a": "b"},
}
VALID_VALUES: dict[str, Any] = {  # for values that the schema would reject otherwise
    "gateway.hostnames": ["a.b"],
    "keda.metricsSource": "prometheus",
    "networkPolicy.privateCidrs": ["10.0.0.0/8"],
    "redis.ports": [7],
    "valkey.maxMemory": "2gb",
    "valkey.persistence": {"size": "1Gi"},
    "valkey.persistence.size": "1Gi",
    "valkey.resources": {"limits": {"cpu": 1}},
}


def at(values: dict[str, Any], path: str) -> Any:
    for key in path.split("."):
        values = values[key]
    return values


def nested(path: str, value: Any) -> dict[str, Any]:
    first, _, rest = path.partition(".")
    return {first: nested(rest, value) if rest else value}


def merged(*values: dict[str, Any]) -> dict[str, Any]:
    """Return nested values in one dictionary. The last of two values takes precedence."""
    result: dict[str, Any] = {}
    for each in copy.deepcopy(values):
        for key, value in each.items():
            both_nested = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = merged(result[key], value) if both_nested else value
    return result


def switches(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the path of each value ``enabled`` with the path of each value next to it."""
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict):
            if "enabled" in value:
                yield from ((f"{path}.enabled", f"{path}.{other}") for other in set(value) - {"enabled"})
            yield from switches(value, f"{path}.")


def test_every_value_next_to_a_switch_has_a_rule() -> None:
    covered = {(rule["if"], path) for rule in RULES if "if" in rule for path in rule["values"]}
    expected = set(switches(VALUES))
    assert len(expected) > 30
    assert expected <= covered


def test_every_value_of_a_rule_exists() -> None:
    for rule in RULES:
        assert set(rule) - {"is"} in ({"if", "values"}, {"unless", "values"})
        for path in (rule.get("if") or rule["unless"], *rule["values"]):
            at(VALUES, path)


def cases() -> list[Any]:
    """Return values that break each rule: (the path of the value, the values)."""
    found = []
    for rule in RULES:
        condition = rule.get("if") or rule["unless"]
        broken = "mine" if condition == "redis.existingSecret" else "unless" in rule
        for path in rule["values"]:
            other = VALID_VALUES.get(path, OTHER_VALUES[type(at(VALUES, path))])
            is_default = at(VALUES, condition) == broken or "is" in rule or condition == "worker.gpus"
            unmet = {} if is_default else nested(condition, broken)
            found.append(pytest.param(path, merged(unmet, nested(path, other)), id=f"{path} ({condition})"))
    return found


@pytest.mark.parametrize(("path", "values"), cases())
def test_a_value_that_has_no_effect_is_rejected(helm: Helm, path: str, values: dict[str, Any]) -> None:
    with pytest.raises(HelmError, match=r"\w+(\.\w+)+ has no effect, because .*(Set|Remove) "):
        helm.render(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"redis": {"queueUrls": {"server": "redis://user:secret@a"}}},
            "redis.queueUrls.server has no effect, because redis.queueUrls.enabled is false. "
            "Set redis.queueUrls.enabled to true, or remove redis.queueUrls.server.",
        ),
        (
            {
                "redis": {"existingSecret": "mine", "serverUrl": "redis://user:secret@a"},
                "valkey": {"enabled": False},
            },
            "redis.serverUrl has no effect, because redis.existingSecret is set. Remove one of them.",
        ),
        (
            {"server": {"replicas": 3}},
            "server.replicas has no effect, because server.autoscaling.enabled is true. "
            "Set server.autoscaling.enabled to false, or remove server.replicas.",
        ),
        (
            {"models": {"a": {"scaling": {"maxReplicas": 3}}, "b": {"scaling": {"enabled": True}}}},
            "models.a.scaling.maxReplicas has no effect, because models.a.scaling.enabled is false.",
        ),
        (
            {"models": {"a": {"scaling": {"enabled": True}, "replicas": 3}}},
            "models.a.replicas has no effect, because models.a.scaling.enabled is true.",
        ),
        (
            {"models": {"a": {"scaling": {"enabled": True}}}, "keda": {"prometheusLabels": {"a": "b"}}},
            "keda.prometheusLabels has no effect, because keda.metricsSource is metrics-api. "
            "Set keda.metricsSource to prometheus, or remove keda.prometheusLabels.",
        ),
        (
            {"redis": {"peers": PEERS}},
            "redis.peers has no effect, because all pods connect only to the Valkey of this release.",
        ),
    ],
)
def test_the_message_names_the_value_the_reason_and_the_remedy(
    helm: Helm, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(HelmError, match=re.escape(message)) as raised:
        helm.render(values)
    assert "secret@" not in str(raised.value)


def test_a_default_of_all_models_needs_an_effect_for_one_of_them(helm: Helm) -> None:
    worker = {"scaling": {"maxReplicas": 8}, "hub": {"tokenSecret": "hub"}, "replicas": 2}
    scaled = {"scaling": {"enabled": True}, "hub": {"enabled": True}}
    manifests = helm.render({"worker": worker, "models": {"a": scaled, "b": {}}})
    deployments = {
        each["metadata"]["name"]: each["spec"] for each in manifests if each["kind"] == "Deployment"
    }
    assert deployments["demo-llava-serve-worker-b"]["replicas"] == 2
    [container] = deployments["demo-llava-serve-worker-b"]["template"]["spec"]["containers"]
    assert "HF_TOKEN" not in {each["name"] for each in container["env"]}, "not without access to the Hub"
    with pytest.raises(HelmError, match="worker.scaling.maxReplicas has no effect"):
        helm.render({"worker": worker, "models": {"b": {}}})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"server": {"autoscaling": {"minReplicas": 11}}}, "minReplicas is 11, but .*maxReplicas is 10"),
        (
            {"models": {"a": {"scaling": {"enabled": True, "minReplicas": 5}}}},
            "models.a.scaling.minReplicas is 5, but models.a.scaling.maxReplicas is 4",
        ),
        *(
            (
                {"worker": {"strategy": {"rollingUpdate": {"maxSurge": zero, "maxUnavailable": 0}}}},
                "maxSurge and maxUnavailable are both 0",
            )
            for zero in (0, "0%")
        ),
        ({"worker": {"strategy": {"rollingUpdates": {}}}}, "'rollingUpdates'"),
        *(
            ({"models": {"a": {"servedName": name}}}, "servedName")
            for name in ('a"b', "a'b", "a,b", "a\\b", "a b")
        ),
        ({"server": {"imageHosts": ["a.com,b.com"]}}, "imageHosts"),
        ({"worker": {"model": "llava-hf/llava-1.5-7b-hf"}}, "models.tiny.hub.enabled is false"),
        ({"worker": {"modelVolume": {"emptyDir": {}, "hostPath": {"path": "/"}}}}, "maxProperties"),
        (
            {"redis": {"queueUrls": {**QUEUE_URLS, "worker": "redis://c"}, "peers": PEERS}},
            "redis.queueUrls.server contains 2 URLs, but redis.queueUrls.worker contains 1",
        ),
        (
            {"redis": {"queueUrls": QUEUE_URLS, "queueShards": 1, "peers": PEERS}},
            "redis.queueShards is 1, but redis.queueUrls contains 2 URLs",
        ),
        ({"server": {"env": {"LLAVA_PORT": 1}}}, "server.env contains LLAVA_PORT, which the chart sets"),
        (
            {"worker": {"env": {"LLAVA_MODEL": "x"}}},
            "models.tiny.env contains LLAVA_MODEL, which the chart sets",
        ),
    ],
)
def test_contradictory_values_are_rejected(helm: Helm, values: dict[str, Any], message: str) -> None:
    with pytest.raises(HelmError, match=message):
        helm.render(values)


def test_the_target_of_running_requests_is_lower_than_the_number_of_slots(helm: Helm) -> None:
    slots = WorkerSettings.model_fields["max_num_sequences"].default

    def render(target: int, **env: int) -> None:
        scaling = {"enabled": True, "runningRequestsPerWorker": target}
        helm.render({"models": {"a": {"scaling": scaling, "env": env}}})

    render(slots - 1)
    render(slots, LLAVA_MAX_NUM_SEQUENCES=slots + 1)
    with pytest.raises(HelmError, match=f"is {slots}, but a worker runs at most {slots} requests"):
        render(slots)
