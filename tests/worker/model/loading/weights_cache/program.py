"""A program that loads a model with a weights cache, reports how, and exits when its input is closed.

It prints a JSON object: whether the checkpoint was read, a digest of the parameters, and the resident and the
proportional size of the mapped file in bytes, which it measures after a line of input.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import torch
from llava_worker.model.config.model_config import read_config, read_image_config
from llava_worker.model.llava import Llava
from llava_worker.model.loading import cached_file
from llava_worker.model.loading.weights import load_weights
from llava_worker.model.loading.weights_cache import WeightsCache
from llava_worker.model.quantization.precision import choose_precision

CPU = torch.device("cpu")


def file_sizes() -> tuple[int, int]:
    """Return the resident and the proportional size of mapped files of packed weights, in bytes."""
    sizes = {"Rss:": 0, "Pss:": 0}
    is_file = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            is_file = line.endswith(".weights")
        elif is_file and words[0] in sizes:
            sizes[words[0]] += 1024 * int(words[1])
    return sizes["Rss:"], sizes["Pss:"]


def main() -> None:
    folder, cache, precision = Path(sys.argv[1]), Path(sys.argv[2]), choose_precision(sys.argv[3], CPU)
    cached_file._TRANSPARENT_HUGE_PAGES = Path("/does/not/exist")  # so that small files are mapped too
    torch.set_num_threads(1)
    sys.stdin.readline()
    model = Llava(read_config(folder), read_image_config(folder), precision=precision, device=CPU)
    progress: list[int] = []
    weights = load_weights(
        model,
        folder,
        cache=WeightsCache(cache),
        on_progress=lambda done, total, count: progress.append(done),
    )
    if weights.unstored is not None:
        weights.unstored.store_now()
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.data.contiguous().view(-1).view(torch.uint8).numpy().data)
    print("loaded", flush=True)  # noqa: T201 (its output is the report)
    sys.stdin.readline()
    resident, proportional = file_sizes()
    report = {
        "is_read": bool(progress),
        "digest": digest.hexdigest(),
        "resident": resident,
        "proportional": proportional,
    }
    print(json.dumps(report), flush=True)  # noqa: T201
    sys.stdin.read()


if __name__ == "__main__":
    main()
