"""AIPerf measures the server on several endpoints, with images."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from scene import IMAGE, MODEL

PROGRAM = Path(sys.executable).with_name("aiperf")
TOKENIZER = IMAGE.parents[1] / "worker" / "llava_worker" / "tiny"


def _measure(endpoint: str, *options: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(str(PROGRAM), "profile", "--model", MODEL, "--url", os.environ["ANTHROPIC_BASE_URL"]),
            *("--endpoint-type", endpoint, "--tokenizer", str(TOKENIZER), "--ui", "none"),
            *("--request-count", "3", "--concurrency", "1", "--artifact-dir", folder),
            *("--prompt-input-tokens-mean", "20", "--output-tokens-mean", "5", *options),
        ]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout[-1500:] + result.stderr[-1500:]
        [report] = Path(folder).rglob("profile_export_aiperf.json")
        measured = json.loads(report.read_text())
        assert measured["request_count"]["avg"] == 3, measured


def benchmark() -> None:
    _measure("chat")


def streaming() -> None:
    _measure("chat", "--streaming")


def image_input() -> None:
    _measure("chat", "--streaming", "--image-width-mean", "64", "--image-height-mean", "64")


def completions() -> None:
    _measure("completions", "--streaming")


def responses() -> None:
    _measure("responses", "--streaming")


def messages() -> None:
    _measure("messages", "--streaming")


def embeddings() -> None:
    _measure("embeddings")
