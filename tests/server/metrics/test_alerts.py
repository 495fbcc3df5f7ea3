"""The rules in deploy/prometheus use only metrics, labels and error codes that exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from llava_server.engine_metrics import GAUGES
from llava_server.errors import ERRORS
from llava_server.metrics import Metrics

FOLDER = Path(__file__).parents[3] / "deploy" / "prometheus"
RULES: list[dict[str, Any]] = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"][0]["rules"]


def series() -> set[str]:
    """Return the names of all series that a controller can export, including those without samples."""
    names = set()
    for family in Metrics().registry.collect():
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
        names |= {family.name + suffix for suffix in suffixes}
    engine = {*(name for name, _ in GAUGES.values()), "kernels"}  # read from heartbeats at each scrape
    return names | {f"llava_engine_{name}" for name in engine}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_a_rule_uses_only_existing_metrics_and_codes(rule: dict[str, Any]) -> None:
    used = set(re.findall(r"\bllava_\w+", rule["expr"]))
    assert used <= series()
    for codes in re.findall(r'code=~?"([^"]+)"', rule["expr"]):
        assert set(codes.split("|")) <= set(ERRORS)
    assert rule["expr"].count("(") == rule["expr"].count(")")
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"]["summary"]


@pytest.mark.parametrize(
    "metric", ["num_unavailable_queue_shards", "image_store_errors_total", "redis_errors_total", "queue_up"]
)
def test_every_part_of_the_queue_has_an_alert_and_a_panel(metric: str) -> None:
    dashboard = (FOLDER.parent / "grafana" / "dashboard.json").read_text("utf-8")
    assert f"llava_{metric}" in dashboard
    assert any(f"llava_{metric}" in rule["expr"] for rule in RULES)


def test_rules_for_models_distinguish_releases() -> None:
    assert [rule["alert"] for rule in RULES if "by (model_name)" in rule["expr"]] == []
    assert any("by (namespace, service, model_name)" in rule["expr"] for rule in RULES)


def test_removed_metrics_are_detected() -> None:
    assert {"llava_time_to_first_token_seconds_bucket", "llava_queue_up"} <= series()
    assert "llava_time_to_first_token" not in series()


def test_prometheus_loads_the_rules_and_scrapes_the_admin_port_of_compose() -> None:
    config = yaml.safe_load((FOLDER / "prometheus.yaml").read_text("utf-8"))
    assert config["rule_files"] == ["alerts.yaml"]
    compose = yaml.safe_load((FOLDER.parents[1] / "docker-compose.yml").read_text("utf-8"))
    [target] = config["scrape_configs"][0]["dns_sd_configs"]
    environment = compose["services"]["server"]["environment"]
    assert str(target["port"]) == environment["LLAVA_ADMIN_PORT"]
    assert target["names"] == [environment["LLAVA_ADMIN_HOST"]]
