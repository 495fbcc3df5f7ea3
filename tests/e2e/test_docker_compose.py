"""Tests that Docker Compose accepts the deployment files. Collected only if Docker Compose is installed."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OVERLAYS = sorted((ROOT / "deploy").glob("compose.*.yaml"))


@pytest.mark.parametrize("path", [None, *OVERLAYS], ids=lambda path: path.name if path else "base")
def test_compose_accepts_the_files_and_gives_each_service_its_own_secrets(path: Path | None) -> None:
    files = ["-f", "docker-compose.yml", *(["-f", str(path)] if path else [])]
    result = subprocess.run(
        ["docker", "compose", *files, "config", "--format", "json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    services = json.loads(result.stdout)["services"]
    secrets = {
        name: {secret["source"] for secret in service["secrets"]} for name, service in services.items()
    }
    assert secrets == {
        "redis": {"users.acl", "admin_password"},
        "server": {"server_redis_url"},
        "worker": {"worker_redis_url"},
    }
    assert all(int(service["mem_limit"]) > 0 for service in services.values())
    assert "sha256:" in services["worker"]["build"]["args"]["PYTHON_IMAGE"]
