"""Random faults with Redis and Valkey. ``--exhaustive`` runs 200 random cases instead of a few fixed ones."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.wire.faults.fault_machine import FaultMachine
from tests.wire.redis_server import RedisServer

NUM_RUNS, NUM_EXHAUSTIVE_RUNS = 12, 200


@pytest.mark.timeout(1200)
def test_every_stream_survives_random_faults(
    killable_server: RedisServer, pytestconfig: pytest.Config
) -> None:
    class Machine(FaultMachine):
        def __init__(self) -> None:
            super().__init__(killable_server)

    is_exhaustive = bool(pytestconfig.getoption("exhaustive"))
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=NUM_EXHAUSTIVE_RUNS if is_exhaustive else NUM_RUNS,
            stateful_step_count=20,
            deadline=None,
            derandomize=not is_exhaustive,  # the default run is reproducible
            phases=[phase for phase in Phase if is_exhaustive or phase is not Phase.shrink],  # slow
            suppress_health_check=list(HealthCheck),
            print_blob=False,
        ),
    )
