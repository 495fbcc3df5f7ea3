"""The fleet simulation completes every job on several shards."""

from __future__ import annotations

import pytest

from bench.fleet.fleets import FleetSettings, measure_fleet

pytestmark = pytest.mark.e2e


def test_a_simulated_fleet_on_two_shards_loses_no_token() -> None:
    settings = FleetSettings(num_slots=2, max_tokens=8, seconds=1.0, drains=True)
    fleet = measure_fleet(3, 2, settings)
    assert (fleet["num_errors"], fleet["num_wrong"], fleet["num_lost"]) == (0, 0, 0)
    assert fleet["num_jobs"] > 0
    assert fleet["num_tokens"] > 0
    assert fleet["redis_us_per_token"] > 0
