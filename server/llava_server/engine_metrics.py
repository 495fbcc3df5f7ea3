"""Metrics of the workers' engines: the statistics in the heartbeats, read at each scrape.

Nothing is stored here. The series of a worker end with it; a restarted worker has another name and begins at
zero, as Prometheus' ``rate`` and ``sum`` expect. The tables below and the live workers decide which series
exist, never the content of a heartbeat: unknown statistics are ignored, missing ones have no series.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from llava_wire.messages.heartbeat import Heartbeat
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from llava_server.worker_registry import WorkerRegistry

__all__ = ["COUNTERS", "GAUGES", "MAX_WORKERS", "PHASES", "STARTS", "EngineCollector"]

MAX_WORKERS = 256  # the number of workers that have series

# statistic in the heartbeat -> (metric name without llava_engine_, help)
GAUGES = {
    "num_waiting": ("sequences_waiting", "Sequences in the worker that hold no memory yet."),
    "num_running": ("sequences_running", "Sequences that hold blocks of the KV cache."),
    "num_blocks": ("kv_blocks", "Blocks of the KV cache."),
    "num_free_blocks": ("kv_blocks_free", "Of these, blocks to be had at once; remembered prefixes too."),
    "image_cache_bytes": ("image_cache_bytes", "Picture features kept for the next request."),
}
COUNTERS = {
    "num_steps_total": ("steps", "Forward passes."),
    "num_batched_sequences_total": ("batched_sequences", "Sequences in a step, added up over the steps."),
    "num_prefill_tokens_total": ("prefill_tokens", "Prompt tokens that went through the model."),
    "num_decode_tokens_total": ("decode_tokens", "Answer tokens that went through the model."),
    "num_generated_tokens_total": ("generated_tokens", "Tokens chosen."),
    "num_cached_tokens_total": ("prefix_cache_hit_tokens", "Tokens found in the prefix cache."),
    "num_preemptions_total": ("preemptions", "Sequences that lost their blocks to older ones."),
    "num_draft_tokens_total": ("draft_tokens", "Tokens guessed ahead."),
    "num_accepted_tokens_total": ("accepted_tokens", "Of these, tokens guessed right."),
    "num_encoded_images_total": ("encoded_images", "Pictures that went through the vision tower."),
    "num_image_cache_hits_total": ("image_cache_hits", "Pictures whose features were still there."),
    "num_image_cache_misses_total": ("image_cache_misses", "Pictures that had to be encoded."),
    "num_image_cache_evictions_total": ("image_cache_evictions", "Pictures dropped to make room."),
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
    """Creates the series at each scrape. Above ``MAX_WORKERS`` workers, only the oldest have series."""

    registry: WorkerRegistry

    def describe(self) -> list[GaugeMetricFamily]:
        """Return nothing: the default would collect before there is a worker."""
        return []

    def collect(self) -> Iterator[_Family]:
        heartbeats = sorted(self.registry.heartbeats, key=lambda beat: (beat.started_at, beat.worker_id))
        yield GaugeMetricFamily(
            "llava_engine_workers_hidden",
            f"Live workers without series here: more than {MAX_WORKERS}.",
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
            "llava_engine_phase_seconds", "Host time in the phases of a step.", labels=(*_LABELS, "phase")
        )
        yield _with_samples(phases, heartbeats, {stat: (phase,) for stat, phase in PHASES.items()})
        starts = GaugeMetricFamily(
            "llava_engine_start_seconds", "Until the model was ready.", labels=(*_LABELS, "part")
        )
        yield _with_samples(starts, heartbeats, {stat: (part,) for stat, part in STARTS.items()})


def _with_samples(family: _Family, heartbeats: list[Heartbeat], stats: dict[str, tuple[str, ...]]) -> _Family:
    """Add a sample for each statistic that a worker sends; ``stats`` maps them to their own labels."""
    for beat in heartbeats:
        for stat, labels in stats.items():
            if stat in beat.stats:
                family.add_metric([beat.model, beat.worker_id, *labels], beat.stats[stat])
    return family
