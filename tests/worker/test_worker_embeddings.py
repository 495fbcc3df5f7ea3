"""Embedding jobs, processed by a worker with a real queue and the echo engine."""

from __future__ import annotations

import numpy as np
import pytest
from llava_wire.messages.event import FinishReason
from llava_wire.messages.job import ImageRef, Message

from tests.worker.job_client import JobClient
from tests.worker.running_worker import running_worker

pytestmark = pytest.mark.anyio


async def test_embedding_job_has_one_event_with_a_unit_vector(queue_url: str, client: JobClient) -> None:
    image = ImageRef(digest="a", num_tiles=1, side=32, width=9, height=9)
    inputs: list[tuple[str | ImageRef, dict[str, bytes]]] = [("Hi?", {}), (image, {"a": bytes(32 * 32 * 3)})]
    async with running_worker(queue_url):
        for part, pixels in inputs:
            messages = [Message("user", (part,))]
            job = await client.submit_messages(messages, pixels=pixels, task="embed", form="raw")
            final = await client.wait_for_final(job)
            assert len(client.events[job]) == 1 and client.token_ids(job) == []
            assert final.reason is FinishReason.STOP and final.num_prompt_tokens > 0
            vector = np.frombuffer(final.vector, "<f4")
            assert np.linalg.norm(vector) == pytest.approx(1)
