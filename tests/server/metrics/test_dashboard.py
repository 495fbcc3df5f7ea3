"""The dashboard in deploy/grafana uses only metrics and labels that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from llava_server.engine_metrics import COUNTERS, GAUGES
from llava_server.metrics import Metrics

FILE = Path(__file__).parents[3] / "deploy" / "grafana" / "dashboard.json"
PANELS: list[dict[str, Any]] = json.loads(FILE.read_text("utf-8"))["panels"]
LABELS = {"kind", "le", "model_name", "finished_reason", "code", "worker", "phase", "state", "outcome"}


def series() -> set[str]:
    """Return the names of all series that a controller can export, including engine metrics."""
    names = {f"llava_engine_{name}" for name, _ in GAUGES.values()}
    names |= {f"llava_engine_{name}_total" for name, _ in COUNTERS.values()}
    names.add("llava_engine_phase_seconds_total")
    for family in Metrics().registry.collect():
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
        names |= {family.name + suffix for suffix in suffixes}
    return names


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_uses_only_existing_metrics_and_labels(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        used = set(re.findall(r"\bllava_\w+", target["expr"]))
        assert used
        assert used <= series()
        for labels in re.findall(r"by \(([^)]*)\)", target["expr"]):
            assert set(labels.split(", ")) <= LABELS
        assert target["expr"].count("(") == target["expr"].count(")")


def test_removed_metrics_are_detected() -> None:
    assert "llava_time_to_first_token" not in series()
    assert "llava_engine_steps" not in series()


def test_panels_have_distinct_positions_and_titles() -> None:
    positions = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in PANELS]
    assert len(set(positions)) == len(PANELS) == len({panel["title"] for panel in PANELS})
