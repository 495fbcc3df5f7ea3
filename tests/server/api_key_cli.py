"""Helpers for API keys: the CLI that creates them, and requests that use them."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import httpx2

from tests.machine_speed import scaled
from tests.server.scripted_worker import MODEL

__all__ = ["ApiKeyCli", "bearer", "chat_with_key"]


class ApiKeyCli:
    """The ``llava-serve keys`` command, run against one queue."""

    def __init__(self, url: str) -> None:
        self._url = url

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "llava_server.operator.cli.api_keys", *arguments],
            env={**os.environ, "LLAVA_REDIS_URL": self._url},
            capture_output=True,
            text=True,
            check=False,
        )

    def create(self, *options: str) -> str:
        """Create a key and return it."""
        created = self.run("create", "test", *options)
        assert created.returncode == 0, created.stderr
        return created.stdout.strip()


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def chat_with_key(url: str, key: str, content: Any = "say yes", **fields: Any) -> httpx2.Response:
    """Send one chat request to the server at ``url``."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": content}], **fields}
    path = f"{url}/v1/chat/completions"
    return httpx2.post(path, json=body, headers=bearer(key), timeout=scaled(60))
