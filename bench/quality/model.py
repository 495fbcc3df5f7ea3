"""The worker's model in any weight format, including those for GPUs, computed on a CPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from llava_worker.engine.startup.plan import SMALL_BYTES
from llava_worker.model.attention.base import AttentionMetadata
from llava_worker.model.attention.kv_cache import KVCache, KVCacheSpec
from llava_worker.model.attention.select import choose_backend
from llava_worker.model.config.model_config import read_config, read_image_config
from llava_worker.model.kernels.torch_impl import TorchKernels
from llava_worker.model.layers.linear import Linear
from llava_worker.model.llava import Llava
from llava_worker.model.loading.weights import load_weights
from llava_worker.model.memory_estimate import weight_bytes
from llava_worker.model.quantization.bitsandbytes import require_bitsandbytes
from llava_worker.model.quantization.precision import Precision, choose_precision
from torch import Tensor

from bench.quality.examples import Example

__all__ = ["FORMATS", "GPU_FORMATS", "LoadedModel", "Unavailable"]

CPU = torch.device("cpu")
_CUDA = torch.device("cuda:0")
# Formats for GPUs that a CPU can compute, and their precisions. The first two use bitsandbytes.
GPU_FORMATS = {"LLM.int8()": "int8", "NF4": "int4", "w8a8": "w8a8", "fp8": "fp8", "w4a16": "w4a16"}
FORMATS = ("fp32", "bf16", "int8", "int4", *GPU_FORMATS)


class Unavailable(Exception):
    """A format cannot be measured on this machine. The message contains the reason."""


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint whose weights have been loaded in one of `FORMATS`."""

    llava: Llava
    precision: Precision

    @classmethod
    def load(cls, folder: Path, name: str) -> LoadedModel:
        """Load a checkpoint. Raises Unavailable if the format cannot be computed on a CPU."""
        config, image = read_config(folder), read_image_config(folder)
        is_small = weight_bytes(config, image, "fp32") <= SMALL_BYTES  # as when the worker starts
        precision = (
            _precision_on_gpu(name) if name in GPU_FORMATS else choose_precision(name, CPU, is_small=is_small)
        )
        model = Llava(config, image, precision=precision, device=CPU)
        load_weights(model, folder)
        return cls(model, precision)

    @property
    def bits_per_weight(self) -> float:
        """The size of the decoder's matrices, including scales and padding, without biases."""
        layers = [module for module in self.llava.language_model.modules() if isinstance(module, Linear)]
        stored = sum(
            parameter.nbytes
            for layer in layers
            for name, parameter in layer.named_parameters()
            if name != "bias"
        )
        return 8 * stored / sum(layer.shape.in_features * layer.shape.out_features for layer in layers)

    @torch.inference_mode()
    def log_probs(self, example: Example, *, kv_cache_dtype: str, chunk: int) -> Tensor:
        """Return the log-probabilities for the example's targets, fp32 [targets, vocab].

        The tokens are computed like a prompt: ``chunk`` tokens at a time, with a paged KV cache.
        """
        ids = torch.tensor(example.token_ids)
        x = self._embed(example, ids)
        backend = choose_backend(self.precision, self.llava.config.text_config, CPU)
        num_blocks = -(-len(ids) // backend.block_size)
        spec = KVCacheSpec.for_model(
            self.llava.config.text_config,
            num_blocks=num_blocks,
            block_size=backend.block_size,
            dtype=self.precision.dtype,
            is_int8=kv_cache_dtype == "int8",
            is_head_major=backend.is_head_major,
        )
        cache, table = KVCache(spec, CPU), torch.arange(num_blocks)[None]
        hidden = []
        for positions in torch.split(torch.arange(len(ids)), chunk):
            num, end = len(positions), int(positions[-1]) + 1
            rows = AttentionMetadata((num,), (end,), int(num == 1), table, positions)
            hidden.append(self.llava(x[positions], positions, backend.plan(rows, cache)))
        return self.llava.logits(torch.cat(hidden)[example.first : -1]).log_softmax(-1)

    def _embed(self, example: Example, ids: Tensor) -> Tensor:  # [tokens, hidden]
        x = self.llava.embed(ids)
        side = self.llava.config.image_layout().side
        for pixels, start in zip(example.pixels, example.starts, strict=True):
            tiles = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(1, side, side, 3)
            features = self.llava.encode(tiles)[0]
            x[start : start + len(features)] = features
        return x


def _precision_on_gpu(name: str) -> Precision:
    """Return a GPU's precision with unchanged formats of weights and inputs, but fp32 instead of 16 bits."""
    if name == "w4a16":
        raise Unavailable("its Triton kernel requires a GPU")
    try:
        if name in ("LLM.int8()", "NF4"):
            require_bitsandbytes(GPU_FORMATS[name])
        precision = choose_precision(GPU_FORMATS[name], _CUDA)
    except ValueError as error:
        raise Unavailable(str(error)) from error
    return replace(precision, dtype=torch.float32, kernels=TorchKernels())
