"""The Prometheus metrics of this process.

Names, units and buckets follow vLLM's conventions, with the prefix ``llava_``. Each app has its own registry.
Label values come from fixed sets (served models, error codes, finish reasons) and never from requests, so
clients cannot increase the number of series.
"""

from __future__ import annotations

import collections
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

from llava_wire.messages.event import Event
from llava_wire.operator.inspector import RedisMemory
from llava_wire.stores.batches import BatchStats
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

__all__ = ["ChoiceMetrics", "EventObserver", "Metrics", "ModelLoad", "NoMetrics", "RedisErrorSource"]

_TTFT_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
_TOKEN_S = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
_REQUEST_S = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
)  # fmt: skip
_BATCH_STATES = ("validating", "in_progress", "cancelling")
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000)


class _Registry(CollectorRegistry):
    """A registry whose metrics all have the prefix ``llava_``."""

    def histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        """Register a histogram with the label ``model_name``."""
        return Histogram(f"llava_{name}", text, ("model_name",), buckets=buckets, registry=self)

    def counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(f"llava_{name}", text, labels, registry=self)

    def gauge(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(f"llava_{name}", text, labels, registry=self)


class TokenDurations:
    """The histogram of one model. Only the event loop updates it, so it needs no lock."""

    def __init__(self, buckets: Sequence[float]) -> None:
        self._buckets = buckets
        self.counts = [0] * (len(buckets) + 1)  # the last one counts durations above all buckets
        self.sum_s = 0.0

    def observe(self, seconds: float, num_tokens: int) -> None:
        """Add tokens that were generated in this time."""
        if num_tokens:
            self.counts[bisect_left(self._buckets, seconds / num_tokens)] += num_tokens
            self.sum_s += seconds


class TokenHistogram(Collector):
    """A histogram that is updated for each token of all streams, at a fraction of the cost of Histogram."""

    def __init__(self, name: str, description: str, buckets: Sequence[float]) -> None:
        self._name = name
        self._description = description
        self._buckets = buckets
        self._models: dict[str, TokenDurations] = {}

    def of_model(self, model: str) -> TokenDurations:
        """Return the histogram of a model."""
        return self._models.setdefault(model, TokenDurations(self._buckets))

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._description, labels=("model_name",))
        bounds = [*map(floatToGoString, self._buckets), "+Inf"]
        for model, durations in self._models.items():
            buckets = list(zip(bounds, accumulate(durations.counts), strict=True))
            family.add_metric((model,), buckets, durations.sum_s)
        yield family


class RedisErrorSource(Protocol):
    """An object that counts the errors of its connections to Redis."""

    @property
    def num_redis_errors(self) -> collections.Counter[str]: ...


class _ErrorsByKind(Collector):
    """Exports the errors that other objects count, by kind. ``count`` returns the numbers so far."""

    def __init__(self, name: str, description: str) -> None:
        self._name = name
        self._description = description
        self.count: Callable[[], collections.Counter[str]] = collections.Counter

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(self._name, self._description, labels=("kind",))
        for kind, number in sorted(self.count().items()):
            family.add_metric((kind,), number)
        yield family


@dataclass(frozen=True, kw_only=True)
class ModelLoad:
    """The jobs and workers of one model. All servers that use the same queue report about the same values.

    ``num_tokens_waiting`` is the estimated number of tokens in the waiting jobs. ``is_on_demand`` is whether
    the model's workers are started on demand.
    """

    num_running: int
    num_waiting: int
    num_tokens_waiting: float
    num_workers: int
    is_on_demand: bool


