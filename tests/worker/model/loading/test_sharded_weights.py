"""Tensor-parallel ranks read only their own shard of each matrix. Together, their shards form the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from llava_worker.model.config.model_config import read_config, read_image_config
from llava_worker.model.decoder import Decoder
from llava_worker.model.llava import Llava
from llava_worker.model.loading.checkpoint_files import read_file
from llava_worker.model.loading.weights import load_weights
from llava_worker.model.quantization.precision import choose_precision
from llava_worker.model.tensor_parallel import TensorParallel
from safetensors.torch import save_file
from torch import nn

from tests.worker.checkpoints import write_checkpoint

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path, text={"attention_bias": True, "mlp_bias": True})
    return tmp_path


def load(folder: Path, index: int, size: int) -> tuple[Decoder, int]:
    """Load one rank. Return its decoder and the number of bytes read.

    The first rank also reads the modules that are not part of the decoder.
    """
    config, ranks = read_config(folder).shard(size), TensorParallel(index, size)
    precision = choose_precision("fp32", CPU)
    model: nn.Module
    if index == 0:
        image = read_image_config(folder)
        model = Llava(config, image, precision=precision, device=CPU, ranks=ranks)
    else:
        decoder = Decoder(config.text_config, precision=precision, device=CPU, ranks=ranks)
        model = nn.ModuleDict({"language_model": decoder})
    progress: list[tuple[int, int, int]] = []
    load_weights(model, folder, is_whole=index == 0, on_progress=lambda *numbers: progress.append(numbers))
    done, total, _ = progress[-1]
    assert done == total == sum(parameter.nbytes for parameter in model.parameters())
    loaded = model.get_submodule("language_model")
    assert isinstance(loaded, Decoder)
    return loaded, done


def test_the_shards_of_all_ranks_form_the_whole_model(folder: Path) -> None:
    whole, _ = load(folder, 0, 1)
    shards = [load(folder, index, 2)[0] for index in (0, 1)]
    for number, layer in enumerate(whole.layers):
        first, second = (shard.layers[number] for shard in shards)
        for fused, sizes in (("self_attn.qkv_proj", [48, 24, 24]), ("mlp.gate_up_proj", [80, 80])):
            for name in (f"{fused}.weight", f"{fused}.bias"):
                halves = [size // 2 for size in sizes]
                parts = [torch.split(shard.get_parameter(name), halves) for shard in (first, second)]
                joined = torch.cat([torch.cat(pair) for pair in zip(*parts, strict=True)])
                assert torch.equal(joined, layer.get_parameter(name))
        for linear in ("self_attn.o_proj", "mlp.down_proj"):
            weight, bias = f"{linear}.weight", f"{linear}.bias"
            joined = torch.cat([first.get_parameter(weight), second.get_parameter(weight)], dim=1)
            assert torch.equal(joined, layer.get_parameter(weight))
            assert torch.equal(first.get_parameter(bias), layer.get_parameter(bias))
            assert second.get_submodule(linear).bias is None  # otherwise all-reduce would add it twice


def test_a_follower_reads_its_shard_of_the_layers_and_the_norms(folder: Path) -> None:
    (whole, all_bytes), (_, first), (follower, second) = (
        load(folder, *rank) for rank in ((0, 1), (0, 2), (1, 2))
    )
    assert not hasattr(follower, "embed_tokens")
    norms = 4 * 48 * (2 * len(whole.layers) + 1)
    first_ranks_biases = 4 * 48 * 2 * len(whole.layers)
    layers = sum(parameter.nbytes for parameter in whole.layers.parameters())
    assert second == (layers - (norms - 4 * 48) - first_ranks_biases) // 2 + norms
    assert all_bytes - first == second - norms


def test_columns_are_read_as_they_were_saved(tmp_path: Path) -> None:
    matrix = torch.arange(35, dtype=torch.float32).view(7, 5).bfloat16()
    save_file({"a": matrix}, tmp_path / "a.safetensors")
    torch.save({"a": matrix}, tmp_path / "a.bin")
    for name in ("a.safetensors", "a.bin"):
        (stored,) = read_file(tmp_path / name, allow_pickle=True)
        assert torch.equal(stored.read(1, 6, (2, 4)), matrix[1:6, 2:4])
        assert torch.equal(stored.read(0, 7, (0, 5)), matrix)


def test_a_wrong_shape_is_rejected_with_the_unsharded_shape(folder: Path) -> None:
    config = read_config(folder)
    text = config.text_config.model_copy(update={"intermediate_size": 40})
    model = Llava(
        config.model_copy(update={"text_config": text}),
        read_image_config(folder),
        precision=choose_precision("fp32", CPU),
        device=CPU,
        ranks=TensorParallel(0, 4),
    )
    with pytest.raises(
        ValueError, match=r"mlp.gate_proj.weight is float32 \[80, 48\], expected float \[160, 48\]"
    ):
        load_weights(model, folder)
