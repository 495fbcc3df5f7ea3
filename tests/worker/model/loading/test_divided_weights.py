"""Of every matrix a rank keeps, and reads, its part; the parts together are the whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from llava_worker.model.config.model_config import read_config, read_image_config
from llava_worker.model.decoder import LlamaDecoder
from llava_worker.model.llava import Llava
from llava_worker.model.loading.checkpoint_files import read_file
from llava_worker.model.loading.weights import load_weights
from llava_worker.model.quantization.precision import choose_precision
from llava_worker.model.tensor_parallel import TensorParallel
from safetensors.torch import save_file
from torch import nn

from tests.worker.checkpoints import write_checkpoint

CPU = torch.device("cpu")
BIASES = {"attention_bias": True, "mlp_bias": True}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path, text=BIASES)
    return tmp_path


def load(folder: Path, index: int, size: int) -> tuple[LlamaDecoder, int]:
    """A rank's decoder, and how many bytes were read for it and, with the first, the rest of the model."""
    config, ranks = read_config(folder).shard(size), TensorParallel(index, size)
    options = {"precision": choose_precision("fp32", CPU), "device": CPU, "ranks": ranks}
    model: nn.Module
    if index == 0:
        model = Llava(config, read_image_config(folder), **options)
    else:
        model = nn.ModuleDict({"language_model": LlamaDecoder(config.text_config, **options)})
    progress: list[tuple[int, int, int]] = []
    load_weights(model, folder, is_whole=index == 0, on_progress=lambda *numbers: progress.append(numbers))
    done, total, _ = progress[-1]
    assert done == total == sum(parameter.nbytes for parameter in model.parameters())
    return model.get_submodule("language_model"), done  # type: ignore[return-value]


def test_the_parts_of_all_ranks_are_the_whole(folder: Path) -> None:
    whole, _ = load(folder, 0, 1)
    parts = [load(folder, index, 2)[0] for index in (0, 1)]
    for number, layer in enumerate(whole.layers):
        mine = [part.layers[number] for part in parts]
        for fused, sizes in (("self_attn.qkv_proj", [48, 24, 24]), ("mlp.gate_up_proj", [80, 80])):
            for name in ("weight", "bias"):
                split = [
                    getattr(each.get_submodule(fused), name).split([size // 2 for size in sizes])
                    for each in mine
                ]
                joined = torch.cat([torch.cat(pair) for pair in zip(*split, strict=True)])
                assert torch.equal(joined, getattr(layer.get_submodule(fused), name))
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            joined = torch.cat([each.get_submodule(name).weight for each in mine], dim=1)
            assert torch.equal(joined, layer.get_submodule(name).weight)
            assert torch.equal(mine[0].get_submodule(name).bias, layer.get_submodule(name).bias)
            assert mine[1].get_submodule(name).bias is None  # added once


def test_what_a_follower_reads_is_its_part_of_the_layers_and_the_norms(folder: Path) -> None:
    (whole, all_bytes), (_, first), (follower, second) = (
        load(folder, *at) for at in ((0, 1), (0, 2), (1, 2))
    )
    assert not hasattr(follower, "embed_tokens")
    norms = 4 * 48 * (2 * len(whole.layers) + 1)
    once = 4 * 48 * 2 * len(whole.layers)  # biases that the first rank adds
    layers = sum(parameter.nbytes for parameter in whole.layers.parameters())
    assert second == (layers - (norms - 4 * 48) - once) // 2 + norms
    assert all_bytes - first == second - norms


def test_columns_of_rows_are_those_of_the_file(tmp_path: Path) -> None:
    matrix = torch.arange(35, dtype=torch.float32).view(7, 5).bfloat16()
    save_file({"a": matrix}, tmp_path / "a.safetensors")
    (stored,) = read_file(tmp_path / "a.safetensors", allow_pickle=False)
    assert torch.equal(stored.read(1, 6, (2, 4)), matrix[1:6, 2:4])
    assert torch.equal(stored.read(0, 7, (0, 5)), matrix)
    torch.save({"a": matrix}, tmp_path / "a.bin")
    (pickled,) = read_file(tmp_path / "a.bin", allow_pickle=True)
    assert torch.equal(pickled.read(1, 6, (2, 4)), matrix[1:6, 2:4])


def test_a_shape_that_the_file_does_not_have_is_refused_as_for_one_rank(folder: Path) -> None:
    config = read_config(folder)
    wrong = config.model_copy(
        update={"text_config": config.text_config.model_copy(update={"intermediate_size": 40})}
    )
    ranks = TensorParallel(0, 4)
    model = Llava(
        wrong, read_image_config(folder), precision=choose_precision("fp32", CPU), device=CPU, ranks=ranks
    )
    with pytest.raises(ValueError, match=r"mlp.gate_proj.weight is \[80, 48\] of float32, not \[160, 48\]"):
        load_weights(model, folder)
