"""The order in which a worker receives requests that were queued one batch after another."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx2

from tests.server.api_key_cli import chat_with_key
from tests.server.conftest import Stack
from tests.server.scripted_worker import ScriptedWorker
from tests.waiting import wait_until

__all__ = ["order_served"]


def order_served(stack: Stack, *batches: tuple[str, str, int], **fields: Any) -> list[str]:
    """Return the words in the order in which a worker receives the requests that contain them.

    Each batch is (key, word, number of requests). All requests in a batch are queued before those in the next
    batch. ``fields`` are added to the requests of the first batch.
    """
    stack.worker.stop_pulling()
    controller = stack.server.services.controller
    with ThreadPoolExecutor(64) as pool:
        waiting: list[Future[httpx2.Response]] = []
        for index, (key, word, number) in enumerate(batches):
            send = partial(chat_with_key, stack.server.url, key, f"say {word}", **({} if index else fields))
            waiting += [pool.submit(send) for _ in range(number)]
            wait_until(partial(lambda total: controller.num_open == total, len(waiting)))
        stack.worker = ScriptedWorker(stack.worker.url).start()
        assert {response.result().status_code for response in waiting} == {200}
    texts = [str(assignment.job.messages[0].parts[0]) for assignment in stack.worker.assignments]
    return [text.removeprefix("say ") for text in texts]
