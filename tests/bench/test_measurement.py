"""A comparison with llava-serve and a mini checkpoint, and with servers that cannot be measured."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench.checkpoint import write_checkpoint
from bench.serving.measurement import measure_target
from bench.serving.served_model import ServedModel
from bench.serving.target import Target, Unavailable
from bench.serving.targets import all_targets
from bench.serving.workloads import comparison
from bench.shape import MINI

# Lists a model, and returns status 503 for all other requests.
WITHOUT_WORKER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b'{"object": "list", "data": [{"id": "x", "object": "model", "created": 0, "owned_by": "x"}]}'
        self.send_response(200); self.send_header("content-length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def do_POST(self):
        self.send_response(503); self.send_header("content-length", "0"); self.end_headers()
    def log_message(self, *a): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_a_server_is_started_twice_and_measured_with_its_weights_cache(tmp_path: Path) -> None:
    folder, cache = tmp_path / "mini", tmp_path / "cache"
    write_checkpoint(folder, MINI)
    model = ServedModel(folder=folder, shape=MINI, num_at_once=2, tokens_per_request=128)
    target = all_targets(model)["llava-serve-fp32"]
    environment = {**target.environment, "LLAVA_WEIGHTS_CACHE": str(cache)}
    target = replace(target, name="llava-serve-test", cache=cache, environment=environment)

    workloads = {name: load.quick() for name, load in comparison().items() if name in ("new", "same8")}
    results = measure_target(target, workloads, idle_s=0)

    assert not cache.exists()
    assert [start["ready_s"] < start["first_response_s"] for start in results["starts"]] == [True, True]
    assert results["memory"]["used"]["rss_bytes"] >= results["memory"]["used"]["pss_bytes"] > 1 << 26
    assert results["server_command"].startswith("LLAVA_SPECULATION=off ")
    assert {name: each["num_complete"] for name, each in results["workloads"].items()} == {
        "new": 1,
        "same8": 2,
    }
    assert results["workloads"]["new"]["prompt_tokens"]["max"] < 128


def test_a_server_that_rejects_the_first_request_is_unavailable() -> None:
    target = Target(
        name="test-without-worker",
        title="test",
        bits=16,
        command=lambda port: [sys.executable, "-c", WITHOUT_WORKER, str(port)],
    )
    with pytest.raises(Unavailable, match="did not respond to the first request: .*503"):
        measure_target(target, comparison(), idle_s=0)
