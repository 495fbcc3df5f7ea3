"""A checkpoint's chat template in the worker: a runaway template fails only its own job."""

from __future__ import annotations

import asyncio

import pytest
from llava_wire.messages.event import ErrorCode
from llava_worker.language.image_tokens import TileExpander
from llava_worker.language.jinja_template import JinjaChatTemplate
from llava_worker.language.prompt_builder import PromptBuilder
from llava_worker.language.template_process import TemplateProcess
from llava_worker.language.tokenizer import ByteTokenizer
from llava_worker.model.config.image_grid import ImageLayout
from llava_worker.sandboxed_process import ProcessLimits

from tests.waiting import async_wait_until
from tests.worker.job_client import JobClient
from tests.worker.running_worker import LEASE_S, SteppedEngine, running_worker

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("short_pulls")]

SOURCE = """{{ messages[0].content }}{% if messages[0].content == 'loop' -%}
{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}
{%- endif %}"""


async def test_runaway_template_fails_only_its_own_job(queue_url: str, client: JobClient) -> None:
    """Streams continue and heartbeats are sent while the template is rendered for longer than the lease."""
    process = TemplateProcess(ProcessLimits(cpu_s=1.2, timeout_s=600.0, memory_bytes=512 << 20))
    template = await asyncio.to_thread(
        JinjaChatTemplate, SOURCE, process=process, special_tokens=["</s>"], variables={}
    )
    prompts = PromptBuilder(
        ByteTokenizer(),
        template,
        expander=TileExpander(ImageLayout(side=8, tokens_per_tile=4), ByteTokenizer.image_token_id),
        context_length=4096,
    )
    engine = SteppedEngine()
    async with running_worker(queue_url, engine, is_stepped=True, prompts=prompts) as running:
        stream = await client.submit("stream", max_tokens=3000, ignore_eos=True)
        await async_wait_until(lambda: running.worker.job_ids == [stream])
        runaway = await client.submit("loop", max_tokens=5)
        started_at = asyncio.get_running_loop().time()
        num_tokens = 0
        while client.final(runaway) is None:
            engine.allow_steps(1)
            await client.wait_for_tokens(stream, num_tokens := num_tokens + 1)
        elapsed_s = asyncio.get_running_loop().time() - started_at
        final = await client.wait_for_final(runaway)
        assert final.error is not None
        assert final.error.code is ErrorCode.INVALID_REQUEST
        assert "takes longer than 1.2 seconds to render" in final.error.message
        assert elapsed_s > 2 * LEASE_S  # otherwise, this test would not notice missing heartbeats
        assert num_tokens > 10
        engine.run_freely()
        assert await client.complete("Hi?", max_tokens=5)
    process.close()
