"""All attacks at once, from three clients with API keys and an anonymous one.

Every text must be right, and everything must return to the initial level afterwards. The time to the first
token is not limited, because the attackers' requests use all of the controller's CPU time. The other clients
keep their connections, because attackers can fill the kernel's queue of new connections.

``--exhaustive`` attacks for ten minutes instead of one.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.security.attack_criteria import MAX_STALL_CPU_S, Measurement, check_recovery
from tests.security.attacked_site import ANONYMOUS, attacked_site, attackers
from tests.security.attacks import ATTACKS
from tests.security.monitor import monitor
from tests.security.victim import victim

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

_CALM_S = 5
_REPORTS = 4


@pytest.mark.timeout(900)
async def test_every_legitimate_text_is_right_during_all_attacks_at_once(
    request: pytest.FixtureRequest,
) -> None:
    duration_s = 600 if request.config.getoption("exhaustive") else 40
    chosen = [(name, key) for name in ATTACKS if name != "idle_connections" for key in range(3)]
    chosen.append(("idle_connections", ANONYMOUS))
    with tempfile.TemporaryDirectory() as folder, attacked_site(Path(folder)) as site:
        async with (
            attackers(site) as process,
            monitor(site) as watch,
            victim(site, num_streams=16, max_tokens=32, keeps_connections=True) as clients,
        ):
            measurement = Measurement(watch.rss_bytes, await clients.during(_CALM_S))
            watch.reset()
            await process.start(chosen)
            for _ in range(_REPORTS):
                measurement.attacked += await clients.during(duration_s / _REPORTS)
                measurement.record(watch.levels, process.counts)
                print(measurement)  # noqa: T201
            await process.stop()
            await check_recovery(measurement, clients, watch)
            measurement.assert_right_texts()
            measurement.assert_memory_limits(num_attackers=3)
            assert measurement.levels.reported_stall_cpu_s < MAX_STALL_CPU_S
