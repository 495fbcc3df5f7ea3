"""``llava-serve keys``: output, stored data and errors."""

from __future__ import annotations

import re

import pytest
import redis
from llava_server.middleware.auth import key_digest, tenant_of

from tests.server.api_key_cli import ApiKeyCli, chat_with_key
from tests.server.conftest import OwnStack


def test_a_key_is_printed_only_once_and_not_stored_in_redis(
    own_stack: OwnStack, api_key_cli: ApiKeyCli, queue_url: str
) -> None:
    stack = own_stack(auth=True)
    key = api_key_cli.create("--tokens-per-min", "1000")
    assert re.fullmatch(r"lv-[\w-]{43}", key)
    assert chat_with_key(stack.server.url, key).status_code == 200
    listed = api_key_cli.run("list", "--json").stdout
    assert f'"id": "{tenant_of(key_digest(key))}"' in listed
    assert '"tokens_per_min": 1000' in listed
    assert key not in listed
    with redis.Redis.from_url(queue_url) as client:
        stored = b"".join(client.dump(name) or b"" for name in client.scan_iter())
    assert key_digest(key).encode() in stored
    assert key.encode() not in stored


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("create", "bell\a"), "printable"),
        (("revoke", "abc"), "too short"),
        (("revoke", "0123456789abcdef"), "0 keys match the ID"),
    ],
)
def test_invalid_arguments_fail_with_a_message(
    api_key_cli: ApiKeyCli, arguments: tuple[str, ...], message: str
) -> None:
    result = api_key_cli.run(*arguments)
    assert result.returncode != 0
    assert message in result.stderr
    assert "Traceback" not in result.stderr
