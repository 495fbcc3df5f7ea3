"""The configuration of an engine. Needs no torch, so that the worker can build it before torch is
imported."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

__all__ = ["EngineConfig"]


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What `build_engine` builds: from which files, on which device, with which bounds.

    ``checkpoint``, ``vision_tower`` and ``base`` are folders. ``precision`` is auto or one of PRECISIONS;
    ``device`` is auto or a torch device. ``num_threads`` None is torch's default, shared by the ranks of a
    CPU. The KV cache takes at most ``kv_cache_bytes`` (None: a share of what is free beside the weights), no
    more than ``max_num_sequences`` full contexts need, and what the largest step leaves. ``block_size`` None
    is the attention backend's. CUDA graphs and async scheduling are used on GPUs only."""

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
    max_batch_tokens: int = 512
    block_size: int | None = None
    kv_cache_bytes: int | None = None
    kv_cache_dtype: str = "auto"
    encoder_cache_bytes: int = 256 << 20
    use_speculation: bool = True
    use_cuda_graphs: bool = True
    use_async_scheduling: bool = True

    @property
    def config_folder(self) -> Path:
        """The folder whose config.json describes the whole model."""
        # Adapters made by the original have one; others describe only themselves.
        if self.base is None or (self.checkpoint / "config.json").is_file():
            return self.checkpoint
        return self.base
