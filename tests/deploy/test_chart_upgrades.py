"""An upgrade restarts the pods whose settings it changes, and no others."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.deploy.conftest import Rendered
from tests.deploy.helm import Helm, Manifest
from tests.deploy.value_sets import VALUE_SETS

PEERS: list[dict[str, Any]] = [{"podSelector": {}}]


def external(host: str) -> dict[str, Any]:
    urls = {f"{role}Url": f"redis://{role}:hunter2@{host}" for role in ("server", "worker")}
    return {"valkey": {"enabled": False}, "redis": {**urls, "peers": PEERS}}


def sharded(*hosts: str) -> dict[str, Any]:
    urls = {role: " ".join(f"redis://{role}@{host}" for host in hosts) for role in ("server", "worker")}
    return {"redis": {"queueUrls": {"enabled": True, **urls}, "peers": PEERS}}


def with_images(host: str) -> dict[str, Any]:
    urls = {f"{role}Url": f"redis://{role}@{host}" for role in ("server", "worker")}
    return {"imageStore": {"redis": {"enabled": True, **urls}}, "redis": {"peers": PEERS}}


def templates(manifests: list[Manifest]) -> dict[str, Any]:
    """Return the pod template of each workload, which Kubernetes compares to decide about restarts."""
    return {
        each["metadata"]["name"]: each["spec"]["template"]
        for each in manifests
        if each["kind"] in ("Deployment", "StatefulSet")
    }


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (external("a"), external("b")),
        ({}, external("a")),
        (sharded("a", "b"), sharded("a", "c")),
        (sharded("a", "b"), sharded("a", "b", "c")),
        (with_images("a"), with_images("b")),
    ],
    ids=["external URL", "Valkey to external", "URL of a shard", "one more shard", "image store"],
)
def test_changed_redis_urls_restart_servers_and_workers(
    helm: Helm, before: dict[str, Any], after: dict[str, Any]
) -> None:
    old, new = templates(helm.render(before)), templates(helm.render(after))
    for name in ("demo-llava-serve-server", "demo-llava-serve-worker-tiny"):
        assert old[name] != new[name], name
    assert "hunter2" not in json.dumps(new)


def test_a_changed_url_of_the_workers_does_not_restart_servers(helm: Helm) -> None:
    before, after = external("a"), external("a")
    after["redis"]["workerUrl"] = "redis://worker:changed@a"
    old, new = templates(helm.render(before)), templates(helm.render(after))
    assert {name for name in old if old[name] != new[name]} == {"demo-llava-serve-worker-tiny"}


@pytest.mark.parametrize("name", VALUE_SETS)
def test_an_upgrade_without_changes_restarts_no_pod(helm: Helm, rendered: Rendered, name: str) -> None:
    assert templates(helm.render(VALUE_SETS[name])) == templates(rendered(name)), "new random passwords"


def test_pods_have_the_annotations_in_the_values_and_the_digest_of_their_urls(helm: Helm) -> None:
    own = {"podAnnotations": {"team": "vision"}}
    for template in templates(helm.render({**external("a"), "server": own, "worker": own})).values():
        assert set(template["metadata"]["annotations"]) == {"team", "checksum/redis"}
