"""Each attack on the availability of the service leaves other clients nearly undisturbed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.exhaustive import sampled
from tests.security.attack_criteria import measure
from tests.security.attacked_site import ANONYMOUS, AttackedSite, attacked_site, attackers
from tests.security.attacks import ATTACKS, NUM_HELD
from tests.security.monitor import monitor
from tests.security.victim import victim

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

NUM_REQUESTS = {
    "nested_arrays": 6,
    "many_parts": 8,
    "priority": 256,
    "slow_images": 8,
    "stored_responses": 300,
    "unread_downloads": 40,
    "slow_uploads": NUM_HELD,
    "shared_result": 1600,
    "idle_connections": NUM_HELD,
    "aborted_requests": 1000,
    "pipelined_requests": 128,
}
# Only with --exhaustive. All attacks at once include these, too (test_mixed_attack.py).
SLOW = {"aborted_requests", "stored_responses", "shared_result"}


@pytest.fixture(scope="module")
def site() -> Iterator[AttackedSite]:
    with tempfile.TemporaryDirectory() as folder, attacked_site(Path(folder)) as site:
        yield site


@pytest.mark.timeout(300)
@pytest.mark.parametrize("attack", sampled(ATTACKS, set(ATTACKS) - SLOW))
async def test_other_clients_are_served_during_an_attack(site: AttackedSite, attack: str) -> None:
    key = ANONYMOUS if attack == "idle_connections" else 0
    async with (
        attackers(site) as process,
        monitor(site) as watch,
        victim(site, num_streams=8, max_tokens=3) as clients,
    ):
        measurement = await measure(
            clients, process, watch, [(attack, key)], num_requests=NUM_REQUESTS[attack]
        )
        print(measurement)  # noqa: T201
        measurement.assert_met()
        if attack == "shared_result":
            assert measurement.counts[attack].get("429"), "all readers of one result were accepted"
