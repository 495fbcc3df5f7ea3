"""The settings, the users of the queue and the test of a release work with real programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from llava_cli.up.redis_process import find_redis_binary
from llava_server.settings import load_settings as load_server_settings
from llava_worker.settings import load_settings as load_worker_settings

from tests.deploy.conftest import Rendered
from tests.deploy.helm import Helm, Manifest
from tests.deploy.value_sets import VALUE_SETS
from tests.processes import running_controller
from tests.server.scripted_worker import MODEL, ScriptedWorker
from tests.waiting import wait_until

KEY = "key-of-the-release-test"


def containers(manifests: list[Manifest], kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for each in (each for each in manifests if each["kind"] == kind):
        [container] = (each["spec"] if kind == "Pod" else each["spec"]["template"]["spec"])["containers"]
        yield container["name"], container


@pytest.mark.parametrize("name", VALUE_SETS)
def test_every_variable_is_a_valid_setting(
    rendered: Rendered, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for variable in [each for each in os.environ if each.startswith("LLAVA_")]:
        monkeypatch.delenv(variable)
    manifests = rendered(name)
    secrets: dict[str, str] = next((each["stringData"] for each in manifests if each["kind"] == "Secret"), {})
    for role, container in containers(manifests, "Deployment"):
        url = secrets.get(f"{role}_redis_url", "redis+sentinel://user:pass@a:26379,b:26379/mymaster")
        (tmp_path / "redis_url").write_text(url)
        (tmp_path / "queue_urls").write_text(secrets.get(f"{role}_queue_urls", ""))
        (tmp_path / "image_store").write_text(secrets.get(f"{role}_image_store", ""))
        (tmp_path / "api_keys").write_text(KEY)
        with monkeypatch.context() as patch:
            for variable in container["env"]:
                value = variable.get("value", "token").replace("/run/secrets/redis", str(tmp_path))
                value = value.replace("/run/secrets/keys", str(tmp_path))
                patch.setenv(variable["name"], value.replace("file:///images", f"file://{tmp_path}"))
            settings = {"server": load_server_settings, "worker": load_worker_settings}[role]([])
        assert settings.redis_url.get_secret_value() == url
        names = {each["name"] for each in container["env"] if each["name"].startswith("LLAVA_")}
        fields = {f"LLAVA_{field.upper()}" for field in type(settings).model_fields}
        assert names <= fields, role


def test_servers_and_workers_use_the_same_image_store(rendered: Rendered) -> None:
    manifests = rendered("images on another Redis")
    [secret] = [each["stringData"] for each in manifests if each["kind"] == "Secret"]
    assert secret["server_image_store"] == "redis://server:e@images"
    assert secret["worker_image_store"] == "redis://worker:f@images"
    for role, container in containers(manifests, "Deployment"):
        variables = {each["name"]: each.get("value") for each in container["env"]}
        assert variables["LLAVA_IMAGE_STORE_FILE"] == "/run/secrets/redis/image_store", role
    for manifest in (each for each in rendered("images in a volume") if each["kind"] == "Deployment"):
        pod = manifest["spec"]["template"]["spec"]
        [container] = pod["containers"]
        variables = {each["name"]: each.get("value") for each in container["env"]}
        assert variables["LLAVA_IMAGE_STORE"] == "file:///images"
        assert {"name": "images", "mountPath": "/images"} in container["volumeMounts"]
        assert {"name": "images", "persistentVolumeClaim": {"claimName": "images"}} in pod["volumes"]
    for _, container in containers(rendered("default"), "Deployment"):
        assert not [each for each in container["env"] if "IMAGE_STORE" in each["name"]]


def test_servers_and_workers_have_the_same_shards(rendered: Rendered) -> None:
    expected = {
        "default": {},
        "shards of a cluster": {"LLAVA_QUEUE_SHARDS": "3"},
        "shards on several servers": {
            "LLAVA_QUEUE_SHARDS": "4",
            "LLAVA_QUEUE_URLS_FILE": "/run/secrets/redis/queue_urls",
        },
    }
    for name, variables in expected.items():
        found = list(containers(rendered(name), "Deployment"))
        assert {role for role, _ in found} == {"server", "worker"}
        for _, container in found:
            queue = [each for each in container["env"] if each["name"].startswith("LLAVA_QUEUE_")]
            values = {each["name"]: each["value"] for each in queue}
            assert values.items() >= variables.items()
            assert set(values) - set(variables) <= {"LLAVA_QUEUE_TIMEOUT_S"}


@contextmanager
def running_valkey(manifests: list[Manifest], folder: Path) -> Iterator[dict[str, str]]:
    """Run Valkey as in the StatefulSet, on a Unix socket. Yield the Redis URL of each role."""
    [secret] = [each["stringData"] for each in manifests if each["kind"] == "Secret"]
    (folder / "users.acl").write_text(secret["users.acl"])
    [(_, container)] = containers(manifests, "StatefulSet")
    arguments = [word.replace("/run/secrets/redis", str(folder)) for word in container["command"][1:]]
    location = ["--port", "0", "--unixsocket", str(folder / "s"), "--dir", str(folder)]
    server = subprocess.Popen([find_redis_binary(), *arguments, *location], stdout=subprocess.DEVNULL)
    try:
        wait_until((folder / "s").exists, "Valkey")
        address = "demo-llava-serve-valkey:6379/0"
        roles = ("admin", "server", "worker")
        urls = {role: secret[f"{role}_redis_url"] for role in roles}
        assert all(url.startswith("redis://") and url.endswith(f"@{address}") for url in urls.values())
        yield {
            role: url.replace("redis://", "unix://").replace(address, str(folder / "s"))
            for role, url in urls.items()
        }
    finally:
        server.kill()
        server.wait()


def run_check(manifests: list[Manifest], url: str, key: str = "", **changed: str) -> tuple[int, str]:
    """Run the program of the release's test pod against a server. Return its status and output."""
    [(_, container)] = containers(manifests, "Pod")
    environment = {each["name"]: each["value"] for each in container["env"]} | changed | {"SERVER_URL": url}
    with tempfile.NamedTemporaryFile("w") as keys:
        keys.write(key)
        keys.flush()
        if key:
            environment["API_KEYS_FILE"] = keys.name
        program = [sys.executable, *container["command"][1:], *container["args"]]
        done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.e2e
