"""The path of an image from the server's preprocessing through the prompt to the engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from llava_server.images.image_processing import resize
from llava_wire.messages.job import ImageRef, Message
from llava_worker.engine import Sequence
from llava_worker.engine.startup.build_engine import build_engine
from llava_worker.engine.startup.engine_config import EngineConfig
from llava_worker.language.conversation_templates import CONVERSATION_TEMPLATES
from llava_worker.language.image_tokens import TileExpander
from llava_worker.language.prompt_builder import PromptBuilder
from llava_worker.language.tokenizer import ByteTokenizer
from llava_worker.open_model import image_spec
from PIL import Image

from tests.worker.checkpoints import IMAGE_TOKEN, LLAVA_INTERLEAVE, NEXT, write_checkpoint


class AsciiTokenizer(ByteTokenizer):
    """A byte tokenizer with token IDs below 128, like those of the random checkpoints."""

    bos_token_id = 1
    eos_token_id = 2
    image_token_id = IMAGE_TOKEN


@pytest.mark.parametrize("size", [(200, 60), (60, 200), (31, 30), (2, 2), (500, 3), (16_384, 1), (1, 700)])
@pytest.mark.parametrize("kind", [{}, NEXT, LLAVA_INTERLEAVE], ids=["1.5", "1.6", "interleave"])
def test_image_preprocessed_by_the_server_is_accepted_by_the_engine(
    kind: dict[str, Any], size: tuple[int, int], tmp_path: Path
) -> None:
    write_checkpoint(tmp_path, **kind)
    if kind is LLAVA_INTERLEAVE:
        size_file = json.dumps({"size": {"height": 28, "width": 28}})
        (tmp_path / "preprocessor_config.json").write_text(size_file)
    engine, info = build_engine(
        EngineConfig(tmp_path, precision="fp32", device="cpu", kv_cache_bytes=1 << 20)
    )
    spec = image_spec(info)
    assert spec.fit == ("squash" if kind is LLAVA_INTERLEAVE else "anyres" if kind is NEXT else "pad")
    tiles = resize(
        Image.new("RGB", size, "teal"),
        side=spec.side,
        mode=spec.fit,
        background=spec.background,
        grid=spec.grid,
    )
    num_tiles = tiles.height // spec.side
    image = ImageRef(digest="p", num_tiles=num_tiles, side=spec.side, width=size[0], height=size[1])
    tokenizer = AsciiTokenizer()
    builder = PromptBuilder(
        tokenizer,
        CONVERSATION_TEMPLATES["mistral_instruct"],
        expander=TileExpander(info.layout, tokenizer.image_token_id),
        context_length=engine.context_length,
    )
    prompt = builder.build_chat([Message("user", (image, "Hi?"))])
    sequence = Sequence(
        seq_id="s",
        prompt_ids=prompt.token_ids,
        images=prompt.images,
        pixels=[tiles.tobytes()],
        max_new_tokens=1,
    )
    engine.add(sequence)
    outputs = [output for _ in range(9) if engine.num_sequences for output in engine.step()]
    assert [output.error for output in outputs if output.finish] == [None]
