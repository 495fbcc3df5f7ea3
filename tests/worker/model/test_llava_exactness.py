"""fp32 logits match those of transformers, no matter how prompts are divided into chunks and batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llava_worker.model.attention.base import AttentionMetadata
from llava_worker.model.attention.kv_cache import KVCache, KVCacheSpec
from llava_worker.model.attention.sdpa import SdpaBackend
from llava_worker.model.config.model_config import read_config

from tests.worker.checkpoints import (
    LLAVA_INTERLEAVE,
    LLAVA_NEXT_MISTRAL,
    LLAVA_ONEVISION,
    MISTRAL,
    NEXT,
    PHI,
    PHI_3,
    VIP_LLAVA,
    Prompt,
    Reference,
    random_prompt,
    reference_logits,
    write_checkpoint,
)
from tests.worker.family import Member, make_member, make_merging_member
from tests.worker.model.load_model import load_model
from tests.worker.phi_family import LAYOUTS, write_phi_model

CPU = torch.device("cpu")
BLOCK_SIZE = 4


def rope(rope_type: str, **options: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": 1e4} | options}


VARIANTS: dict[str, dict[str, Any]] = {
    "grouped queries": {},
    "multi-head attention": {"text": {"num_key_value_heads": 4}},
    "one KV head, custom head size": {"text": {"num_key_value_heads": 1, "head_dim": 20}},
    "biases everywhere": {"text": {"attention_bias": True, "mlp_bias": True}},
    "tied embeddings": {"text": {"tie_word_embeddings": True}},
    "custom rope base": {"text": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}},
    "linear rope scaling": {"text": rope("linear", factor=2.5)},
    "dynamic rope scaling within the trained length": {"text": rope("dynamic", factor=2.0)},
    "llama 3 rope scaling": {
        "text": rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
        | {"max_position_embeddings": 64}
    },
    "yarn rope scaling": {"text": rope("yarn", factor=4.0, original_max_position_embeddings=16)},
    "yarn with an attention factor": {
        "text": rope("yarn", factor=4.0, original_max_position_embeddings=16, attention_factor=1.3)
    },
    "yarn with mscale and without truncation": {
        "text": rope(
            "yarn",
            factor=4.0,
            original_max_position_embeddings=16,
            mscale=0.7,
            mscale_all_dim=0.3,
            truncate=False,
        )
    },
    "mistral with a sliding window": {"text": MISTRAL},
    "qwen2": {"text": {"model_type": "qwen2"}},
    "qwen2 with a window in the last layer": {
        "text": {
            "model_type": "qwen2",
            "use_sliding_window": True,
            "sliding_window": 5,
            "max_window_layers": 1,
        }
    },
    "qwen2 with layer types": {
        "text": {
            "model_type": "qwen2",
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention"],
        }
    },
    "phi": {"text": PHI},
    "phi with the proportions of Phi-2": {
        "text": PHI | {"hidden_size": 80, "num_attention_heads": 2, "partial_rotary_factor": 0.4}
    },
    "phi that rotates all dimensions, multi-head attention": {
        "text": PHI | {"partial_rotary_factor": 1.0, "num_key_value_heads": 4}
    },
    "phi with yarn rope scaling": {"text": PHI | rope("yarn", factor=4.0, partial_rotary_factor=0.5)},
    "phi-3 with a sliding window": {"text": PHI_3},
    "1.6, phi": NEXT | {"text": PHI},
    "siglip tower": {
        "vision": {"model_type": "siglip_vision_model"},
        "vision_feature_select_strategy": "full",
    },
    "llava-interleave": LLAVA_INTERLEAVE,
    "1.6, vicuna": NEXT,
    "1.6, grouped queries": NEXT | {"text": {"num_key_value_heads": 1}},
    "1.6, mistral": LLAVA_NEXT_MISTRAL,
    "1.6, qwen2": NEXT | {"text": {"model_type": "qwen2", "rope_parameters": {"rope_theta": 1e6}}},
    "1.6, llama 3": NEXT | {"text": {"num_key_value_heads": 1, "rope_parameters": {"rope_theta": 5e5}}},
    "vipllava": VIP_LLAVA,
    "onevision": LLAVA_ONEVISION,
    "onevision with a grid that is never reduced": LLAVA_ONEVISION | {"vision_aspect_ratio": "anyres_max_9"},
    "features with class token": {"vision_feature_select_strategy": "full"},
    "features from several layers": {"vision_feature_layer": [0, 2, -1]},
    "features from the last layer": {"vision_feature_layer": -1},
    "gelu tower, no projector bias": {"vision": {"hidden_act": "gelu"}, "multimodal_projector_bias": False},
}


class Forward:
    """A model and a paged KV cache whose blocks are assigned in random order."""

    def __init__(self, folder: Path, prompts: list[Prompt]) -> None:
        self.model = load_model(folder)
        text = self.model.config.text_config
        self._layout = self.model.config.image_layout()
        needed = [-(-len(prompt.token_ids) // BLOCK_SIZE) for prompt in prompts]
        spec = KVCacheSpec.for_model(text, num_blocks=sum(needed), block_size=BLOCK_SIZE, dtype=torch.float32)
        self.cache = KVCache(spec, CPU)
        for layer in range(
            text.num_hidden_layers
        ):  # if a slot is read before it is written, the logits are NaN
            stored = self.cache.layer(layer)
            stored.keys.fill_(torch.nan)
            stored.values.fill_(torch.nan)
        blocks = np.random.default_rng(5).permutation(sum(needed)).tolist()
        self._tables = [[blocks.pop() for _ in range(count)] for count in needed]
        self._embeddings = [self._embed(prompt) for prompt in prompts]

    def _embed(self, prompt: Prompt) -> torch.Tensor:
        x = self.model.embed(torch.tensor(prompt.token_ids))
        for start, tiles, size in zip(prompt.image_starts, prompt.pixels, prompt.sizes, strict=True):
            encoded = self.model.encode(torch.from_numpy(tiles))
            features = self.model.assemble(encoded, self._layout.plan(*size))
            x[start : start + len(features)] = features
        return x

    @torch.inference_mode()
    def __call__(self, chunks: list[tuple[int, int, int]]) -> list[torch.Tensor]:
        """Return the logits for each chunk (prompt, start, end). Single-token chunks must come first."""
        positions = torch.cat([torch.arange(start, end) for _, start, end in chunks])
        prompt_of_token = [prompt for prompt, start, end in chunks for _ in range(start, end)]
        slots = [
            self._tables[prompt][position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE
            for prompt, position in zip(prompt_of_token, positions.tolist(), strict=True)
        ]
        width = max(len(self._tables[prompt]) for prompt, _, _ in chunks)
        tables = [self._tables[prompt] for prompt, _, _ in chunks]
        lens = [end - start for _, start, end in chunks]
        metadata = AttentionMetadata(
            query_lens=tuple(lens),
            context_lens=tuple(end for _, _, end in chunks),
            num_decodes=lens.count(1),
            block_tables=torch.tensor([table + table[:1] * (width - len(table)) for table in tables]),
            slot_mapping=torch.tensor(slots),
        )
        x = torch.cat([self._embeddings[prompt][start:end] for prompt, start, end in chunks])
        hidden = self.model(x, positions, SdpaBackend().plan(metadata, self.cache))
        return list(torch.split(self.model.logits(hidden), lens))


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_those_of_transformers(tmp_path: Path, variant: str) -> None:
    reference = write_checkpoint(tmp_path, **VARIANTS[variant])
    layout = read_config(tmp_path).image_layout()
    rng = np.random.default_rng(1)
    prompts = [random_prompt(rng, num_images=n, layout=layout) for n in range(4)]

    actual = Forward(tmp_path, prompts)([(i, 0, len(prompt.token_ids)) for i, prompt in enumerate(prompts)])

    for prompt, logits in zip(prompts, actual, strict=True):
        torch.testing.assert_close(logits, reference_logits(reference, prompt), atol=1e-4, rtol=0)


CLASSES: dict[str, dict[str, Any]] = {
    "1.5": {},
    "1.6, mistral": LLAVA_NEXT_MISTRAL,
    "llava-interleave": LLAVA_INTERLEAVE,
    "onevision": LLAVA_ONEVISION,
    "phi": {"text": PHI},
}


@pytest.fixture(scope="module", params=CLASSES)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Reference]:
    folder = tmp_path_factory.mktemp("model")
    return folder, write_checkpoint(folder, **CLASSES[request.param])


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), num_images=st.lists(st.integers(0, 3), min_size=1, max_size=4))
def test_logits_do_not_depend_on_chunks_or_batches(
    saved: tuple[Path, Reference], seed: int, num_images: list[int]
) -> None:
    folder, reference = saved
    rng = np.random.default_rng(seed)
    layout = read_config(folder).image_layout()
    prompts = [random_prompt(rng, num_images=n, layout=layout) for n in num_images]
    forward = Forward(folder, prompts)
    collected: list[list[torch.Tensor]] = [[] for _ in prompts]
    done = [0] * len(prompts)
    while any(num < len(prompt.token_ids) for num, prompt in zip(done, prompts, strict=True)):
        chunks = []
        for index, prompt in enumerate(prompts):
            length = min(int(rng.integers(0, 4) ** 3), len(prompt.token_ids) - done[index])
            if length:
                chunks.append((index, done[index], done[index] + length))
        chunks.sort(key=lambda chunk: chunk[2] - chunk[1] > 1)
        if not chunks:
            continue
        for (index, _, end), logits in zip(chunks, forward(chunks), strict=True):
            collected[index].append(logits)
            done[index] = end

    for prompt, parts in zip(prompts, collected, strict=True):
        # 1e-4 per unit of the logits' standard deviation, which is 2 in these models.
        torch.testing.assert_close(torch.cat(parts), reference_logits(reference, prompt), atol=2e-4, rtol=0)


def test_a_nan_in_one_sequence_does_not_affect_others(saved: tuple[Path, Reference]) -> None:
    folder, reference = saved
    rng = np.random.default_rng(3)
    layout = read_config(folder).image_layout()
    prompts = [random_prompt(rng, num_images=n, layout=layout) for n in (0, 1, 1)]
    forward = Forward(folder, prompts)
    forward._embeddings[1][-2] = torch.nan  # this position is inside all attention windows
    lens = [len(prompt.token_ids) for prompt in prompts]

    whole = forward([(index, 0, end - 1) for index, end in enumerate(lens)])
    last = forward([(index, end - 1, end) for index, end in enumerate(lens)])

    assert last[1].isnan().all()
    for index in (0, 2):
        actual = torch.cat([whole[index], last[index]])
        torch.testing.assert_close(actual, reference_logits(reference, prompts[index]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("number", range(3))
def test_hd_equals_a_simple_implementation_of_the_paper(tmp_path: Path, number: int) -> None:
    assert_exact(make_member("1.5-HD", number, tmp_path))


@pytest.mark.parametrize("merge_type", ["flat", "spatial", "spatial_unpad"])
def test_merge_types_equal_a_simple_implementation_of_the_original(tmp_path: Path, merge_type: str) -> None:
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert_exact(make_merging_member(merge_type, number, folder))


@pytest.mark.parametrize("name", LAYOUTS)
def test_published_layouts_with_phi_equal_their_parts_in_transformers(tmp_path: Path, name: str) -> None:
    assert_exact(write_phi_model(name, tmp_path))


def assert_exact(member: Member) -> None:
    rng = np.random.default_rng(7)
    prompts = [random_prompt(rng, num_images=n, layout=member.image_layout) for n in (1, 2)]
    forward = Forward(member.folder, prompts)

    actual = forward([(i, 0, len(prompt.token_ids)) for i, prompt in enumerate(prompts)])

    for prompt, logits in zip(prompts, actual, strict=True):
        torch.testing.assert_close(logits, member.logits_of(prompt), atol=1e-4, rtol=0)
