"""``LLAVA_WIRE_RUNS=200 pytest tests/wire -k fault`` tries 200 new random runs on each server."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.wire.faults.fault_machine import FaultMachine
from tests.wire.redis_server import KINDS, RedisServer, binary

RUNS = int(os.environ.get("LLAVA_WIRE_RUNS") or 0)


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    program = binary(request.param)
    if not program:
        pytest.skip(f"{request.param}: no such server on this machine")
    folder = Path(tempfile.mkdtemp(prefix="lv"))
    server = RedisServer(program, folder)
    server.start()
    yield server
    server.kill()
    shutil.rmtree(folder)


@pytest.mark.timeout(300 + 30 * RUNS)
def test_every_stream_survives_random_faults(server: RedisServer) -> None:
    run_state_machine_as_test(
        lambda: FaultMachine(server),
        settings=settings(
            max_examples=RUNS or 12,
            stateful_step_count=20,
            deadline=None,
            derandomize=not RUNS,  # the everyday run is the same each time
            phases=[phase for phase in Phase if RUNS or phase is not Phase.shrink],  # shrinking takes minutes
            suppress_health_check=list(HealthCheck),
            print_blob=False,
        ),
    )
