"""The scaling decisions of KEDA and of the HorizontalPodAutoscaler that it creates, with a simulated clock.

Sources: KEDA's documentation ("Scaling Deployments": activation and scaling phases, ``cooldownPeriod``,
``initialCooldownPeriod``) and the Kubernetes documentation of the HorizontalPodAutoscaler (algorithm details,
tolerance, default scaling policies and stabilization window).
"""

from __future__ import annotations

import math
import re
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.deploy.helm import Manifest

__all__ = ["Autoscaler", "MetricNotFoundError", "metric_value"]

_SERIES = re.compile(r"(?:max\()?(\w+)\{([^{}]*)\}\)?")
_MATCHER = re.compile(r'(\w+)="([^"]*)"')
_TOLERANCE = 0.1
_MAX_ADDED_PODS, _MAX_GROWTH = 4, 2  # per 15 seconds; the larger number of pods is allowed


class MetricNotFoundError(Exception):
    """The metrics contain no series for a trigger. KEDA then does not change the number of replicas."""


def metric_value(text: str, selector: str) -> float:
    """Return the value that a trigger reads from metrics in Prometheus' format.

    ``selector`` is a series with labels, or the maximum of such a series. Raises MetricNotFoundError.
    """
    match = _SERIES.fullmatch(selector)
    assert match is not None, selector
    name, wanted = match[1], dict(_MATCHER.findall(match[2]))
    values = [
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and wanted.items() <= sample.labels.items()
    ]
    if not values:
        raise MetricNotFoundError(selector)
    return max(values)


class Autoscaler:
    """The state of one ScaledObject. Times are in seconds since the object was created."""

    def __init__(self, scaled_object: Manifest, *, replicas: int) -> None:
        self._spec: dict[str, Any] = scaled_object["spec"]
        self.replicas = replicas
        self._min_replicas = int(scaled_object["spec"]["minReplicaCount"])
        self._last_active_s: float | None = None
        self._recommended: list[tuple[float, int]] = []  # (time, number of replicas)

    def poll(self, metrics: str, now_s: float) -> int:
        """Apply the decision for the current metrics, and return the number of replicas."""
        loads = []  # of each trigger: (value, target)
        is_active = False
        for trigger in self._spec["triggers"]:
            metadata = trigger["metadata"]
            assert trigger["metricType"] == "AverageValue"
            value = metric_value(metrics, metadata.get("valueLocation") or metadata["query"])
            activation = metadata.get("activationTargetValue") or metadata["activationThreshold"]
            is_active |= value > float(activation)
            loads.append((value, float(metadata.get("targetValue") or metadata["threshold"])))
        if is_active:
            self._last_active_s = now_s
            self.replicas = self.replicas or max(self._min_replicas, 1)
        elif self._has_cooled_down(now_s) and self._min_replicas == 0:
            self.replicas = 0
        if self.replicas:
            self.replicas = self._horizontal(loads, now_s)
        return self.replicas

    def _has_cooled_down(self, now_s: float) -> bool:
        if self._last_active_s is None:
            return now_s > float(self._spec["initialCooldownPeriod"])
        return now_s > self._last_active_s + float(self._spec["cooldownPeriod"])

    def _horizontal(self, loads: list[tuple[float, float]], now_s: float) -> int:
        """Return the number of replicas according to the HorizontalPodAutoscaler, which is at least 1."""
        wanted = 1
        for value, target in loads:
            is_close = abs(value / (target * self.replicas) - 1) <= _TOLERANCE
            wanted = max(wanted, self.replicas if is_close else math.ceil(value / target))
        wanted = min(max(wanted, self._min_replicas), int(self._spec["maxReplicaCount"]))
        self._recommended.append((now_s, wanted))
        if wanted > self.replicas:
            return min(wanted, max(self.replicas + _MAX_ADDED_PODS, self.replicas * _MAX_GROWTH))
        behavior = self._spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        window_s = behavior["scaleDown"]["stabilizationWindowSeconds"]
        recent = [number for time_s, number in self._recommended if time_s >= now_s - window_s]
        return min(self.replicas, max(recent))
