"""Tests that Docker Compose accepts the deployment files. Collected only if Docker Compose is installed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OVERLAYS = sorted((ROOT / "deploy").glob("compose.*.yaml"))


@pytest.mark.parametrize("path", [None, *OVERLAYS], ids=lambda path: path.name if path else "base")
@pytest.mark.parametrize("password", ["", "sesame"])
def test_compose_accepts_the_files_and_rejects_an_empty_password(path: Path | None, password: str) -> None:
    files = ["-f", "docker-compose.yml", *(["-f", str(path)] if path else [])]
    result = subprocess.run(
        ["docker", "compose", *files, "config", "--quiet"],
        cwd=ROOT,
        env={**os.environ, "LLAVA_REDIS_PASSWORD": password},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode == 0) == bool(password), result.stderr
    if not password:
        assert ".env.example" in result.stderr
