"""TokenHistogram exports the same series as prometheus_client's Histogram."""

from __future__ import annotations

from llava_server.metrics import TokenHistogram
from prometheus_client import CollectorRegistry, Histogram, generate_latest

BUCKETS = (0.01, 0.025, 0.5)
DURATIONS = (0.0, 0.01, 0.0100001, 0.025, 0.3, 0.5, 0.6, 100.0)


def series(registry: CollectorRegistry) -> list[str]:
    return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]


def test_the_series_equal_those_of_a_histogram() -> None:
    registries = CollectorRegistry(), CollectorRegistry()
    histogram = Histogram("x_seconds", "Text.", ("model_name",), buckets=BUCKETS, registry=registries[0])
    tokens = TokenHistogram("x_seconds", "Text.", BUCKETS)
    registries[1].register(tokens)
    for model in ("a", "b"):
        for seconds in DURATIONS:
            histogram.labels(model).observe(seconds)
            tokens.of_model(model).observe(seconds, 1)
    assert series(registries[0]) == series(registries[1])


def test_tokens_that_arrive_together_share_the_time() -> None:
    registry = CollectorRegistry()
    registry.register(tokens := TokenHistogram("x_seconds", "Text.", BUCKETS))
    tokens.of_model("a").observe(0.06, 3)
    tokens.of_model("a").observe(0.06, 0)  # an event without tokens
    values = {
        name: registry.get_sample_value(f"x_seconds_{name}", {"model_name": "a"}) for name in ("count", "sum")
    }
    assert values == {"count": 3, "sum": 0.06}
    assert registry.get_sample_value("x_seconds_bucket", {"model_name": "a", "le": "0.025"}) == 3
    assert registry.get_sample_value("x_seconds_bucket", {"model_name": "a", "le": "0.01"}) == 0
