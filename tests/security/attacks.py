"""Attacks on the availability of the service, for one hostile client each.

``python -m tests.security.attacks URL`` runs attacks in a separate process. It reads lines of JSON, each a
list of (name, address, key), and runs these attacks instead of those before. Four times per second, it writes
a line of JSON with the number of responses of each attack, by status. When it has stopped all attacks, it
writes {}.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import json
import resource
import sys
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
from PIL import Image

from tests.security.attacker import Attacker, forever
from tests.server.image_files import data_url

__all__ = ["ATTACKS", "NUM_HELD", "AttackName"]

AttackName = str
NUM_HELD = 1200  # connections, more than the default limits on open files and on open requests
_CHAT = "/v1/chat/completions"
_REPORT_INTERVAL_S = 0.25
_MIB = 1 << 20


def chat(content: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "echo", "messages": [{"role": "user", "content": content}], **fields}


async def nested_arrays(attacker: Attacker) -> None:
    """Send 30 MB of nested arrays in an unknown field, which are small but expensive to parse."""
    body = json.dumps(chat("x")).encode()[:-1]
    unknown = [b"[" + b"[]," * (10 * _MIB) + b"[]]", b"[" * (15 * _MIB) + b"]" * (15 * _MIB)]
    requests = itertools.cycle([attacker.request(_CHAT, body + b',"x":' + each + b"}") for each in unknown])
    await forever(lambda: attacker.send(next(requests)), concurrency=2)


async def many_parts(attacker: Attacker) -> None:
    """Send 1024 messages with 256 empty parts each."""
    message = {"role": "user", "content": [{"type": "text", "text": ""}] * 256}
    request = attacker.json_request(_CHAT, {"model": "echo", "messages": [message] * 1024})
    await forever(lambda: attacker.send(request), concurrency=2)


async def priority(attacker: Attacker) -> None:
    """Fill the queue with requests of high priority."""
    levels: list[dict[str, Any]] = [{"service_tier": "priority"}, {"priority": -1}]
    requests = itertools.cycle(
        [
            attacker.json_request(_CHAT, chat("x", max_tokens=max_tokens, ignore_eos=True, **level))
            for max_tokens in range(8, 24)  # so that jobs do not end at the same time
            for level in levels
        ]
    )
    await forever(lambda: attacker.send(next(requests)), concurrency=128)


async def slow_images(attacker: Attacker) -> None:
    """Send progressive JPEGs of 36 megapixels with 240 scans."""
    numbers = itertools.count()
    image = progressive_jpeg(6000, num_scans=240)

    async def send() -> None:
        part = {"type": "image_url", "image_url": {"url": data_url(unique_jpeg(image, next(numbers)))}}
        await attacker.send(attacker.json_request(_CHAT, chat([part], max_tokens=1)))

    await forever(send, concurrency=8)


async def stored_responses(attacker: Attacker) -> None:
    """Create background responses with 1 MB of instructions, which are stored for minutes."""
    fields = {"model": "echo", "input": "x", "instructions": "x" * 1_000_000, "background": True}
    fields["max_output_tokens"] = 8  # the jobs end soon after the attack
    request = attacker.json_request("/v1/responses", fields)
    await forever(lambda: attacker.send(request), concurrency=8)


async def unread_downloads(attacker: Attacker) -> None:
    """Request a large file many times and do not read the responses."""
    listing = attacker.request("/v1/files", method="GET")
    boundary = b"--x\r\nContent-Disposition: form-data; name="
    form = boundary + b'"purpose"\r\n\r\nbatch\r\n' + boundary + b'"file"; filename="a"\r\n\r\n'
    form += bytes(24 * _MIB) + b"\r\n--x--\r\n"
    multipart = ("Content-Type: multipart/form-data; boundary=x",)
    upload = attacker.request("/v1/files", form, headers=multipart)
    file_id = ""
    while not file_id:
        with contextlib.suppress(OSError):
            await attacker.send(upload)
            files = json.loads(await attacker.send(listing) or b"{}").get("data", [])
            file_id = files[0]["id"] if files else ""
    download = attacker.request(f"/v1/files/{file_id}/content", method="GET")
    await forever(lambda: attacker.hold(download), concurrency=40)


async def slow_uploads(attacker: Attacker) -> None:
    """Occupy the slots of open requests with uploads of one byte per second."""
    request = attacker.request(_CHAT, b"{", length=1000)
    await forever(lambda: attacker.hold(request, more=b" "), concurrency=NUM_HELD)


async def shared_result(attacker: Attacker) -> None:
    """Read one result with 400 requests that have the same Idempotency-Key."""
    numbers = itertools.count()

    async def send() -> None:
        fields = chat("x", max_tokens=64, ignore_eos=True, stream=True)
        key = f"Idempotency-Key: {next(numbers) // 400}"
        await attacker.send(attacker.json_request(_CHAT, fields, key))

    await forever(send, concurrency=400)


async def idle_connections(attacker: Attacker) -> None:
    """Open connections and send nothing, or half of the headers. No key is needed."""
    firsts = itertools.cycle([b"", b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Slow: "])
    await forever(lambda: attacker.hold(next(firsts)), concurrency=NUM_HELD)


async def small_chunks(attacker: Attacker) -> None:
    """Send bodies in as many small chunks as a request may have, on many connections at once."""
    head = attacker.request(_CHAT, headers=("Transfer-Encoding: chunked",))
    head = head.replace(b"Content-Length: 0\r\n", b"")
    request = head + b"1\r\n \r\n" * 1000 + b"0\r\n\r\n"
    await forever(lambda: attacker.send(request), concurrency=400)


async def aborted_requests(attacker: Attacker) -> None:
    """Send requests and close each connection at once or a moment later."""
    request = attacker.json_request(_CHAT, chat("x", max_tokens=500, stream=True))
    await forever(lambda: attacker.abort(request), concurrency=64)


async def pipelined_requests(attacker: Attacker) -> None:
    """Send hundreds of small requests on each of many connections without waiting for the responses."""
    last = attacker.request("/v1/models", method="GET")
    request = last.replace(b"Connection: close\r\n", b"")
    await forever(lambda: attacker.send(request * 500 + last), concurrency=128)


ATTACKS: dict[AttackName, Callable[[Attacker], Coroutine[Any, Any, None]]] = {
    attack.__name__: attack
    for attack in (
        nested_arrays,
        many_parts,
        priority,
        slow_images,
        stored_responses,
        unread_downloads,
        slow_uploads,
        shared_result,
        idle_connections,
        small_chunks,
        aborted_requests,
        pipelined_requests,
    )
}


def progressive_jpeg(side: int, *, num_scans: int) -> bytes:
    """Return a small JPEG that is slow to decode, because its last scan is repeated."""
    buffer = io.BytesIO()
    Image.new("L", (side, side), 128).save(buffer, "JPEG", progressive=True)
    jpeg = buffer.getvalue()
    last_scan = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    num_present = jpeg.count(b"\xff\xda")
    return jpeg[:-2] + last_scan * (num_scans - num_present) + jpeg[-2:]


def unique_jpeg(jpeg: bytes, number: int) -> bytes:
    """Insert a comment, so that the image is in no cache."""
    return jpeg[:2] + b"\xff\xfe\x00\x0a" + number.to_bytes(8, "big") + jpeg[2:]


async def run(url: str, chosen: list[tuple[AttackName, str, str]]) -> None:
    """Run attacks until this task is cancelled. Report the number of responses of each attack."""
    attackers = [(name, Attacker(url, address, key)) for name, address, key in chosen]
    async with anyio.create_task_group() as tasks:
        for name, attacker in attackers:
            tasks.start_soon(ATTACKS[name], attacker)
        while True:
            await asyncio.sleep(_REPORT_INTERVAL_S)
            counts: dict[str, Counter[str]] = {name: Counter() for name, _ in attackers}
            for name, attacker in attackers:
                counts[name].update(attacker.counts)
            report(counts)


def report(counts: dict[str, Counter[str]]) -> None:
    sys.stdout.write(json.dumps(counts) + "\n")
    sys.stdout.flush()


async def follow_commands(url: str) -> None:
    """Run the attacks of the latest command. An unexpected error of an attack ends the process."""
    line = await asyncio.to_thread(sys.stdin.readline)
    while line:
        async with anyio.create_task_group() as tasks:
            if chosen := json.loads(line):
                tasks.start_soon(run, url, chosen)
            line = await asyncio.to_thread(sys.stdin.readline)
            tasks.cancel_scope.cancel()
        report({})


if __name__ == "__main__":
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    asyncio.run(follow_commands(sys.argv[1]))
