"""Static checks for the deployment files. These tests do not require a Docker daemon."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "deploy").glob("Dockerfile.*"))
OVERLAYS = sorted((ROOT / "deploy").glob("compose.*.yaml"))
SERVICES = ("redis", "server", "worker")
REQUIRED = re.compile(r"\$\{LLAVA_REDIS_PASSWORD:\?[^}]+\}")


def _compose(path: Path = ROOT / "docker-compose.yml") -> dict[str, Any]:
    loaded = yaml.safe_load(path.read_text("utf-8"))
    assert isinstance(loaded, dict)
    return loaded


def _service(name: str) -> dict[str, Any]:
    service: dict[str, Any] = _compose()["services"][name]
    return service


def _seconds(text: str) -> int:
    assert text.endswith("s"), f"{text}: durations must be in seconds"
    return int(text[:-1])


def _instructions(dockerfile: Path) -> list[str]:
    joined = dockerfile.read_text("utf-8").replace("\\\n", " ")
    return [
        " ".join(line.split()) for line in joined.splitlines() if line.strip() and not line.startswith("#")
    ]


def test_these_tests_cover_every_service() -> None:
    assert sorted(_compose()["services"]) == sorted(SERVICES)
    assert [path.name for path in DOCKERFILES] == [
        "Dockerfile.server",
        "Dockerfile.worker",
        "Dockerfile.worker-cuda",
    ]


@pytest.mark.parametrize("name", SERVICES)
def test_service_runs_without_privileges(name: str) -> None:
    service = _service(name)
    user, _ = service["user"].split(":")
    assert int(user) > 0
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert not {"privileged", "cap_add", "network_mode", "pid", "ipc"} & set(service)


@pytest.mark.parametrize("name", SERVICES)
def test_service_has_a_health_check(name: str) -> None:
    assert _service(name)["healthcheck"]["test"]


@pytest.mark.parametrize("name", ["server", "worker"])
def test_service_starts_after_a_healthy_queue(name: str) -> None:
    assert _service(name)["depends_on"] == {"redis": {"condition": "service_healthy"}}


def test_redis_cannot_be_reached_from_the_host_or_from_outside() -> None:
    redis = _service("redis")
    assert "ports" not in redis
    assert redis["networks"] == ["back"]
    assert _compose()["networks"]["back"]["internal"] is True


def test_the_admin_port_is_reachable_only_on_the_operators_network() -> None:
    server, networks = _service("server"), _compose()["networks"]
    name = server["environment"]["LLAVA_ADMIN_HOST"]
    assert [
        network for network, joined in server["networks"].items() if name in joined.get("aliases", ())
    ] == ["operators"]
    assert name not in SERVICES, "a service's own name can be resolved on every network"
    assert networks["operators"]["internal"] is True
    published = [port.rpartition(":")[2] for port in server["ports"]]
    assert server["environment"]["LLAVA_ADMIN_PORT"] not in published
    for path in (ROOT / "docker-compose.yml", *OVERLAYS):
        services = _compose(path)["services"]
        joined = {name for name, service in services.items() if "operators" in service.get("networks", ())}
        assert joined <= {"server"}, path


def test_every_variable_is_a_setting() -> None:
    known = set(re.findall(r"LLAVA_\w+", (ROOT / "docs" / "configuration.md").read_text("utf-8")))
    files = [ROOT / "docker-compose.yml", *OVERLAYS]
    services = [service for path in files for service in _compose(path)["services"].values()]
    given = {name for service in services for name in service.get("environment", ())}
    assert {name for name in given if name.startswith("LLAVA_")} <= known


def test_workers_accept_commands_only_if_env_sets_a_folder_which_is_then_mounted() -> None:
    worker = _service("worker")
    assert worker["environment"]["LLAVA_LOADABLE_MODELS"] is None, "must be set only by .env"
    example = (ROOT / ".env.example").read_text("utf-8")
    (folder,) = re.findall(r"^#LLAVA_LOADABLE_MODELS=(.+)$", example, re.MULTILINE)
    assert [volume.split(":")[-2:] for volume in worker["volumes"]] == [[folder, "ro"]]


def test_redis_persists_jobs_across_restarts_and_never_evicts_them() -> None:
    redis = _service("redis")
    words = redis["command"]
    options = dict(zip(words[1::2], words[2::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"
    assert "queue:/data" in redis["volumes"]
    assert "queue" in _compose()["volumes"]


def test_a_password_is_required_and_passed_to_all_three_services() -> None:
    redis, server, worker = (_service(name) for name in SERVICES)
    assert redis["command"][redis["command"].index("--requirepass") + 1] == "${LLAVA_REDIS_PASSWORD}"
    for service in (server, worker):
        url = service["environment"]["LLAVA_REDIS_URL"]
        assert REQUIRED.search(url), "compose must fail without a password"
        assert REQUIRED.sub("secret", url) == "redis://:secret@redis:6379/0"
    example = (ROOT / ".env.example").read_text("utf-8")
    assert re.search(r"^LLAVA_REDIS_PASSWORD=$", example, re.MULTILINE), (
        "the example must not contain a default password"
    )


def test_the_port_is_published_on_loopback_by_default() -> None:
    assert _service("server")["ports"] == ["${LLAVA_BIND:-127.0.0.1}:${LLAVA_PORT:-8000}:8000"]


def test_worker_can_be_scaled() -> None:
    worker = _service("worker")
    assert not {"container_name", "hostname", "ports"} & set(worker)


def test_the_worker_has_no_internet_access_without_the_hub_overlay() -> None:
    assert _service("worker")["networks"] == ["back"]
    hub = _compose(ROOT / "deploy" / "compose.hub.yaml")["services"]["worker"]
    assert "front" in hub["networks"]


@pytest.mark.parametrize("name", ["server", "worker"])
def test_the_stop_grace_period_exceeds_the_drain_timeout(name: str) -> None:
    service = _service(name)
    assert _seconds(service["stop_grace_period"]) > float(service["environment"]["LLAVA_DRAIN_TIMEOUT_S"])


def test_the_gpu_overlay_requests_a_gpu_and_uses_its_own_image() -> None:
    worker = _compose(ROOT / "deploy" / "compose.gpu.yaml")["services"]["worker"]
    (device,) = worker["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert worker["build"]["dockerfile"] == "deploy/Dockerfile.worker-cuda"


@pytest.mark.parametrize("path", [ROOT / "docker-compose.yml", *OVERLAYS], ids=lambda path: path.name)
def test_dockerfiles_of_built_images_exist(path: Path) -> None:
    services = _compose(path)["services"].values()
    for build in (service["build"] for service in services if "build" in service):
        assert build["context"] == "."
        assert (ROOT / build["dockerfile"]).is_file()


@pytest.mark.parametrize("path", [ROOT / "docker-compose.yml", *OVERLAYS], ids=lambda path: path.name)
def test_images_are_pinned(path: Path) -> None:
    for service in _compose(path)["services"].values():
        if image := service.get("image"):
            assert re.search(r":\d+\.\d+\.\d+(-[a-z0-9.]+)?$", image), f"{image}: the version must be pinned"


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_base_images_are_pinned_and_the_last_stage_has_no_build_tools(path: Path) -> None:
    bases = [line for line in _instructions(path) if line.startswith("FROM ")]
    assert len(bases) == 2, "expected one build stage and one runtime stage"
    for base in bases:
        assert re.match(r"FROM python:\d+\.\d+\.\d+-slim-\w+( AS build)?$", base), base
    final = _final_stage(path)
    assert not any("pip install" in line for line in final)
    assert path.name == "Dockerfile.worker-cuda" or not any("apt-get" in line for line in final)


def test_the_gpu_image_adds_only_what_triton_needs_to_launch_kernels() -> None:
    final = _final_stage(ROOT / "deploy" / "Dockerfile.worker-cuda")
    (installed,) = [line for line in final if "apt-get" in line]
    assert re.search(
        r"install -y --no-install-recommends gcc libc6-dev +&& rm -rf /var/lib/apt/lists", installed
    )
    assert any("TRITON_CACHE_DIR=/cache/triton" in line for line in final)
    worker = _compose(ROOT / "deploy" / "compose.gpu.yaml")["services"]["worker"]
    assert worker["volumes"] == ["kernels:/cache"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_the_image_runs_as_an_unprivileged_user_and_has_a_health_check(path: Path) -> None:
    final = _final_stage(path)
    assert "USER 10001:10001" in final
    assert any(line.startswith("HEALTHCHECK ") for line in final)
    assert any(re.match(r'ENTRYPOINT \["python", "-m", "llava_(server|worker)"\]', line) for line in final)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_copied_paths_exist_and_are_not_excluded_by_dockerignore(path: Path) -> None:
    allowed = {
        line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line[:1] == "!"
    }
    copies = [line.split()[1:-1] for line in _instructions(path) if re.match(r"COPY (?!--from)", line)]
    for source in (source for sources in copies for source in sources):
        assert (ROOT / source).exists(), source
        assert source in allowed, f"{source} is excluded by .dockerignore"


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_installed_extras_exist(path: Path) -> None:
    project = (ROOT / "pyproject.toml").read_text("utf-8").split("[project.optional-dependencies]")[1]
    known = re.findall(r"^(\w+) = \[", project.split("\n[")[0], re.MULTILINE)
    extras = re.findall(r'"\.\[([a-z,]+)\]"', path.read_text("utf-8"))
    assert len(extras) == 1
    for extra in extras[0].split(","):
        assert extra in known


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_installations_use_the_constraints_and_a_single_index(path: Path) -> None:
    installs = [line for line in _instructions(path) if "pip install" in line]
    assert installs
    for line in installs:
        assert "-c constraints.txt" in line or "grep '^torch==' constraints.txt" in line
        assert "--extra-index-url" not in line
    assert re.search(r"^torch==\d", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)


def test_server_image_has_neither_torch_nor_the_worker() -> None:
    text = "\n".join(_instructions(ROOT / "deploy" / "Dockerfile.server"))
    assert ".[server]" in text
    assert "torch" not in text
    assert "worker" not in text


def test_the_cpu_worker_installs_torch_from_the_cpu_index_only() -> None:
    (line,) = [line for line in _instructions(ROOT / "deploy" / "Dockerfile.worker") if "index-url" in line]
    assert "--index-url https://download.pytorch.org/whl/cpu" in line
    assert "--no-deps" in line


def test_secrets_are_excluded_from_the_build_context() -> None:
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert not any(rule.startswith("!.") for rule in rules)


def _final_stage(dockerfile: Path) -> list[str]:
    lines = _instructions(dockerfile)
    last = max(i for i, line in enumerate(lines) if line.startswith("FROM "))
    return lines[last:]
