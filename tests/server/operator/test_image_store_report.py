"""Workers with another image store than the server are reported, because they cannot read its images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.machine_speed import scaled
from tests.server.conftest import Serve
from tests.server.scripted_worker import ScriptedWorker
from tests.waiting import wait_until

HAS_NONE = "1 of 1 workers have no image store, but this server has one"
HAS_ANOTHER = "1 of 1 workers have an image store with another URL than this server"
SERVER_HAS_NONE = "1 of 1 workers have an image store, but this server has none"


@pytest.mark.parametrize(
    ("of_server", "of_worker", "message"),
    [
        ("", "", None),
        ("a", "a", None),
        ("a", "", HAS_NONE),
        ("a", "b", HAS_ANOTHER),
        ("", "b", SERVER_HAS_NONE),
    ],
)
def test_readyz_warns_about_workers_with_another_image_store(
    serve: Serve,
    queue_url: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    of_server: str,
    of_worker: str,
    message: str | None,
) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    stores = {"": "", **{name: f"file://{tmp_path}/{name}" for name in "ab"}}
    request.addfinalizer(ScriptedWorker(queue_url, image_store=stores[of_worker]).start().stop)
    url = serve(image_store=stores[of_server]).url

    def status() -> Any:
        return httpx2.get(f"{url}/readyz", timeout=scaled(30)).json()

    wait_until(lambda: status().get("models"))
    warnings = status()["warnings"]
    assert len(warnings) == (message is not None)
    for warning in warnings:
        assert message and message in warning
        assert "Set LLAVA_IMAGE_STORE to the same store for all servers and workers." in warning
        assert str(tmp_path) not in warning, "the public port does not disclose the location"
