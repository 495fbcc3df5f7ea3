"""Names of objects are valid for every release, and objects of different releases have different names."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.deploy.helm import Helm, HelmError, Manifest

LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")  # RFC 1035, the strictest rule (for Services)
LONG_KEY = "k" * 30
LONG_RELEASE = "production-inference-for-the-vision-team-in-europe-1"
ALL: dict[str, Any] = {
    "models": {LONG_KEY: {"scaling": {"enabled": True}}, f"{LONG_KEY[:-1]}z": {"scaling": {"enabled": True}}},
    "ingress": {"enabled": True, "host": "llava.example.com"},
    "gateway": {"enabled": True, "parentRefs": [{"name": "public"}]},
    "serviceMonitor": {"enabled": True},
    "dashboard": {"enabled": True},
}


def names(manifests: list[Manifest]) -> list[tuple[str, str]]:
    return [(each["kind"], each["metadata"]["name"]) for each in manifests]


def derived(kind: str, name: str) -> list[str]:
    """Return the names and label values that controllers derive from the name of an object."""
    suffixes = {"StatefulSet": f"{name}-{'0' * 10}", "ScaledObject": f"keda-hpa-{name}"}
    return [name, suffixes.get(kind, name)]


@pytest.mark.parametrize("release", ["a", "llava-serve", "demo", LONG_RELEASE[:30], LONG_RELEASE])
@pytest.mark.parametrize("override", ["", "n" * 30])
def test_all_names_and_labels_are_valid_and_different(helm: Helm, release: str, override: str) -> None:
    manifests = helm.render({**ALL, "nameOverride": override}, release)
    found = names(manifests)
    assert len(set(found)) == len(found)
    for kind, name in found:
        for each in derived(kind, name):
            assert LABEL.fullmatch(each), (kind, each)
    for manifest in manifests:
        for value in manifest["metadata"]["labels"].values():
            assert len(value) <= 63, value


@pytest.mark.parametrize(("override", "end"), [("", "2"), ("n" * 30, "2")])
def test_releases_with_similar_long_names_have_different_objects(helm: Helm, override: str, end: str) -> None:
    values = {**ALL, "nameOverride": override}
    first, second = (
        set(names(helm.render(values, name))) for name in (LONG_RELEASE, LONG_RELEASE[:-1] + end)
    )
    assert len(first) == len(second)
    assert not first & second


def test_short_names_contain_the_release_and_the_component(helm: Helm) -> None:
    found = names(helm.render({"models": {"llava-7b": {}}}))
    assert ("Deployment", "demo-llava-serve-worker-llava-7b") in found
    assert ("StatefulSet", "demo-llava-serve-valkey") in found


def test_references_between_objects_use_the_shortened_names(helm: Helm) -> None:
    manifests = helm.render(ALL, LONG_RELEASE)
    found = names(manifests)
    for each in (each for each in manifests if each["kind"] == "ScaledObject"):
        assert ("Deployment", each["spec"]["scaleTargetRef"]["name"]) in found
        hosts = {trigger["metadata"]["url"].split("/")[2] for trigger in each["spec"]["triggers"]}
        assert {("Service", host.split(".")[0]) for host in hosts} <= set(found)
    [secret] = [each["stringData"] for each in manifests if each["kind"] == "Secret"]
    host = secret["server_redis_url"].partition("@")[2].partition(":")[0]
    assert ("Service", host) in found


@pytest.mark.parametrize("release", ["1st", "team.vision"])
def test_a_release_name_that_services_cannot_have_is_rejected(helm: Helm, release: str) -> None:
    with pytest.raises(HelmError, match=f'The release name "{release}" cannot be a part'):
        helm.render({}, release)
