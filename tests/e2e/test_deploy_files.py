"""Static checks for the deployment files. These tests do not require a Docker daemon."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pin_images import ENTRY

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "deploy").glob("Dockerfile.*"))
OVERLAYS = sorted((ROOT / "deploy").glob("compose.*.yaml"))
SERVICES = ("redis", "server", "worker")
LOCKS = {"server": ["server"], "worker": ["torch-cpu", "worker"], "worker-cuda": ["worker-cuda"]}
VERSION = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)[0]
SIZES = {"b": 1, "k": 2**10, "m": 2**20, "g": 2**30}


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
    known = set(
        re.findall(r"LLAVA_\w+", (ROOT / "docs" / "reference" / "configuration.md").read_text("utf-8"))
    )
    files = [ROOT / "docker-compose.yml", *OVERLAYS]
    services = [service for path in files for service in _compose(path)["services"].values()]
    given = {name for service in services for name in service.get("environment", ())}
    assert {name for name in given if name.startswith("LLAVA_")} <= known


def test_workers_accept_commands_only_if_env_sets_a_folder_which_is_then_mounted() -> None:
    worker = _service("worker")
    assert worker["environment"]["LLAVA_LOADABLE_MODELS"] == "${LLAVA_LOADABLE_MODELS:-}"
    example = (ROOT / ".env.example").read_text("utf-8")
    (folder,) = re.findall(r"^#LLAVA_LOADABLE_MODELS=(.+)$", example, re.MULTILINE)
    assert [volume.split(":")[-2:] for volume in worker["volumes"] if ":ro" in volume] == [[folder, "ro"]]


def test_workers_share_a_volume_for_quantized_weights_in_the_folder_for_caches() -> None:
    image = (ROOT / "deploy" / "Dockerfile.worker").read_text("utf-8")
    assert re.search(r"XDG_CACHE_HOME=/cache\b", image)
    assert "cache:/cache" in _service("worker")["volumes"]
    assert "cache" in _compose()["volumes"]


def test_redis_persists_jobs_across_restarts_and_never_evicts_them() -> None:
    redis = _service("redis")
    words = redis["command"]
    options = dict(zip(words[1::2], words[2::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"
    assert "queue:/data" in redis["volumes"]
    assert "queue" in _compose()["volumes"]


def test_each_service_can_read_only_the_secrets_of_its_role() -> None:
    redis, server, worker = (_service(name) for name in SERVICES)
    assert redis["secrets"] == ["users.acl", "admin_password"]
    assert redis["command"][redis["command"].index("--aclfile") + 1] == "/run/secrets/users.acl"
    assert "--requirepass" not in redis["command"], "this would enable the default user"
    for role, service in (("server", server), ("worker", worker)):
        assert service["secrets"] == [{"source": f"{role}_redis_url", "target": "redis_url"}]
        assert service["environment"]["LLAVA_REDIS_URL_FILE"] == "/run/secrets/redis_url"
    files = {secret: given["file"] for secret, given in _compose()["secrets"].items()}
    assert files == {secret: f"deploy/secrets/{secret}" for secret in files}
    for path in OVERLAYS:
        assert not any("secrets" in service for service in _compose(path)["services"].values())


def test_no_secret_is_in_the_environment_or_in_git() -> None:
    for path in (ROOT / "docker-compose.yml", ROOT / ".env.example", *OVERLAYS):
        assert "PASSWORD" not in path.read_text("utf-8"), path
    ignored = (ROOT / ".gitignore").read_text("utf-8").splitlines()
    assert {".env", "deploy/secrets/"} <= set(ignored)


def _default_size(text: str) -> int:
    """Return the default of a variable such as ``${LLAVA_REDIS_MEMORY:-2g}`` in bytes."""
    match = re.fullmatch(r"\$\{LLAVA_\w+_(?:MEMORY|MAXMEMORY):-(\d+)([kmg])b?\}", text)
    assert match, text
    return int(match[1]) * SIZES[match[2]]


@pytest.mark.parametrize("name", SERVICES)
def test_memory_and_processes_of_each_container_are_limited(name: str) -> None:
    service = _service(name)
    assert _default_size(service["mem_limit"]) >= 2**31
    assert service["memswap_limit"] == service["mem_limit"], "a larger value allows swapping"
    assert 0 < service["pids_limit"] <= 4096
    variable = service["mem_limit"][2:].split(":")[0]
    example = (ROOT / ".env.example").read_text("utf-8")
    assert f"#{variable}={service['mem_limit'].split(':-')[1][:-1]}\n" in example
    for path in OVERLAYS:
        overlay = _compose(path)["services"].get(name, {})
        assert "mem_limit" not in overlay
        assert "limits" not in overlay.get("deploy", {}).get("resources", {})


def test_the_data_of_redis_is_limited_to_half_of_its_container() -> None:
    redis = _service("redis")
    maxmemory = redis["command"][redis["command"].index("--maxmemory") + 1]
    assert _default_size(maxmemory) <= _default_size(redis["mem_limit"]) // 2


def test_the_port_is_published_on_loopback_by_default() -> None:
    assert _service("server")["ports"] == ["${LLAVA_BIND:-127.0.0.1}:${LLAVA_PORT:-8000}:8000"]


def test_worker_can_be_scaled() -> None:
    worker = _service("worker")
    assert not {"container_name", "hostname", "ports"} & set(worker)


def test_the_worker_has_internet_access_only_with_the_overlays_for_it() -> None:
    assert _service("worker")["networks"] == ["back"]
    workers = {path.name: _compose(path)["services"]["worker"] for path in OVERLAYS}
    with_access = {name for name, worker in workers.items() if "front" in worker.get("networks", ())}
    assert with_access == {"compose.hub.yaml", "compose.external.yaml"}


def test_the_image_overlay_gives_servers_and_workers_the_same_folder_which_their_user_owns() -> None:
    overlay = _compose(ROOT / "deploy" / "compose.images.yaml")
    for name in ("server", "worker"):
        service = overlay["services"][name]
        assert service["environment"] == {"LLAVA_IMAGE_STORE": "file:///images"}
        assert service["volumes"] == ["images:/images"]
    options = overlay["volumes"]["images"]["driver_opts"]
    assert options["type"] == options["device"] == "tmpfs"
    user, group = _service("server")["user"].split(":")
    assert _service("worker")["user"] == f"{user}:{group}"
    assert {f"uid={user}", f"gid={group}", "mode=0770"} <= set(options["o"].split(","))


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


def test_images_from_a_registry_are_named_in_one_place_and_pinned_by_digest() -> None:
    text = (ROOT / "docker-compose.yml").read_text("utf-8")
    images = _compose()["x-images"]
    assert [entry["digest"] for entry in ENTRY.finditer(text)] == [
        image.partition("@")[2] for image in images.values()
    ]
    for image in images.values():
        assert re.fullmatch(r"[a-z/]+:\d+\.\d+\.\d+(-[a-z]+)+@sha256:[0-9a-f]{64}", image), image
    for path in (ROOT / "docker-compose.yml", *OVERLAYS):
        for name, service in _compose(path)["services"].items():
            used = service.get("image", "")
            is_built = bool(re.fullmatch(r"llava-serve-[a-z-]+:\d+\.\d+\.\d+", used))
            assert is_built or used in ("", images["valkey"]), f"{path.name}: {name}"
    for name in ("server", "worker"):
        assert _service(name)["build"]["args"] == {"PYTHON_IMAGE": images["python"]}


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfiles_use_the_base_image_of_the_compose_file_and_the_last_stage_has_no_build_tools(
    path: Path,
) -> None:
    lines = _instructions(path)
    assert [line for line in lines if line.startswith(("ARG ", "FROM "))] == [
        "ARG PYTHON_IMAGE",
        "FROM ${PYTHON_IMAGE} AS build",
        "FROM ${PYTHON_IMAGE}",
        f"ARG VERSION={VERSION}",
        "ARG REVISION=unknown",
    ]
    final = _final_stage(path)
    assert not any("pip" in line.split() for line in final)
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
def test_the_image_has_the_labels_of_its_version_and_license(path: Path) -> None:
    (labels,) = [line for line in _final_stage(path) if line.startswith("LABEL ")]
    for name, value in (
        ("title", "llava-serve "),
        ("licenses", "Apache-2.0"),
        ("version", "${VERSION}"),
        ("revision", "${REVISION}"),
    ):
        assert f'org.opencontainers.image.{name}="{value}' in labels


def test_the_cpu_image_contains_compiled_kernels_but_no_compiler() -> None:
    lines = _instructions(ROOT / "deploy" / "Dockerfile.worker")
    (wheel,) = [line for line in lines if "pip wheel" in line]
    assert "LLAVA_BUILD_KERNELS=required" in wheel
    assert any("apt-get" in line and "g++" in line for line in lines)
    assert not any("g++" in line for line in _final_stage(ROOT / "deploy" / "Dockerfile.worker"))


def test_bake_builds_every_image_with_the_same_version_and_tags_as_compose() -> None:
    text = (ROOT / "docker-bake.hcl").read_text("utf-8")
    assert f'default = "{VERSION}"' in text
    (group,) = re.findall(r"targets = \[(.+)\]", text)
    assert [f"Dockerfile.{name}" for name in re.findall(r'"(.+?)"', group)] == [
        path.name for path in DOCKERFILES
    ]
    used = {
        service["image"]
        for path in (ROOT / "docker-compose.yml", *OVERLAYS)
        for service in _compose(path)["services"].values()
        if service.get("image", "").startswith("llava-serve-")
    }
    tags = re.findall(r'tags += \["(.+)"\]', text)
    assert {tag.replace("${VERSION}", VERSION) for tag in tags} == used


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
def test_everything_that_an_image_installs_is_verified_by_a_hash(path: Path) -> None:
    installs = re.findall(r"pip (?:--python \S+ )?(?:install|wheel) [^&\n]+", "\n".join(_instructions(path)))
    from_an_index = [line for line in installs if "--no-index" not in line]
    assert all("--require-hashes" in line for line in from_an_index)
    assert not any("--extra-index-url" in line for line in installs)
    files = [
        name for line in from_an_index for name in re.findall(r"-r deploy/requirements/(\S+)\.txt", line)
    ]
    assert files == [*LOCKS[path.suffix[1:]], "build"]
    (project,) = [line for line in installs if "pip wheel" in line]
    assert "--no-build-isolation" in project, "pip would download the build backend"
    assert "--no-deps" in project


def test_server_image_has_neither_torch_nor_the_worker() -> None:
    text = "\n".join(_instructions(ROOT / "deploy" / "Dockerfile.server"))
    assert "requirements/server.txt" in text
    assert "torch" not in text
    assert "torch==" not in (ROOT / "deploy" / "requirements" / "server.txt").read_text("utf-8")
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
