"""Copies the outputs of ended jobs to stored responses in the background, before the jobs' logs expire.

A stored response without an output may belong to any controller, including one that was killed. Every
controller therefore looks for such responses, and the store gives each of them to only one controller at a
time. A request that needs an output earlier copies it itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import partial

from llava_wire.errors import QueueUnavailable

from llava_server.api.chat.stored_chat import save_chat
from llava_server.api.responses.stored_output import save_response
from llava_server.errors import ApiError
from llava_server.lifespan import Services
from llava_server.periodic import run_periodically
from llava_server.supervised_tasks import SupervisedTasks

__all__ = ["run_saver"]

_INTERVAL_S = 1.0
_PAUSE_S = 5.0  # time until a response without an output is looked at again
_NUM_PER_STEP = 256


@asynccontextmanager
async def run_saver(services: Services) -> AsyncIterator[None]:
    """Copy outputs until the ``with`` block exits."""
    async with aclosing(SupervisedTasks(services.metrics.task_crashed)) as tasks:
        tasks.start("save outputs", partial(run_periodically, _INTERVAL_S, partial(_save_due, services)))
        yield


async def _save_due(services: Services) -> None:
    with contextlib.suppress(QueueUnavailable, ApiError):  # logged by QueueHealth; repeated after the pause
        for response_id, tenant in await services.responses.due(_NUM_PER_STEP, pause_s=_PAUSE_S):
            stored = await services.responses.find(response_id, tenant=tenant)
            if stored is not None:
                save = save_chat if response_id.startswith("chatcmpl-") else save_response
                await save(services, stored, tenant=tenant)