class Metrics:
    """All metrics of this process. Each is updated through one method or attribute."""

    def __init__(self) -> None:
        self.registry = registry = _Registry()
        self._redis_errors = _ErrorsByKind(
            "llava_redis_errors", "Number of failed Redis commands, by the first word of the error reply."
        )
        self._image_store_errors = _ErrorsByKind(
            "llava_image_store_errors", "Number of failed operations of a separate image store, by kind."
        )
        registry.register(self._redis_errors)
        registry.register(self._image_store_errors)
        self._add_request_metrics(registry)
        self._add_stage_metrics(registry)
        self._add_queue_metrics(registry)

    def _add_request_metrics(self, registry: _Registry) -> None:
        model, histogram, counter = ("model_name",), registry.histogram, registry.counter
        self._time_to_first_token = histogram(
            "time_to_first_token_seconds",
            "Time from the arrival of a request to its first token, in seconds.",
            _TTFT_S,
        )
        self._inter_token_latency = TokenHistogram(
            "llava_inter_token_latency_seconds",
            "Time between two consecutive tokens of a request, in seconds.",
            _TOKEN_S,
        )
        registry.register(self._inter_token_latency)
        self._request_latency = histogram(
            "e2e_request_latency_seconds",
            "Time from the arrival of a request to its last token, in seconds.",
            _REQUEST_S,
        )
        self._request_prompt_tokens = histogram(
            "request_prompt_tokens", "Number of prompt tokens per request.", _TOKENS
        )
        self._request_generation_tokens = histogram(
            "request_generation_tokens", "Number of generated tokens per request.", _TOKENS
        )
        self._prompt_tokens = counter("prompt_tokens", "Number of prompt tokens in finished requests.", model)
        self._cached_tokens = counter(
            "prompt_tokens_cached",
            "Number of prompt tokens found in a prefix cache, for finished requests.",
            model,
        )
        self._generation_tokens = counter(
            "generation_tokens", "Number of generated tokens in finished requests.", model
        )
        self._success = counter(
            "request_success",
            "Number of requests that finished without an error.",
            ("model_name", "finished_reason"),
        )
        self._errors = counter("request_errors", "Number of requests that failed with an error.", ("code",))
        self._cancelled = counter(
            "requests_cancelled", "Number of requests that were cancelled because the client disconnected."
        )
        self._image_cache_queries = counter(
            "mm_cache_queries", "Number of lookups in the cache of preprocessed images."
        )
        self._image_cache_hits = counter(
            "mm_cache_hits", "Number of hits in the cache of preprocessed images."
        )
        self.image_seconds = Histogram(
            "llava_image_decode_seconds",
            "Time to decode and preprocess one image, including the wait for a decoder process, in seconds.",
            buckets=_TTFT_S[:16],
            registry=registry,
        )

    def _add_stage_metrics(self, registry: _Registry) -> None:
        self._slot_wait = Histogram(
            "llava_stage_wait_seconds",
            "Time that requests waited for a slot of a stage of request processing, in seconds.",
            ("stage",),
            buckets=_TTFT_S[:18],
            registry=registry,
        )
        self._refused_slots = registry.counter(
            "stage_rejections",
            "Number of requests that were rejected while they waited for a slot of a stage, by reason.",
            ("stage", "reason"),
        )

    def _add_queue_metrics(self, registry: _Registry) -> None:
        model, counter, gauge = ("model_name",), registry.counter, registry.gauge
        self._running = gauge("num_requests_running", "Number of jobs assigned to workers.", model)
        self._waiting = gauge("num_requests_waiting", "Number of jobs waiting for a worker.", model)
        self._tokens_waiting = gauge(
            "num_tokens_waiting", "Estimated number of tokens in jobs waiting for a worker.", model
        )
        self._on_demand = gauge(
            "on_demand_model", "1 if the workers of the model are started on demand, otherwise 0.", model
        )
        self._workers = gauge("num_workers", "Number of live workers that accept jobs.", model)
        self._batches = gauge("batches", "Number of unfinished batches across all API keys.", ("state",))
        self._batch_lines = gauge("batch_lines", "Number of lines in unfinished batches.", ("state",))
        self._ended_batches = counter(
            "batches_ended", "Number of batches that ended on this controller, by final state.", ("state",)
        )
        self._ended_lines = counter(
            "batch_lines_ended", "Number of batch results written by this controller.", ("outcome",)
        )
        self._redis_used = gauge("redis_used_bytes", "Memory used by Redis, in bytes.")
        self._redis_max = gauge("redis_max_bytes", "Redis's maxmemory in bytes, or 0 if it has no limit.")
        self._redis_stored = gauge(
            "redis_stored_bytes", "Size of the data that clients have stored in Redis, in bytes.", ("data",)
        )
        self._redis_budget = gauge(
            "redis_budget_bytes", "Maximum size of the data that clients can store in Redis.", ("data",)
        )
        self.open_requests = gauge(
            "num_open_requests", "Number of POST requests that this controller is processing."
        )
        self.open_connections = gauge("open_connections", "Number of open client connections.")
        self._closed_connections = counter(
            "connections_closed",
            "Number of client connections that were closed or rejected because of a limit, by reason.",
            ("reason",),
        )
        self.event_loop_stall = gauge(
            "event_loop_stall_seconds", "Longest stall of the event loop in the last minute, in seconds."
        )
        self.event_loop_stall_cpu = gauge(
            "event_loop_stall_cpu_seconds",
            "Longest stall of the event loop in the last minute, in seconds of this process's CPU time.",
        )
        self.queue_up = gauge("queue_up", "1 if the job queue is available, otherwise 0.")
        self.unavailable_shards = gauge(
            "num_unavailable_queue_shards",
            "Number of queue shards that are unavailable.",
        )
        self._task_crashes = counter(
            "task_crashes", "Number of crashes of background tasks in this controller.", ("task",)
        )
        self.jobs_reaped = counter(
            "jobs_reaped", "Number of jobs reclaimed by this controller from lost or hung workers."
        )

    def observe_first_token(self, model: str, seconds: float) -> None:
        self._time_to_first_token.labels(model).observe(seconds)

    def inter_token_latency(self, model: str) -> TokenDurations:
        """Return the histogram of the time between two consecutive tokens of a response, in seconds."""
        return self._inter_token_latency.of_model(model)

    def request_finished(
        self,
        model: str,
        reason: str,
        seconds: float,
        *,
        num_prompt_tokens: int,
        num_cached_tokens: int,
        num_generated_tokens: int,
    ) -> None:
        """Record a choice that finished without an error.

        ``seconds`` is the time since its request arrived.
        """
        self._request_latency.labels(model).observe(seconds)
        self._success.labels(model, reason).inc()
        self._request_prompt_tokens.labels(model).observe(num_prompt_tokens)
        self._request_generation_tokens.labels(model).observe(num_generated_tokens)
        self._prompt_tokens.labels(model).inc(num_prompt_tokens)
        self._cached_tokens.labels(model).inc(num_cached_tokens)
        self._generation_tokens.labels(model).inc(num_generated_tokens)

    def request_failed(self, code: str) -> None:
        self._errors.labels(code).inc()

    def request_cancelled(self) -> None:
        self._cancelled.inc()

    def connection_closed(self, reason: str) -> None:
        """Count a connection that a limit closed. ``reason`` must be one of a few fixed names."""
        self._closed_connections.labels(reason).inc()

    def image_cache_lookup(self, *, is_hit: bool) -> None:
        self._image_cache_queries.inc()
        if is_hit:
            self._image_cache_hits.inc()

    def slot_acquired(self, stage: str, wait_s: float) -> None:
        """Record how long a request waited for a slot. ``stage`` must be one of a few fixed names."""
        self._slot_wait.labels(stage).observe(wait_s)

    def slot_refused(self, stage: str, reason: str) -> None:
        """Count a request that did not get a slot. Both names must be among a few fixed names."""
        self._refused_slots.labels(stage, reason).inc()

    def task_crashed(self, task: str) -> None:
        """Count a crash of a background task. ``task`` must be one of a few fixed names."""
        self._task_crashes.labels(task).inc()

    def set_redis_errors(self, sources: Sequence[RedisErrorSource]) -> None:
        """Export the sums of the errors that these objects count."""

        def total() -> collections.Counter[str]:
            return sum((source.num_redis_errors for source in sources), collections.Counter())

        self._redis_errors.count = total

    def set_image_store_errors(self, count: Callable[[], collections.Counter[str]]) -> None:
        """Export the numbers of errors that ``count`` returns."""
        self._image_store_errors.count = count

    def set_load(self, model: str, load: ModelLoad) -> None:
        """Set the gauges for the jobs and workers of a model."""
        self._running.labels(model).set(load.num_running)
        self._waiting.labels(model).set(load.num_waiting)
        self._tokens_waiting.labels(model).set(load.num_tokens_waiting)
        self._workers.labels(model).set(load.num_workers)
        self._on_demand.labels(model).set(load.is_on_demand)

    def set_batches(self, stats: BatchStats) -> None:
        """Set the gauges for unfinished batches. Every controller reports the same values."""
        for state in _BATCH_STATES:
            self._batches.labels(state).set(stats.num_batches.get(state, 0))
        for state, number in (
            ("waiting", stats.num_waiting),
            ("completed", stats.num_completed),
            ("failed", stats.num_failed),
        ):
            self._batch_lines.labels(state).set(number)

    def set_redis_memory(self, memory: RedisMemory) -> None:
        """Set the gauges for Redis's memory. Every controller reports the same values."""
        self._redis_used.set(memory.used_bytes)
        self._redis_max.set(memory.limit_bytes)
        for data, size in memory.stored_bytes.items():
            self._redis_stored.labels(data).set(size)

    def set_redis_budgets(self, budgets: Mapping[str, int]) -> None:
        """Set the maximum size of each class of data in bytes."""
        for data, size in budgets.items():
            self._redis_budget.labels(data).set(size)

    def batch_ended(self, state: str) -> None:
        self._ended_batches.labels(state).inc()

    def batch_line_ended(self, *, is_completed: bool) -> None:
        self._ended_lines.labels("completed" if is_completed else "failed").inc()

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus text format 0.0.4."""
        return generate_latest(self.registry)


class EventObserver(Protocol):
    """An observer that receives the events of one choice in order."""

    def observe(self, event: Event) -> None: ...


class NoMetrics:
    """An observer that records nothing, for batches and for output that has already been observed."""

    def observe(self, event: Event) -> None:
        pass


class ChoiceMetrics:
    """An observer that records the latencies and token counts of one choice."""

    def __init__(self, metrics: Metrics, model: str, *, arrived_at: float) -> None:
        self._metrics = metrics
        self._model = model
        self._arrived_at = arrived_at  # time.monotonic()
        self._last_event_at: float | None = None
        self._inter_token_latency = metrics.inter_token_latency(model)

    def observe(self, event: Event) -> None:
        now = time.monotonic()
        if self._last_event_at is None:
            self._metrics.observe_first_token(self._model, now - self._arrived_at)
        else:
            self._inter_token_latency.observe(now - self._last_event_at, len(event.token_ids))
        self._last_event_at = now
        if (final := event.final) is not None and final.error is None:
            self._metrics.request_finished(
                self._model,
                final.reason.value,
                now - self._arrived_at,
                num_prompt_tokens=final.num_prompt_tokens,
                num_cached_tokens=final.num_cached_tokens,
                num_generated_tokens=event.next_offset,
            )
