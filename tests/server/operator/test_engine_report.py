"""The model list contains the engine of each model and how it computes concurrent requests."""

from __future__ import annotations

import msgspec
from llava_wire.messages.heartbeat import EngineInfo

from tests.server.conftest import Serve
from tests.server.operator.test_kernel_report import announce, get
from tests.wire.harness import heartbeat


def test_the_model_list_contains_the_engine_and_its_batching(serve: Serve, queue_url: str) -> None:
    info = EngineInfo(name="transformers", batching="padded")
    new = msgspec.structs.replace(heartbeat("new", "m"), engine=info)
    announce(queue_url, new, msgspec.structs.replace(heartbeat("old", "n"), engine=None))

    models = {model["id"]: model for model in get(serve(), "/v1/models").json()["data"]}

    assert (models["m"]["engine"], models["m"]["batching"]) == ("transformers", "padded")
    assert (models["n"]["engine"], models["n"]["batching"]) == (None, None)
