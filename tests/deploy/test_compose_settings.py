"""Every setting that the documentation promises is passed to the containers by Compose."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from llava_server.settings import Settings as ServerSettings
from llava_server.settings import load_settings as load_server_settings
from llava_worker.settings import Settings as WorkerSettings
from llava_worker.settings import load_settings as load_worker_settings

ROOT = Path(__file__).parents[2]
FILES = [ROOT / "docker-compose.yml", *sorted((ROOT / "deploy").glob("compose.*.yaml"))]
COMPOSE: dict[str, Any] = yaml.safe_load(FILES[0].read_text("utf-8"))
SETTINGS = {
    name: {f"LLAVA_{field.upper()}" for field in settings.model_fields}
    for name, settings in (("server", ServerSettings), ("worker", WorkerSettings))
}
VARIABLE = re.compile(r"\b(?:LLAVA|OTEL|HF)_[A-Z0-9_]*[A-Z0-9]\b")
DEPLOYMENT = (ROOT / "docs" / "deploy" / "compose.md").read_text("utf-8")
_, _, _SECTION = DEPLOYMENT.partition("\n## Settings\n")
SECTION = _SECTION.partition("\n## ")[0]
NOT_PASSED = {
    name
    for row in SECTION.splitlines()
    if row.startswith("| `")
    for name in VARIABLE.findall(row.split("|")[1])
}


def environment(service: str) -> dict[str, str | None]:
    given: dict[str, str | None] = COMPOSE["services"][service]["environment"]
    return given


def interpolated() -> set[str]:
    """Return the variables that Compose itself reads."""
    return {name for path in FILES for name in re.findall(r"\$\{(\w+)", path.read_text("utf-8"))}


def passed(service: str) -> set[str]:
    """Return the variables that the container receives from .env."""
    return {
        name
        for name, value in environment(service).items()
        if value is None or re.fullmatch(rf"\$\{{{name}(:-.*)?\}}", value)
    }


@pytest.mark.parametrize("service", ["server", "worker"])
def test_a_service_receives_every_setting_from_env_except_the_documented_ones(service: str) -> None:
    settings = SETTINGS[service] - NOT_PASSED - {"LLAVA_PORT"}  # in .env, the port on the host
    assert {name for name in passed(service) if name.startswith("LLAVA_")} == settings


def test_the_documented_exceptions_exist_and_are_not_passed() -> None:
    assert NOT_PASSED - {"LLAVA_BIND"} <= SETTINGS["server"] | SETTINGS["worker"]
    assert len(NOT_PASSED) > 10
    for service in ("server", "worker"):
        assert not NOT_PASSED & passed(service)


def test_every_variable_of_the_example_has_an_effect() -> None:
    example = (ROOT / ".env.example").read_text("utf-8")
    names = set(re.findall(r"^#?([A-Z0-9_]+)=", example, re.MULTILINE))
    assert {"LLAVA_IMAGE_STORE", "LLAVA_QUEUE_URLS", "LLAVA_QUEUE_SHARDS"} <= names
    assert names <= passed("server") | passed("worker") | interpolated()


def test_every_variable_in_the_documentation_of_compose_exists() -> None:
    known = passed("server") | passed("worker") | interpolated() | NOT_PASSED
    others = {"HF_TOKEN", "LLAVA_REDIS_PASSWORD"}  # of an overlay, and of an old release
    assert set(VARIABLE.findall(DEPLOYMENT)) - others <= known
    assert set(VARIABLE.findall(SECTION)) >= {name for name in passed("worker") if name.startswith("OTEL_")}


def test_a_worker_receives_no_setting_of_the_server_alone() -> None:
    assert not passed("worker") & (SETTINGS["server"] - SETTINGS["worker"])


def merged(overlay: Path) -> dict[str, Any]:
    """Return the project that podman-compose merges from docker-compose.yml and an overlay."""
    command = [sys.executable, "-m", "podman_compose", "-f", str(FILES[0]), "-f", str(overlay), "config"]
    environment = {name: text for name, text in os.environ.items() if not VARIABLE.fullmatch(name)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    project: dict[str, Any] = yaml.safe_load(done.stdout)
    return project


@pytest.mark.parametrize("overlay", FILES[1:], ids=lambda path: path.name)
def test_every_overlay_is_merged_with_the_base_file(overlay: Path) -> None:
    project = merged(overlay)
    for name, service in yaml.safe_load(overlay.read_text("utf-8"))["services"].items():
        values = project["services"][name]["environment"]
        fixed = {k: v for k, v in service.get("environment", {}).items() if "$" not in v}
        assert fixed.items() <= values.items()
        assert "LLAVA_REDIS_URL_FILE" in values, "the variables of the base file remain"


@pytest.mark.parametrize("service", ["server", "worker"])
def test_an_overlay_can_set_every_variable_of_a_service(service: str, tmp_path: Path) -> None:
    values = {name: f"value-{name}" for name in environment(service)}
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(yaml.safe_dump({"services": {service: {"environment": values}}}))
    assert merged(overlay)["services"][service]["environment"] == values


@pytest.mark.parametrize(
    ("service", "load"), [("server", load_server_settings), ("worker", load_worker_settings)]
)
def test_the_variables_that_compose_passes_by_default_leave_the_default_settings(
    service: str,
    load: Callable[[list[str]], ServerSettings | WorkerSettings],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for variable in [each for each in os.environ if each.startswith("LLAVA_")]:
        monkeypatch.delenv(variable)
    default = load([])
    empty = [name for name, value in environment(service).items() if value == f"${{{name}:-}}"]
    assert len(empty) > 25
    for name in empty:
        monkeypatch.setenv(name, "")
    assert load([]) == default
