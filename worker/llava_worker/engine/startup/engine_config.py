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
    threads is divided among the ranks. ``max_batch_tokens`` must not be less than ``max_num_sequences``. If
    it is None, it is measured on a GPU and is 512 on other devices. ``max_token_gap_s`` limits the duration
    of steps that compute prompts while other sequences are decoding. If it is None, it is 0.1 on a GPU and
    0.4 on other devices. If ``block_size`` is None, the attention backend determines it. CUDA graphs and
    async scheduling are used only on GPUs.

    The KV cache is limited to ``kv_cache_bytes``, to the memory that remains during the largest step, and to
    ``max_num_sequences`` full contexts (256 on a GPU, if this is more). On a GPU, the worker uses at most the
    fraction ``gpu_memory_utilization`` of the GPU's memory. On other devices, if ``kv_cache_bytes`` is None,
    the KV cache is also limited to a fraction of the memory that is free after the weights are loaded.

    On a CPU, weights are stored in the folder ``weights_cache`` in the format of the kernels, unless it is
    None or they use less than ``min_cached_bytes``.
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
    max_token_gap_s: float | None = None
    block_size: int | None = None
    gpu_memory_utilization: float = 0.9
    kv_cache_bytes: int | None = None
    kv_cache_dtype: str = "auto"
    encoder_cache_bytes: int = 256 << 20
    weights_cache: Path | None = None
    min_cached_bytes: int = 0
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
