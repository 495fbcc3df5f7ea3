"""GuideLLM measures the server with synthetic prompts and with images."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from scene import IMAGE, MODEL

PROGRAM = Path(sys.executable).with_name("guidellm")
TOKENIZER = IMAGE.parents[1] / "worker" / "llava_worker" / "tiny"


def _measure(data: str, *options: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(str(PROGRAM), "run", "--disable-console"),
            *("--backend", f"kind=openai_http,target={os.environ['ANTHROPIC_BASE_URL']},model={MODEL}"),
            *("--tokenizer", f"kind=huggingface_auto,model={TOKENIZER}"),
            *("--profile", "kind=synchronous", "--constraint", "kind=max_requests,count=3"),
            *("--data", data, "--output", f"kind=json,path={folder}/report.json"),
            *options,
        ]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout[-1500:] + result.stderr[-2500:]
        report: dict[str, Any] = json.loads((Path(folder) / "report.json").read_text())
    return report


def benchmark() -> None:
    report = _measure("kind=synthetic_text,prompt_tokens=20,output_tokens=5")
    requests = report["benchmarks"][0]["metrics"]["request_totals"]
    assert requests["successful"] == 3 and requests["errored"] == 0, requests


def image_benchmark() -> None:
    report = _measure("kind=synthetic_image,width=64,height=64")
    requests = report["benchmarks"][0]["metrics"]["request_totals"]
    assert requests["successful"] == 3 and requests["errored"] == 0, requests
