"""No API key can take more than its share: priorities, open requests, body bytes and readers of a result."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.api_key_cli import ApiKeyCli
from tests.server.conftest import OwnStack
from tests.server.queue_order import order_served


@pytest.mark.parametrize("fields", [{"service_tier": "priority"}, {"priority": -1}])
def test_a_flood_of_requests_for_high_priority_does_not_overtake_another_key(
    own_stack: OwnStack, api_key_cli: ApiKeyCli, fields: dict[str, Any]
) -> None:
    flooding, other = api_key_cli.create(), api_key_cli.create()
    order = order_served(own_stack(auth=True), (flooding, "flood", 30), (other, "late", 1), **fields)
    assert order.index("late") <= 1
