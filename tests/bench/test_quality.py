"""Tests for the benchmark of accuracy, with the bundled model and a short text."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from bench.quality.accuracy import Accuracy, compare
from bench.quality.exam import evaluation_questions, num_right, responses
from bench.quality.examples import TEXT, TINY, Example, question_example, text_windows
from bench.quality.llama_cpp import read_log_probs
from bench.quality.model import LoadedModel, Unavailable
from bench.quality.smollm2 import decoder_weights, rescale, text_config
from bench.record import ROOT

WINDOWS = list(text_windows(TEXT.read_text(), TINY, size=96, num=2))
QUESTIONS = list(evaluation_questions(1))
EXAMPLES = [*WINDOWS, *(question_example(question) for question in QUESTIONS)]


def log_probs(name: str, *, kv_cache_dtype: str = "auto", chunk: int = 64) -> list[Tensor]:
    model = LoadedModel.load(TINY, name)
    return [model.log_probs(example, kv_cache_dtype=kv_cache_dtype, chunk=chunk) for example in EXAMPLES]


@pytest.fixture(scope="module")
def exact() -> list[Tensor]:
    return log_probs("fp32")


def accuracy(exact: list[Tensor], tested: list[Tensor]) -> Accuracy:
    return compare([example.targets for example in EXAMPLES], exact, tested)


def test_the_reference_has_no_loss_compared_with_itself(exact: list[Tensor]) -> None:
    result = accuracy(exact, log_probs("fp32"))
    assert (result.added_loss, result.kl, result.same_top) == (0, 0, 1)
    assert result.num_tokens == sum(len(example.targets) for example in EXAMPLES)


def test_fewer_bits_cost_more_accuracy(exact: list[Tensor]) -> None:
    results = [accuracy(exact, log_probs(name)) for name in ("bf16", "int8", "int4")]
    divergences = [result.kl for result in results]
    assert 0 < divergences[0] < divergences[1] < divergences[2]
    assert all(math.isfinite(value) for result in results for value in vars(result).values())


def test_an_8_bit_kv_cache_changes_the_probabilities_slightly(exact: list[Tensor]) -> None:
    result = accuracy(exact, log_probs("fp32", kv_cache_dtype="int8"))
    assert 0 < result.kl < 0.01


@pytest.mark.parametrize("chunk", [1, 40])
def test_the_size_of_prefill_chunks_does_not_matter(exact: list[Tensor], chunk: int) -> None:
    tested = LoadedModel.load(TINY, "fp32").log_probs(EXAMPLES[0], kv_cache_dtype="auto", chunk=chunk)
    assert abs(compare([EXAMPLES[0].targets], exact[:1], [tested]).kl) < 1e-6


def test_the_image_of_a_question_matters(exact: list[Tensor]) -> None:
    example = next(example for example in EXAMPLES if example.pixels)
    black = Example(
        example.token_ids, example.first, tuple(bytes(len(image)) for image in example.pixels), example.starts
    )
    with_black = LoadedModel.load(TINY, "fp32").log_probs(black, kv_cache_dtype="auto", chunk=64)
    assert compare([example.targets], [exact[EXAMPLES.index(example)]], [with_black]).kl > 0.1


@pytest.mark.parametrize("name", ["w8a8", "NF4"])
def test_formats_for_gpus_are_computed_on_a_cpu(exact: list[Tensor], name: str) -> None:
    if name == "NF4":
        pytest.importorskip("bitsandbytes")
    model = LoadedModel.load(TINY, name)
    tested = [model.log_probs(example, kv_cache_dtype="auto", chunk=64) for example in EXAMPLES[:1]]
    result = compare([EXAMPLES[0].targets], exact[:1], tested)
    assert 0 < result.kl < 0.5
    assert 4 < model.bits_per_weight < 9


def test_a_format_that_a_cpu_cannot_compute_is_reported() -> None:
    with pytest.raises(Unavailable, match="requires a GPU"):
        LoadedModel.load(TINY, "w4a16")


def test_the_responses_of_the_engine_are_scored() -> None:
    model = LoadedModel.load(TINY, "int8")
    outputs = responses(model, QUESTIONS, kv_cache_dtype="int8")
    assert num_right(QUESTIONS, outputs) == len(QUESTIONS)
    assert num_right(QUESTIONS, [f"not {output}" for output in outputs]) == 0


def test_a_text_that_is_too_short_is_rejected() -> None:
    with pytest.raises(ValueError, match="Use a longer text"):
        list(text_windows("A short text.", TINY, size=96, num=2))


def test_the_command_writes_a_record_and_a_plot(tmp_path: Path) -> None:
    arguments = ["--checkpoint", str(TINY), "--window", "64", "--windows", "1", "--formats", "int4", "w4a16"]
    command = [
        sys.executable,
        "-m",
        "bench.quality",
        *arguments,
        "--questions",
        "3",
        "--results",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    results = json.loads((tmp_path / "quality.json").read_text())["results"]
    for rows in results.values():
        assert [row["format"] for row in rows] == ["fp32", "fp32", "int4", "int4", "w4a16"]
        assert all(row["format"] in done.stdout and ("kl" in row) != ("why_not" in row) for row in rows)
    assert results["questions"][0]["same_responses"] == 1
    assert (tmp_path / "quality.png").stat().st_size > 1000


def test_a_missing_checkpoint_is_reported_with_the_remedy(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.quality", "--checkpoint", str(tmp_path / "none")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "bench.quality --prepare" in done.stderr


class TestGGUF:
    """The Llama decoder in a GGUF file, with pairs of RoPE adjacent to each other."""

    FIELDS: dict[str, Any] = {
        "llama.embedding_length": 32,
        "llama.feed_forward_length": 48,
        "llama.block_count": 2,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.context_length": 64,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.tokens": [str(number) for number in range(40)],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    NAMES = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "q_proj": "attn_q",
        "k_proj": "attn_k",
        "v_proj": "attn_v",
        "o_proj": "attn_output",
        "gate_proj": "ffn_gate",
        "up_proj": "ffn_up",
        "down_proj": "ffn_down",
    }

    def model(self) -> LlamaForCausalLM:
        torch.manual_seed(0)
        model: LlamaForCausalLM = LlamaForCausalLM(LlamaConfig(**text_config(self.FIELDS)))
        return model

    def tensors(self, model: LlamaForCausalLM) -> dict[str, Tensor]:
        weights = {name: weight.clone() for name, weight in model.model.state_dict().items()}
        found = {"token_embd.weight": weights.pop("embed_tokens.weight")}
        found["output_norm.weight"] = weights.pop("norm.weight")
        for name, weight in weights.items():
            layer, part = name.split(".")[1], name.split(".")[-2]
            if part in ("q_proj", "k_proj"):
                heads = weight.view(-1, 2, 4, weight.shape[1])  # [heads, halves, pairs, inputs]
                weight = heads.transpose(1, 2).reshape(weight.shape)
            found[f"blk.{layer}.{self.NAMES[part]}.weight"] = weight
        return found

    def test_the_weights_are_converted_to_the_names_and_the_order_of_transformers(self) -> None:
        model = self.model()
        found = decoder_weights(self.FIELDS, self.tensors(model))
        expected = {name: weight for name, weight in model.state_dict().items() if name != "lm_head.weight"}
        assert found.keys() == expected.keys()
        assert all(torch.equal(weight, expected[name]) for name, weight in found.items())

    @torch.inference_mode()
    def test_rescaling_changes_all_matrices_but_not_the_outputs(self) -> None:
        model, ids = self.model(), torch.arange(3, 33)[None]
        before = model(ids).logits
        tensors = self.tensors(model)
        rescale(self.FIELDS, tensors)
        original = self.tensors(model)
        layers = [name for name in tensors if name.startswith("blk.")]
        assert not any(torch.allclose(tensors[name], original[name], rtol=1e-3) for name in layers)
        model.load_state_dict(decoder_weights(self.FIELDS, tensors), strict=False)
        torch.testing.assert_close(model(ids).logits, before, rtol=1e-4, atol=1e-5)


class TestLlamaCppLogProbs:
    EXAMPLES = [Example([3, 1, 4, 1], 2), Example([5, 2, 6, 5], 2)]

    def write(
        self, path: Path, rows: list[tuple[float, float, list[int]]], magic: bytes = b"_logits_"
    ) -> Path:
        content = magic + struct.pack("<3i", 4, 7, 2)
        content += np.array([example.token_ids for example in self.EXAMPLES], np.int32).tobytes()
        for step, minimum, codes in rows:
            content += struct.pack("<2f", step, minimum) + np.array([*codes, 0], np.uint16).tobytes()
        path.write_bytes(content)
        return path

    def test_a_row_is_a_minimum_and_multiples_of_a_step(self, tmp_path: Path) -> None:
        rows = [(0.5, -9.0, [0, 1, 2, 3, 4, 5, 6]), (0.25, -8.0, [8, 0, 0, 0, 0, 0, 65535])]
        first, second = read_log_probs(self.write(tmp_path / "file", rows), self.EXAMPLES)
        assert first.tolist() == [[-9.0, -8.5, -8.0, -7.5, -7.0, -6.5, -6.0]]
        assert second[0, 0] == -6.0 and second[0, -1] == -8.0 + 65535 / 4

    def test_other_tokens_and_other_files_are_rejected(self, tmp_path: Path) -> None:
        path = self.write(tmp_path / "file", [(1.0, -1.0, [0] * 7)] * 2)
        with pytest.raises(ValueError, match="other tokens"):
            next(read_log_probs(path, self.EXAMPLES[::-1]))
        with pytest.raises(ValueError, match="another version"):
            next(read_log_probs(self.write(tmp_path / "other", [], b"_another"), self.EXAMPLES))
