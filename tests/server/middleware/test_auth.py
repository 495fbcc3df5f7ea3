"""AuthMiddleware and ApiKeys: paths that require a key, valid keys, and tenant isolation."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import anthropic
import httpx2
import pytest
from llava_server.middleware.auth import ANONYMOUS, ApiKeys, key_digest, tenant_of
from llava_server.settings import load_settings
from llava_wire.stores.api_keys import ApiKey, ApiKeyStore
from starlette.routing import Route

from tests.machine_speed import scaled
from tests.server.api_key_cli import ApiKeyCli, bearer, chat_with_key
from tests.server.conftest import OwnStack, Stack, text_of
from tests.server.image_files import encoded, part, scene
from tests.server.scripted_worker import MODEL
from tests.waiting import wait_until

KEY, OTHER_KEY = "key-of-tenant-a", "key-of-tenant-b"
IMAGE = [part(encoded(scene())), {"type": "text", "text": "look"}]


@pytest.fixture
def keyed(own_stack: OwnStack) -> Stack:
    return own_stack(api_keys=(KEY, OTHER_KEY))


def status_with_key(stack: Stack, key: str) -> int:
    """Send a request that does not need a worker, and return the response status."""
    url = f"{stack.server.url}/v1/models"
    return httpx2.get(url, headers=bearer(key), timeout=scaled(30)).status_code


def test_all_routes_except_the_public_ones_require_a_key(keyed: Stack) -> None:
    public = {"/", "/playground/{name}", "/livez", "/readyz", "/health", "/ping", "/version"}
    public |= {"/docs", "/openapi.json"}
    paths = {route.path for route in keyed.server.app.routes if isinstance(route, Route)}
    paths |= set(keyed.server.app.openapi()["paths"])
    assert "/v1/chat/completions" in paths
    for path in paths - public:
        for method in ("GET", "POST", "DELETE"):
            assert keyed.http.request(method, path).status_code == 401, (method, path)
    for path in ("//v1/models", "/v1/models/", "/%2e/v1/models", "/playground/../v1/models", "/nowhere"):
        assert keyed.http.get(path).status_code == 401, path
    assert keyed.http.get("/livez").status_code == 200


def test_invalid_credentials_return_401_in_openais_format(keyed: Stack) -> None:
    for header in (None, "Bearer", f"Basic {KEY}", "Bearer wrong", KEY):
        headers = {} if header is None else {"authorization": header}
        response = keyed.http.get("/v1/models", headers=headers)
        assert (response.status_code, response.json()["error"]["type"]) == (401, "authentication_error"), (
            header
        )
        assert response.headers["www-authenticate"] == "Bearer"


def test_tenants_do_not_share_images(keyed: Stack) -> None:
    for key in (KEY, OTHER_KEY, KEY):
        assert chat_with_key(keyed.server.url, key, IMAGE).status_code == 200
    first, other, second = (assignment.job for assignment in keyed.worker.assignments)
    assert first.tenant == second.tenant != other.tenant
    assert first.images[0].digest == second.images[0].digest != other.images[0].digest
    assert KEY not in repr(first)


def test_tenants_share_public_images_and_no_others(keyed: Stack) -> None:
    for key in (KEY, OTHER_KEY):
        for scope in ("public", "tenant"):
            assert chat_with_key(keyed.server.url, key, IMAGE, cache_scope=scope).status_code == 200
    jobs = [assignment.job for assignment in keyed.worker.assignments]
    assert [job.cache_scope for job in jobs] == ["public", "tenant"] * 2
    public, own, other_public, other_own = (job.images[0].digest for job in jobs)
    assert public == other_public
    assert len({public, own, other_own}) == 3


def test_without_authentication_every_request_is_anonymous(stack: Stack) -> None:
    assert text_of(stack.chat("say yes")) == "yes"
    assert stack.worker.assignments[-1].job.tenant == ANONYMOUS


def test_api_keys_stores_only_digests() -> None:
    keys = ApiKeys([KEY], is_required=True)
    assert KEY not in repr(vars(keys))
    assert asyncio.run(keys.find_tenant(KEY)) is not None
    assert asyncio.run(keys.find_tenant(f"{KEY}x")) is None


def test_a_server_requires_keys_by_default(own_stack: OwnStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAVA_AUTH")
    assert load_settings(()).auth
    assert not load_settings(("--no-auth",)).auth
    stack = own_stack(auth=True)
    assert stack.chat().status_code == 401
    assert stack.http.get("/readyz").status_code == 200


def test_a_new_key_is_valid_on_a_running_server_and_a_revoked_one_is_not(
    own_stack: OwnStack, api_key_cli: ApiKeyCli
) -> None:
    stack = own_stack(auth=True)
    key = api_key_cli.create()
    assert status_with_key(stack, key) == 200
    assert status_with_key(stack, key[:-1]) == 401
    assert api_key_cli.run("revoke", tenant_of(key_digest(key))).returncode == 0
    wait_until(lambda: status_with_key(stack, key) == 401)


def test_a_key_created_directly_after_a_refresh_is_valid_at_once(queue_url: str) -> None:
    async def find() -> list[str | None]:
        keys = ApiKeys([], is_required=True)
        async with aclosing(ApiKeyStore(queue_url)) as store:
            keys.attach(store)
            await keys.refresh()
            await store.add(ApiKey(digest=key_digest(KEY), name="new", created_at=0.0))
            return list(await asyncio.gather(*(keys.find_tenant(key) for key in (KEY, OTHER_KEY, KEY))))

    tenant = tenant_of(key_digest(KEY))
    assert asyncio.run(find()) == [tenant, None, tenant]


def test_known_keys_stay_valid_while_the_store_is_unavailable(
    own_stack: OwnStack, api_key_cli: ApiKeyCli
) -> None:
    stack = own_stack(auth=True)
    key = api_key_cli.create()
    assert status_with_key(stack, key) == 200
    stack.server.services.api_keys.attach(ApiKeyStore("unix:///nowhere/s"))
    assert status_with_key(stack, key) == 200
    assert status_with_key(stack, "unknown") == 503  # the key may be valid


def test_anthropics_client_authenticates_with_x_api_key(own_stack: OwnStack) -> None:
    messages: list[anthropic.types.MessageParam] = [{"role": "user", "content": "say yes"}]
    url = own_stack(api_keys="key-of-claude").server.url
    with anthropic.Anthropic(base_url=url, api_key="key-of-claude", max_retries=0) as client:
        message = client.messages.create(model=MODEL, max_tokens=9, messages=messages)
        assert message.content[0].type == "text" and message.content[0].text == "yes"
        assert client.messages.count_tokens(model=MODEL, messages=messages).input_tokens > 0
    with (
        anthropic.Anthropic(base_url=url, api_key="key-of-nobody", max_retries=0) as client,
        pytest.raises(anthropic.AuthenticationError, match="x-api-key"),
    ):
        client.messages.create(model=MODEL, max_tokens=9, messages=messages)
