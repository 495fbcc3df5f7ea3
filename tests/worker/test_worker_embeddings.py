"""Jobs that ask for a vector, through the worker's loop, a real queue and the echo engine."""

from __future__ import annotations

import numpy as np
import pytest
from llava_wire.messages.event import FinishReason
from llava_wire.messages.job import ImageRef, Message

from tests.worker.asker import Asker
from tests.worker.test_worker_loop import running

pytestmark = pytest.mark.anyio


async def test_an_embedding_is_one_event_that_ends(queue_url: str, asker: Asker) -> None:
    async with running(queue_url):
        image = ImageRef(digest="a", num_tiles=1, side=32, width=9, height=9)
        given: list[tuple[str | ImageRef, dict[str, bytes]]] = [
            ("Hi?", {}),
            (image, {"a": bytes(32 * 32 * 3)}),
        ]
        for part, pixels in given:
            messages = [Message("user", (part,))]
            job = await asker.ask_messages(messages, pixels=pixels, task="embed", form="raw")
            final = await asker.end(job)
            assert len(asker.events[job]) == 1 and asker.token_ids(job) == []
            assert final.reason is FinishReason.STOP and final.num_prompt_tokens > 0
            vector = np.frombuffer(final.vector, "<f4")
            assert np.linalg.norm(vector) == pytest.approx(1)
