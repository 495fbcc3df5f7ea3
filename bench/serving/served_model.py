"""The checkpoint that all servers of a comparison serve, and the load that they must have memory for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from bench.shape import Shape

__all__ = ["ServedModel"]


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A checkpoint, the number of concurrent requests, and the maximum number of tokens of each.

    The KV cache of each server is as large as these requests need, if its size can be set.
    """

    folder: Path
    shape: Shape
    num_at_once: int
    tokens_per_request: int

    @property
    def kv_tokens(self) -> int:
        return self.num_at_once * self.tokens_per_request

    @property
    def kv_mib(self) -> int:
        """Return the size of this many keys and values in bf16, rounded up to whole MiB."""
        return math.ceil(self.kv_tokens * self.shape.kv_bytes_per_token / 2**20)

    @property
    def kv_gib(self) -> int:
        """Return the same size, rounded up to whole GiB."""
        return math.ceil(self.kv_mib / 2**10)
