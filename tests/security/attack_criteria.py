"""What an attack must not do to a server and its other clients, and the measurement that checks it.

The measurement alternates undisturbed and attacked intervals within one run. Other programs on the machine
also delay requests, so sampling continues for up to five rounds until the percentiles of all samples meet the
limit.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.machine_speed import scaled
from tests.security.attacked_site import REDIS_LIMIT_BYTES, Attackers
from tests.security.attacks import AttackName
from tests.security.monitor import Levels, Monitor
from tests.security.victim import Response, Victim, of_kind, p50_s, p95_s

__all__ = ["Measurement", "check_recovery", "measure"]

MAX_SLOWDOWN = 2.0
MAX_STALL_CPU_S = 0.5
MAX_RSS_GROWTH_BYTES = 300 << 20
MAX_RSS_GROWTH_AFTER_BYTES = 150 << 20  # the allocator does not return all memory to the system
RECOVERY_S = 60.0
_MAX_ROUNDS = 5
_MAX_EXTENSIONS = 60
_REJECTIONS = ("413", "429")  # of this client
_MIN_REJECTIONS = 30
_INTERVAL_S = 1.5
_RECOVERY_INTERVAL_S = 0.5


@dataclass
class Measurement:
    """The responses in undisturbed and in attacked intervals, and the highest levels during the attacks."""

    rss_before_bytes: int
    calm: list[Response] = field(default_factory=list)
    attacked: list[Response] = field(default_factory=list)
    levels: Levels = field(default_factory=Levels)
    counts: dict[AttackName, dict[str, int]] = field(default_factory=dict)

    @property
    def slowdown(self) -> float:
        """The larger of the slowdowns of requests with and without images."""
        return max(
            p95_s(of_kind(self.attacked, has_image)) / p95_s(of_kind(self.calm, has_image))
            for has_image in (False, True)
        )

    def record(self, levels: Levels, counts: Mapping[AttackName, Mapping[str, int]]) -> None:
        """Record the levels of an attacked interval and the number of responses since the attack began."""
        self.levels = self.levels.maximum(levels)
        self.counts = {name: dict(each) for name, each in counts.items()}

    def assert_met(self) -> None:
        """Check all limits that apply during an attack."""
        self.assert_right_texts()
        assert self.slowdown <= MAX_SLOWDOWN, self
        assert self.levels.reported_stall_cpu_s < MAX_STALL_CPU_S, self
        self.assert_memory_limits()

    def assert_right_texts(self) -> None:
        errors = [each.error for each in (*self.calm, *self.attacked) if each.error]
        assert not errors, f"{len(errors)} responses, for example {errors[:3]}"

    def assert_memory_limits(self, *, num_attackers: int = 1) -> None:
        """Check that each attacker uses no more memory than a single one may."""
        growth_bytes = self.levels.rss_bytes - self.rss_before_bytes
        assert growth_bytes < MAX_RSS_GROWTH_BYTES * num_attackers, self
        assert self.levels.redis_bytes < REDIS_LIMIT_BYTES, self

    def __str__(self) -> str:
        lines = [
            f"{phase}, {kind}: first token after {p50_s(chosen):.3f} s (median) and {p95_s(chosen):.3f} s "
            f"(p95) in {len(chosen)} responses"
            for phase, responses in (("undisturbed", self.calm), ("attacked", self.attacked))
            for kind in ("text", "image")
            for chosen in [of_kind(responses, kind == "image")]
        ]
        grown_bytes = self.levels.rss_bytes - self.rss_before_bytes
        return "\n".join([*lines, f"{self.levels}, RSS grew by {grown_bytes >> 20} MiB", f"{self.counts}"])


async def measure(
    victim: Victim,
    attackers: Attackers,
    monitor: Monitor,
    chosen: Sequence[tuple[AttackName, int]],
    *,
    num_requests: int,
) -> Measurement:
    """Measure undisturbed and attacked intervals alternately, and check that the server recovers.

    An attack lasts until it has sent ``num_requests`` requests or held as many connections, or most of its
    requests are rejected, and then for one more interval.
    """
    measurement = Measurement(monitor.rss_bytes)
    for _ in range(_MAX_ROUNDS):
        measurement.calm += await victim.during(_INTERVAL_S)
        monitor.reset()
        await attackers.start(chosen)
        for _ in range(_MAX_EXTENSIONS):
            is_complete = all(_is_complete(each, num_requests) for each in attackers.counts.values())
            measurement.attacked += await victim.during(_INTERVAL_S)
            if is_complete:
                break
        measurement.record(monitor.levels, attackers.counts)
        await attackers.stop()
        await check_recovery(measurement, victim, monitor)
        if measurement.slowdown <= MAX_SLOWDOWN:
            break
    return measurement


def _is_complete(counts: Counter[str], num_requests: int) -> bool:
    num_rejected = sum(counts[status] for status in _REJECTIONS)
    is_rejected = num_rejected >= max(_MIN_REJECTIONS, counts["sent"] / 2)
    return is_rejected or counts["sent"] + counts["held"] >= num_requests


async def check_recovery(measurement: Measurement, victim: Victim, monitor: Monitor) -> None:
    """Check that everything returns to the initial level within a minute after an attack."""
    limit_s = p95_s(measurement.calm) * MAX_SLOWDOWN
    deadline = time.monotonic() + scaled(RECOVERY_S)
    while True:
        after = await victim.during(_RECOVERY_INTERVAL_S)
        growth_bytes = monitor.rss_bytes - measurement.rss_before_bytes
        if p95_s(after) <= limit_s and growth_bytes < MAX_RSS_GROWTH_AFTER_BYTES:
            return
        assert time.monotonic() < deadline, (
            f"p95 is {p95_s(after):.3f} s and RSS {growth_bytes >> 20} MiB larger than before\n{measurement}"
        )
