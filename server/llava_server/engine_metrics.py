"""The workers' engine metrics, read from the heartbeats at each scrape.

Nothing is stored here. When a worker exits, its series are no longer exported. A restarted worker has a new
name and counters that start at zero, as Prometheus' ``rate`` and ``sum`` expect. The set of series depends
only on the tables below and the live workers: unknown statistics in a heartbeat are ignored, and no series
are exported for missing statistics.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from llava_wire.messages.heartbeat import Heartbeat
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from llava_server.kernel_report import kernel_source
from llava_server.worker_registry import WorkerRegistry

__all__ = ["COUNTERS", "GAUGES", "MAX_WORKERS", "PHASES", "STARTS", "EngineCollector"]

MAX_WORKERS = 256  # maximum number of workers whose metrics are exported

# heartbeat statistic -> (metric name without the prefix llava_engine_, help text)
GAUGES = {
    "num_waiting": ("sequences_waiting", "Number of sequences that have no KV cache blocks yet."),
    "num_running": ("sequences_running", "Number of sequences that hold KV cache blocks."),
    "num_blocks": ("kv_blocks", "Total number of KV cache blocks."),
    "num_free_blocks": (
        "kv_blocks_free",
        "Number of KV cache blocks that can be allocated, including blocks that hold cached prefixes.",
    ),
    "step_s": ("step_seconds", "Typical time of an engine step, in seconds (median of the last 15 steps)."),
    "image_cache_bytes": ("image_cache_bytes", "Size of the image feature cache, in bytes."),
}
COUNTERS = {
    "num_steps_total": ("steps", "Number of engine steps (forward passes)."),
    "num_batched_sequences_total": ("batched_sequences", "Sum of the batch sizes of all steps."),
    "num_prefill_tokens_total": ("prefill_tokens", "Number of prompt tokens computed."),
    "num_decode_tokens_total": ("decode_tokens", "Number of output and draft tokens computed."),
    "num_generated_tokens_total": ("generated_tokens", "Number of tokens sampled."),
    "num_cached_tokens_total": (
        "prefix_cache_hit_tokens",
        "Number of prompt tokens found in the prefix cache.",
    ),
    "num_preemptions_total": ("preemptions", "Number of sequences preempted in favor of older sequences."),
    "num_draft_tokens_total": ("draft_tokens", "Number of draft tokens proposed."),
    "num_accepted_tokens_total": ("accepted_tokens", "Number of draft tokens accepted."),
    "num_encoded_images_total": ("encoded_images", "Number of images encoded by the vision tower."),
    "num_image_cache_hits_total": ("image_cache_hits", "Number of image feature cache hits."),
    "num_image_cache_misses_total": ("image_cache_misses", "Number of image feature cache misses."),
    "num_image_cache_evictions_total": (
        "image_cache_evictions",
        "Number of images evicted from the image feature cache.",
    ),
}
PHASES = {
    "schedule_s_total": "schedule",
    "prepare_s_total": "prepare",
    "encode_s_total": "encode",
    "forward_s_total": "forward",
    "sample_s_total": "sample",
    "postprocess_s_total": "postprocess",
}
STARTS = {
    "start_import_s": "import",
    "start_weights_s": "weights",
    "start_warmup_s": "warmup",
    "start_total_s": "total",
}
_LABELS = ("model_name", "worker")
_Family: TypeAlias = GaugeMetricFamily | CounterMetricFamily


@dataclass(frozen=True)
class EngineCollector(Collector):
    """Creates the series at each scrape. Omits all but the ``MAX_WORKERS`` oldest workers."""

    registry: WorkerRegistry

    def describe(self) -> list[GaugeMetricFamily]:
        """Return an empty list. The default implementation would call ``collect`` at registration."""
        return []

    def collect(self) -> Iterator[_Family]:
        heartbeats = sorted(self.registry.heartbeats, key=lambda beat: (beat.started_at, beat.worker_id))
        yield GaugeMetricFamily(
            "llava_engine_workers_hidden",
            f"Number of live workers beyond the limit of {MAX_WORKERS}. Their metrics are not exported.",
            max(0, len(heartbeats) - MAX_WORKERS),
        )
        heartbeats = heartbeats[:MAX_WORKERS]
        for stat, (name, text) in GAUGES.items():
            yield _with_samples(
                GaugeMetricFamily(f"llava_engine_{name}", text, labels=_LABELS), heartbeats, {stat: ()}
            )
        for stat, (name, text) in COUNTERS.items():
            yield _with_samples(
                CounterMetricFamily(f"llava_engine_{name}", text, labels=_LABELS), heartbeats, {stat: ()}
            )
        phases = CounterMetricFamily(
            "llava_engine_phase_seconds",
            "Host time spent in each phase of the engine step, in seconds.",
            labels=(*_LABELS, "phase"),
        )
        yield _with_samples(phases, heartbeats, {stat: (phase,) for stat, phase in PHASES.items()})
        starts = GaugeMetricFamily(
            "llava_engine_start_seconds",
            "Duration of each part of the worker's startup, in seconds.",
            labels=(*_LABELS, "part"),
        )
        yield _with_samples(starts, heartbeats, {stat: (part,) for stat, part in STARTS.items()})
        yield _kernels(heartbeats)


def _kernels(heartbeats: list[Heartbeat]) -> GaugeMetricFamily:
    """Return one sample for each worker that reports its kernels."""
    family = GaugeMetricFamily(
        "llava_engine_kernels",
        "The kernels of each worker. Always 1. is_fallback is true if torch kernels replace faster ones.",
        labels=(*_LABELS, "source", "is_fallback"),
    )
    for beat in heartbeats:
        if beat.kernels is not None:
            is_fallback = str(bool(beat.kernels.fallback_reason)).lower()
            family.add_metric([beat.model, beat.worker_id, kernel_source(beat.kernels), is_fallback], 1)
    return family


def _with_samples(family: _Family, heartbeats: list[Heartbeat], stats: dict[str, tuple[str, ...]]) -> _Family:
    """Add one sample to ``family`` for each statistic of each worker.

    ``stats`` maps each statistic to its additional labels.
    """
    for beat in heartbeats:
        for stat, labels in stats.items():
            if stat in beat.stats:
                family.add_metric([beat.model, beat.worker_id, *labels], beat.stats[stat])
    return family
