"""The engine configuration. This module does not import torch, so it can be imported quickly."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

__all__ = ["EngineConfig"]


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """The configuration for `build_engine`: files, device and limits.

    ``checkpoint``, ``vision_tower`` and ``base`` are folders. ``precision`` is "auto" or one of PRECISIONS;
    ``device`` is "auto" or the name of a torch device. If ``num_threads`` is None, torch's default number of
    threads is divided among the ranks. If ``max_batch_tokens`` is None, the default for the device is used.
    It must not be less than ``max_num_sequences``. The KV cache is as large as possible within three limits:
    ``kv_cache_bytes`` (if None, a fraction of the memory that is free after the weights are loaded), the size
    of ``max_num_sequences`` full contexts, and the memory that remains during the largest step. If
    ``block_size`` is None, the attention backend determines it. CUDA graphs and async scheduling are used
    only on GPUs.
    """

    checkpoint: Path
    _: KW_ONLY
    vision_tower: Path | None = None
    base: Path | None = None
    allow_pickle: bool = False
    precision: str = "auto"
    device: str = "auto"
    num_threads: int | None = None
    tensor_parallel_size: int = 1
    max_num_sequences: int = 16
    max_batch_tokens: int | None = None
    block_size: int | None = None
    kv_cache_bytes: int | None = None
    kv_cache_dtype: str = "auto"
    encoder_cache_bytes: int = 256 << 20
    use_speculation: bool = True
    use_cuda_graphs: bool = True
    use_async_scheduling: bool = True

    @property
    def config_folder(self) -> Path:
        """The folder that contains the config.json of the whole model."""
        # Adapters saved by the original LLaVA code include this file. Other adapters include only a config
        # file for the adapter itself.
        if self.base is None or (self.checkpoint / "config.json").is_file():
            return self.checkpoint
        return self.base
