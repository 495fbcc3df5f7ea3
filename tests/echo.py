"""What the echo model answers when nothing fails."""

from __future__ import annotations

from llava_wire.messages.job import Message
from llava_worker.echo_engine import EchoEngine
from llava_worker.engine import Sequence
from llava_worker.language.detokenizer import Detokenizer
from llava_worker.open_model import open_model
from llava_worker.settings import load_settings

from tests.worker.sampling_params import greedy


def echo_text(prompt: str, *, max_tokens: int) -> str:
    """Return the greedy response of exactly ``max_tokens`` tokens, computed by one engine in this process."""
    model = open_model(load_settings(["--model", "echo"]))
    prompt_ids = model.prompts.build_chat([Message("user", (prompt,))]).token_ids
    engine = EchoEngine()
    engine.add(
        Sequence(
            seq_id="one",
            prompt_ids=prompt_ids,
            max_new_tokens=max_tokens,
            sampling=greedy(ignore_eos=True),
        )
    )
    detokenizer = Detokenizer(model.tokenizer)
    text = ""
    while engine.num_sequences:
        text += "".join(detokenizer.push(out.token_id) for out in engine.step() if out.token_id is not None)
    return text + detokenizer.flush()
