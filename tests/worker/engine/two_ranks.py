"""The first rank in this process and its follower, over gloo."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import torch
from llava_worker.engine.rank_group import RankGroup, Setup
from llava_worker.model.config import read_config, read_image_config
from llava_worker.model.llava import Llava
from llava_worker.model.precision import choose_precision
from llava_worker.model.tensor_parallel import TensorParallel
from llava_worker.model.weights import load_weights

CPU = torch.device("cpu")


class Pair:
    """One at a time: torch has one process group."""

    def __init__(self, folder: Path, kv_cache_dtype: str = "auto") -> None:
        self.lost = threading.Event()
        setup = Setup(
            index=0,
            size=2,
            port=0,
            device="cpu",
            precision="fp32",
            attention="sdpa",
            kv_cache_dtype=kv_cache_dtype,
            folder=str(folder),
            config_folder=str(folder),
            vision_tower=None,
            base=None,
            allow_pickle=False,
            num_threads=1,
            log_level=logging.WARNING,
        )
        self.group = RankGroup.start(setup, self.lost.set)
        self.model = load(folder, self.group.ranks)


def load(folder: Path, ranks: TensorParallel) -> Llava:
    config, image = read_config(folder).share_of(ranks.size), read_image_config(folder)
    model = Llava(config, image, precision=choose_precision("fp32", CPU), device=CPU, ranks=ranks)
    load_weights(model, folder)
    return model
