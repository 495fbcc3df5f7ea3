"""``llava-serve keys``: create, list and revoke API keys for all servers that use the same Redis server.

A key is printed only once, when it is created. The store contains only the SHA-256 digest of the key. The
key's ID is a prefix of the digest and also serves as the tenant's name in logs.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Annotated, NoReturn, TypeVar

import msgspec
import typer
from llava_wire.errors import QueueUnavailable
from llava_wire.stores.api_keys import ApiKey, ApiKeyStore, KeyLimits

from llava_server.middleware.auth import key_digest, tenant_of
from llava_server.operator.cli.run import run
from llava_server.settings import load_settings

__all__ = ["app"]

T = TypeVar("T")

_KEY_BYTES = 32
_MIN_ID_DIGITS = 8
_EXIT_FAILED = 1
_EXIT_USAGE = 2

_MaxOpenRequests = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=10**5,
        help="Maximum number of concurrent requests per controller. Default: the server's "
        "LLAVA_MAX_TENANT_REQUESTS.",
    ),
]
_MaxInflightBodyMb = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=65536,
        help="Maximum total size of request bodies in memory per controller, in MiB. Default: the "
        "server's LLAVA_MAX_TENANT_INFLIGHT_BODY_MB.",
    ),
]

app = typer.Typer(
    name="llava-serve keys",
    help="Manage the API keys in Redis. Set LLAVA_REDIS_URL or LLAVA_REDIS_URL_FILE to connect to Redis.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Name of the key, for example the owner or purpose.")],
    requests_per_min: Annotated[
        int | None,
        typer.Option(min=1, max=10**9, help="Maximum number of requests per minute. Default: no limit."),
    ] = None,
    tokens_per_min: Annotated[
        int | None,
        typer.Option(min=1, max=10**9, help="Maximum number of tokens per minute. Default: no limit."),
    ] = None,
    max_jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=10**6,
            help="Maximum number of waiting and running jobs. Default: the server's LLAVA_MAX_TENANT_JOBS.",
        ),
    ] = None,
    max_open_requests: _MaxOpenRequests = None,
    max_inflight_body_mb: _MaxInflightBodyMb = None,
    priority: Annotated[
        int,
        typer.Option(
            min=-1,
            max=1,
            help="Maximum priority of the key's requests: 1 is high, 0 is normal, -1 is low. Requests can "
            "select a lower priority.",
        ),
    ] = 0,
    weight: Annotated[
        float,
        typer.Option(min=0.01, max=100, help="Share of a busy model's capacity, relative to other keys."),
    ] = 1.0,
) -> None:
    """Create an API key and print it. The key cannot be displayed again."""
    if not name.isprintable() or not 1 <= len(name) <= 100:
        _fail(f"The name {name!r} is invalid. Use 1 to 100 printable characters.", _EXIT_USAGE)
    _add_key(
        name,
        KeyLimits(
            requests_per_min=requests_per_min,
            tokens_per_min=tokens_per_min,
            max_jobs=max_jobs,
            max_open_requests=max_open_requests,
            max_inflight_body_mb=max_inflight_body_mb,
            priority=priority,
            weight=weight,
        ),
    )


@app.command("list")
def list_keys(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
) -> None:
    """List the ID, creation date, name and limits of each key."""
    for key in _all_keys():
        limits = msgspec.structs.asdict(key.limits)
        if as_json:
            typer.echo(json.dumps({"id": tenant_of(key.digest), "name": key.name, **limits}))
            continue
        created = time.strftime("%Y-%m-%d", time.gmtime(key.created_at))
        shown = " ".join(f"{name}={value}" for name, value in limits.items() if value is not None)
        typer.echo(f"{tenant_of(key.digest)}  {created}  {key.name}  {shown}")


@app.command()
def revoke(
    key_id: Annotated[
        str, typer.Argument(help="ID of the key as printed by 'list', or a prefix of that ID.")
    ],
) -> None:
    """Revoke a key. In-flight requests continue; new requests are rejected."""
    if len(key_id) < _MIN_ID_DIGITS:
        _fail(f"The ID {key_id!r} is too short. Enter at least {_MIN_ID_DIGITS} digits.", _EXIT_USAGE)
    found = [key for key in _all_keys() if tenant_of(key.digest).startswith(key_id)]
    if len(found) != 1:
        num_found = len(found)
        _fail(
            f"{num_found} keys match the ID {key_id!r}. List all keys with 'llava-serve keys list'.",
            _EXIT_FAILED,
        )
    _with_store(lambda store: store.remove(found[0].digest))
    typer.echo(f"Revoked key {tenant_of(found[0].digest)} ({found[0].name}).", err=True)


def _add_key(name: str, limits: KeyLimits) -> None:
    """Store a new key and print it."""
    key = f"lv-{secrets.token_urlsafe(_KEY_BYTES)}"
    entry = ApiKey(digest=key_digest(key), name=name, created_at=time.time(), limits=limits)
    _with_store(lambda store: store.add(entry))
    typer.echo(
        f"Created key {tenant_of(entry.digest)} for {name}. Copy it now; it cannot be displayed again:",
        err=True,
    )
    typer.echo(key)


def _all_keys() -> list[ApiKey]:
    version_and_keys = _with_store(lambda store: store.read())
    return [] if version_and_keys is None else version_and_keys[1]


def _with_store(use: Callable[[ApiKeyStore], Awaitable[T]]) -> T:
    async def run_command() -> T:
        url = load_settings(()).redis_url.get_secret_value()
        async with aclosing(ApiKeyStore(url)) as store:
            return await use(store)

    try:
        return asyncio.run(run_command())
    except QueueUnavailable as error:
        _fail(f"{error} Start Redis or Valkey, or set LLAVA_REDIS_URL.", _EXIT_FAILED)


def _fail(message: str, status: int) -> NoReturn:
    sys.stderr.write(f"llava-serve keys: {message}\n")
    raise SystemExit(status)


if __name__ == "__main__":
    run(app, prog_name="llava-serve keys")