def test_a_release_serves_requests_with_its_own_users_and_passes_its_test(helm: Helm, tmp_path: Path) -> None:
    manifests = helm.render({"models": {MODEL: {}}})
    with (
        tempfile.TemporaryDirectory(prefix="lvh-", dir="/tmp") as folder,
        running_valkey(manifests, Path(folder)) as urls,
    ):
        worker = ScriptedWorker(urls["worker"]).start()
        try:
            with running_controller(urls["server"], tmp_path, auth=True, api_keys=KEY) as server:
                status, output = run_check(manifests, server.url, KEY)
                assert status == 0, output
                assert f"{MODEL} completes a chat request: status 200" in output
                assert "no chat request was sent" in run_check(manifests, server.url)[1]
                status, output = run_check(manifests, server.url, "a-wrong-key")
                assert (status, "expected status 200, received 401" in output) == (1, True), output
                two_models = helm.render({"models": {MODEL: {}, "zz-another": {}}})
                status, output = run_check(two_models, server.url, KEY)
                assert (status, "zz-another completes a chat request: expected" in output) == (1, True), (
                    output
                )
        finally:
            worker.stop()
        with redis.Redis.from_url(urls["worker"]) as worker_connection:
            check_denied(worker_connection, "HGETALL", "{lv}:keys")
        with redis.Redis.from_url(urls["admin"]) as connection:
            assert connection.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}


def test_a_release_tests_each_of_its_models_once(helm: Helm) -> None:
    models = {"b": {}, "a": {"servedName": "llava"}, "c": {"servedName": "llava"}}
    [(_, container)] = containers(helm.render({"models": models}), "Pod")
    [names] = [each["value"] for each in container["env"] if each["name"] == "MODELS"]
    assert json.loads(names) == ["b", "llava"]


def check_denied(connection: redis.Redis, *command: str) -> None:
    with pytest.raises(redis.exceptions.NoPermissionError):
        connection.execute_command(*command)


def test_passwords_differ_between_releases_and_roles(helm: Helm) -> None:
    secrets = [each["stringData"] for _ in range(2) for each in helm.render({}) if each["kind"] == "Secret"]
    passwords = [secret[f"{role}_password"] for secret in secrets for role in ("admin", "server", "worker")]
    assert len(set(passwords)) == 6
    assert all(len(password) == 40 for password in passwords)
    assert all(password not in secret["users.acl"] for secret in secrets for password in passwords)
