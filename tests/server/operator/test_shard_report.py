"""A different number of shards in a server and a worker is reported, because some requests are not run."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from tests.machine_speed import scaled
from tests.server.conftest import Serve
from tests.server.scripted_worker import ScriptedWorker
from tests.waiting import wait_until


@pytest.mark.parametrize(("of_server", "of_worker"), [(1, 1), (4, 4), (4, 1), (1, 4)])
def test_readyz_warns_about_workers_with_another_number_of_shards(
    serve: Serve, queue_url: str, request: pytest.FixtureRequest, of_server: int, of_worker: int
) -> None:
    request.addfinalizer(ScriptedWorker(queue_url, num_shards=of_worker).start().stop)
    url = serve(queue_shards=of_server).url

    def status() -> Any:
        return httpx2.get(f"{url}/readyz", timeout=scaled(30)).json()

    wait_until(lambda: status().get("models"))
    warnings = status()["warnings"]
    if of_server == of_worker:
        assert warnings == []
    else:
        [warning] = warnings
        assert (
            f"1 of 1 workers have a queue of {of_worker} shards, but this server has {of_server}" in warning
        )
        assert "LLAVA_QUEUE_SHARDS" in warning
