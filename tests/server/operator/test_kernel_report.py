"""The server reports which kernels each model uses, and warns if torch kernels are a fallback."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import msgspec
import pytest
from llava_server.kernel_report import fallback_warnings
from llava_wire.messages.heartbeat import Heartbeat, KernelInfo
from llava_wire.worker_side.consumer import JobConsumer

from tests.machine_speed import scaled
from tests.server.conftest import Serve, Server
from tests.wire.harness import heartbeat

SHIPPED = KernelInfo(source="shipped", variant="avx2")
FALLBACK = KernelInfo(source="torch", fallback_reason="compiler /usr/bin/g++ failed")


def beat(worker_id: str, kernels: KernelInfo | None, model: str = "m") -> Heartbeat:
    return msgspec.structs.replace(heartbeat(worker_id, model), kernels=kernels)


def announce(url: str, *heartbeats: Heartbeat) -> None:
    """Register workers. Each sends a single heartbeat, which is valid for a minute."""

    async def announce_all() -> None:
        for each in heartbeats:
            consumer = await JobConsumer.connect(url, each, lease_s=60)
            await consumer.aclose()

    asyncio.run(announce_all())


def get(server: Server, path: str) -> Any:
    return httpx2.get(f"{server.url}{path}", timeout=scaled(30))


def test_kernels_are_in_readyz_in_the_model_list_and_in_the_metrics(serve: Serve, queue_url: str) -> None:
    newer = KernelInfo(source="something-new")
    announce(
        queue_url,
        beat("fast", SHIPPED),
        beat("slow", FALLBACK),
        beat("old", None, "n"),
        beat("x", newer, "o"),
    )
    server = serve()

    status = get(server, "/readyz").json()
    assert status["kernels"] == {"m": ["shipped", "torch"], "n": [], "o": ["unknown"]}
    (warning,) = status["warnings"]
    assert "1 of 2 workers of the model 'm' use torch kernels" in warning
    assert "g++" not in warning, "details are not public"
    listed = {model["id"]: model["kernels"] for model in get(server, "/v1/models").json()["data"]}
    assert listed == status["kernels"]
    values = {
        worker: server.metric(
            "llava_engine_kernels", model_name=model, worker=worker, source=source, is_fallback=is_fallback
        )
        for worker, model, source, is_fallback in (
            ("fast", "m", "shipped", "false"),
            ("slow", "m", "torch", "true"),
            ("x", "o", "unknown", "false"),
        )
    }
    assert values == {"fast": 1, "slow": 1, "x": 1}


@pytest.mark.parametrize("kernels", [SHIPPED, KernelInfo(source="torch"), None])
def test_workers_that_use_torch_kernels_by_design_cause_no_warning(kernels: KernelInfo | None) -> None:
    assert fallback_warnings([beat("w", kernels)], has_details=True) == []


def test_operators_see_the_reason() -> None:
    (warning,) = fallback_warnings([beat("a", FALLBACK), beat("b", FALLBACK)], has_details=True)
    assert "2 of 2 workers" in warning
    assert warning.endswith("Reason: compiler /usr/bin/g++ failed.")
