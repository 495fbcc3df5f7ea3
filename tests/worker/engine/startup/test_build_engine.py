"""Tests of building engines from checkpoints."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from llava_worker.engine.startup.build_engine import CheckpointError, build_engine
from llava_worker.engine.startup.engine_config import EngineConfig

from tests.worker.checkpoints import Prompt, Reference, random_prompt
from tests.worker.engine.factories import MakeSequence, Run
from tests.worker.layouts import write_original


@pytest.fixture
def folder(checkpoint: tuple[Path, Reference], tmp_path: Path) -> Path:
    return shutil.copytree(checkpoint[0], tmp_path / "my-llava")


def test_an_engine_and_its_model_info_are_built_from_a_folder(
    folder: Path, make_sequence: MakeSequence, run: Run
) -> None:
    engine, info = build_engine(EngineConfig(folder, precision="fp32", device="cpu"))

    assert (info.name, info.precision, info.device) == ("my-llava", "fp32", "cpu")
    assert (info.image_side, info.tokens_per_tile, info.image_token_id) == (28, 4, 127)
    assert (info.layout.fit, info.background) == ("pad", (122, 116, 104))
    assert (info.context_length, info.vocab_size, info.eos_ids) == (256, 128, frozenset({2}))
    assert len(run(engine, [make_sequence(Prompt([1, 5, 6]), ignore_eos=True)])["one"]) == 12


def test_a_model_runs_in_half_precision(folder: Path, make_sequence: MakeSequence, run: Run) -> None:
    engine, info = build_engine(EngineConfig(folder, precision="bf16", device="cpu"))

    assert info.precision == "bf16"
    assert len(run(engine, [make_sequence(Prompt([1, 5, 6]), ignore_eos=True)])["one"]) == 12


@pytest.mark.parametrize("is_int8", [False, True])
def test_the_type_of_the_kv_cache_is_logged_rather_than_that_of_the_weights(
    folder: Path, caplog: pytest.LogCaptureFixture, is_int8: bool
) -> None:
    caplog.set_level("INFO")
    build_engine(
        EngineConfig(folder, precision="int8", device="cpu", kv_cache_dtype="int8" if is_int8 else "auto")
    )
    (message,) = [line for line in caplog.messages if line.startswith("memory (MiB)")]
    assert message.endswith(", int8)") is is_int8
    assert message.endswith(("float32)", "bfloat16)")) is not is_int8


@pytest.mark.parametrize(("num_threads", "expected"), [(None, 1), (3, 3)])
def test_a_small_model_uses_one_thread_by_default(
    folder: Path, num_threads: int | None, expected: int
) -> None:
    torch.set_num_threads(4)
    try:
        build_engine(EngineConfig(folder, precision="fp32", device="cpu", num_threads=num_threads))
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("use_speculation", [True, False])
def test_speculative_decoding_is_enabled_by_default(
    folder: Path, make_sequence: MakeSequence, run: Run, use_speculation: bool
) -> None:
    engine, _ = build_engine(EngineConfig(folder, precision="fp32", use_speculation=use_speculation))
    output_ids = run(engine, [make_sequence(Prompt([1, 5, 6]), logit_bias=((40, 100.0),))])["one"]

    assert output_ids == [40] * 12
    assert (engine.stats().num_accepted_tokens_total > 0) == use_speculation


def test_images_are_cropped_if_the_checkpoint_requires_it(folder: Path) -> None:
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"do_pad": False, "image_mean": [0.5, 0.5, 0.5]})
    )
    _, info = build_engine(EngineConfig(folder, precision="fp32"))

    assert (info.layout.fit, info.background) == ("crop", (127, 127, 127))


def test_a_small_kv_cache_reduces_the_context_and_logs_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bytes_per_token = 2 * 2 * 2 * 12 * 4  # layers, keys and values, heads, head size, fp32
    engine, info = build_engine(
        EngineConfig(folder, precision="fp32", kv_cache_bytes=100 * bytes_per_token, block_size=16)
    )

    assert info.context_length == engine.context_length == 96
    assert "the context length is reduced from 256 tokens" in caplog.text


def test_a_kv_cache_too_small_for_an_image_is_rejected(folder: Path) -> None:
    with pytest.raises(ValueError, match="The KV cache is limited to 0.0 MiB, enough for 0"):
        build_engine(EngineConfig(folder, precision="fp32", kv_cache_bytes=1000))


def test_more_sequences_than_tokens_in_a_step_are_rejected_before_the_weights_are_read(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.rename(folder / "elsewhere")
    with pytest.raises(
        ValueError,
        match=r"max_num_sequences is 513, but a step has at most 512 tokens.*Set max_num_sequences to",
    ):
        build_engine(EngineConfig(folder, device="cpu", max_num_sequences=513))
    (folder / "elsewhere").rename(weights)

    engine, _ = build_engine(EngineConfig(folder, device="cpu", max_num_sequences=513, max_batch_tokens=513))

    assert engine.max_sequences == 513


def test_an_unknown_device_is_rejected(folder: Path) -> None:
    with pytest.raises(ValueError, match="device 'abacus' is not recognized"):
        build_engine(EngineConfig(folder, device="abacus"))


def test_a_folder_without_a_model_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json does not exist"):
        build_engine(EngineConfig(tmp_path))


def test_original_and_hf_layouts_give_equal_outputs(
    folder: Path, tmp_path: Path, make_sequence: MakeSequence, run: Run
) -> None:
    tower = tmp_path / "tower"
    original = write_original(folder, tmp_path / "original", tower=tower)
    settings = json.loads((original / "config.json").read_text()) | {"mm_use_im_start_end": True}
    (original / "config.json").write_text(json.dumps(settings))
    prompt = random_prompt(np.random.default_rng(8), num_images=2)
    progress: list[tuple[int, int, int]] = []

    hf_engine, _ = build_engine(EngineConfig(folder, precision="fp32", device="cpu"))
    original_engine, info = build_engine(
        EngineConfig(original, precision="fp32", device="cpu", vision_tower=tower),
        on_progress=lambda *numbers: progress.append(numbers),
    )

    assert run(original_engine, [make_sequence(prompt)]) == run(hf_engine, [make_sequence(prompt)])
    assert (info.layout.fit, info.has_image_marks, info.image_token_id) == ("pad", True, 0)
    assert progress[-1][0] == progress[-1][1]


def test_a_model_that_does_not_fit_is_rejected_before_its_weights_are_read(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    values["text_config"] |= {"vocab_size": 1 << 24, "hidden_size": 1 << 16}  # 4 TiB
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "model.safetensors").unlink()

    with pytest.raises(ValueError, match="GiB free. Use a smaller model"):
        build_engine(EngineConfig(folder, precision="fp32", device="cpu"))


def test_the_limit_of_the_token_gap_does_not_change_the_output(
    folder: Path, make_sequence: MakeSequence, run: Run
) -> None:
    def outputs(max_token_gap_s: float) -> dict[str, list[int]]:
        engine, _ = build_engine(EngineConfig(folder, precision="fp32", max_token_gap_s=max_token_gap_s))
        rng = np.random.default_rng(0)
        prompts = {name: random_prompt(rng, num_images=1, max_words=60) for name in ("one", "two", "three")}
        return run(
            engine, [make_sequence(prompt, seq_id=name, ignore_eos=True) for name, prompt in prompts.items()]
        )

    assert outputs(1e-6) == outputs(math.inf)
