"""The transformers engine computes in fp32, bf16 or fp16, or with weights quantized by bitsandbytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from llava_worker.engine.transformers.build import is_supported_version
from llava_worker.engine.transformers.checkpoint import read_checkpoint
from llava_worker.engine.transformers.load_model import load_model
from llava_worker.loaded_model import StartupError

from tests.worker.engine.transformers.families import write_family
from tests.worker.engine.transformers.served_family import ServedFamily, make_questions

QUESTIONS = make_questions()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family("llava_onevision", tmp_path_factory.mktemp("onevision") / "model")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_16_bit_precisions_give_the_output_of_generate(folder: Path, precision: str) -> None:
    family = ServedFamily(folder, "--precision", precision)
    sequences = [family.sequence(q, seq_id=str(i), max_tokens=8) for i, q in enumerate(QUESTIONS)]
    outputs = family.run(*sequences)
    assert family.model.heartbeat.precision == precision
    assert all(len(tokens) == 8 for tokens in outputs.values())
    in_fp32 = family.generated(QUESTIONS[0], max_tokens=8)
    assert outputs["0"][0] == in_fp32[0]  # rounding can change later tokens


@pytest.mark.parametrize(("precision", "layer"), [("int8", "Linear8bitLt"), ("int4", "Linear4bit")])
def test_int8_and_int4_quantize_the_decoder_with_bitsandbytes(
    folder: Path, precision: str, layer: str
) -> None:
    pytest.importorskip("bitsandbytes")
    model, name = load_model(read_checkpoint(folder), precision, torch.device("cpu"))
    assert name == precision
    quantized = {path for path, module in model.named_modules() if type(module).__name__ == layer}
    assert len(quantized) == 2 * 7  # attention and MLP of both layers
    assert all("language_model" in path for path in quantized)  # not the vision tower, projector or lm_head

    family = ServedFamily(folder, "--precision", precision)
    outputs = family.run(
        *(family.sequence(q, seq_id=str(i), max_tokens=8) for i, q in enumerate(QUESTIONS[:2]))
    )
    assert all(len(tokens) == 8 for tokens in outputs.values())
    assert family.model.heartbeat.precision == precision


@pytest.mark.parametrize(("version", "expected"), [("5.22.1", False), ("5.23.0", True), ("6.0.0.dev0", True)])
def test_old_versions_of_transformers_are_not_supported(version: str, expected: bool) -> None:
    assert is_supported_version(version) is expected


def test_settings_of_the_native_engine_are_rejected_by_name(folder: Path) -> None:
    with pytest.raises(
        StartupError, match="does not support tensor_parallel, kv_cache_dtype int8, precision"
    ):
        ServedFamily(folder, "--tensor-parallel", "2", "--kv-cache-dtype", "int8", "--precision", "w4a16")
