"""A server with multiple models, each with its own workers."""

from __future__ import annotations

from typing import Any

import httpx2
import msgspec
import pytest
from llava_wire.messages.heartbeat import ImageSpec

from tests.machine_speed import scaled
from tests.server.conftest import Serve, text_of
from tests.server.image_files import encoded, part, scene
from tests.server.scripted_worker import SPEC, ScriptedWorker
from tests.waiting import wait_until

GRIDS = ((28, 56), (56, 28), (56, 56))
GRID = ImageSpec(side=28, tokens_per_tile=4, fit="anyres", grid=GRIDS)
ONEVISION = msgspec.structs.replace(GRID, single_tile_fit="pad", splits_several_images=False)


class TwoModels:
    """A server with one worker for each of the models "plain" and "gridded"."""

    def __init__(self, url: str, workers: dict[str, ScriptedWorker]) -> None:
        self.workers = workers
        self.http = httpx2.Client(base_url=url, timeout=scaled(60))

    def chat(self, model: str, content: Any) -> httpx2.Response:
        body = {"model": model, "messages": [{"role": "user", "content": content}]}
        return self.http.post("/v1/chat/completions", json=body)

    def num_workers(self) -> dict[str, int]:
        models = self.http.get("/v1/models").json()["data"]
        return {model["id"]: model["num_workers"] for model in models}


@pytest.fixture
def two(queue_url: str, serve: Serve, request: pytest.FixtureRequest) -> TwoModels:
    specs = {"plain": SPEC, "gridded": GRID}
    workers = {name: ScriptedWorker(queue_url, model=name, spec=spec).start() for name, spec in specs.items()}
    for worker in workers.values():
        request.addfinalizer(worker.stop)
    two = TwoModels(serve().url, workers)
    request.addfinalizer(two.http.close)
    wait_until(lambda: two.num_workers() == {"plain": 1, "gridded": 1})
    return two


def test_each_request_is_run_by_a_worker_of_its_model(two: TwoModels) -> None:
    for name in ("plain", "gridded", "plain"):
        assert text_of(two.chat(name, "say fine")) == "fine"
    assert [len(two.workers[name].assignments) for name in ("plain", "gridded")] == [2, 1]


def test_a_new_model_is_served_at_once_by_a_controller_that_has_just_read_the_models(
    two: TwoModels, queue_url: str, request: pytest.FixtureRequest
) -> None:
    for number in range(4):  # one of them follows a periodic refresh in less than the minimum interval
        name = f"new-{number}"
        assert two.chat(name, "say fine").status_code == 404
        request.addfinalizer(ScriptedWorker(queue_url, model=name, spec=SPEC).start().stop)
        assert text_of(two.chat(name, "say fine")) == "fine"


def test_a_model_without_a_worker_is_listed_and_its_requests_return_503(two: TwoModels) -> None:
    two.workers["gridded"].stop()
    wait_until(lambda: two.num_workers() == {"plain": 1, "gridded": 0})
    response = two.chat("gridded", "say fine")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "no_worker")
    assert int(response.headers["retry-after"]) >= 1
    assert two.http.get("/v1/models/gridded").json()["num_workers"] == 0
    assert text_of(two.chat("plain", "say fine")) == "fine"


TILES: list[tuple[str, str, int]] = [
    ("gridded", "low", 1),
    ("gridded", "high", 3),
    ("gridded", "auto", 3),
    ("plain", "low", 1),
    ("plain", "high", 1),
]


def test_low_detail_uses_one_tile_even_for_a_model_with_a_grid(two: TwoModels) -> None:
    for model, detail, num_tiles in TILES:
        image_part = part(encoded(scene()))
        image_part["image_url"]["detail"] = detail
        assert two.chat(model, [image_part, {"type": "text", "text": "say fine"}]).status_code == 200
        [image] = two.workers[model].assignments[-1].job.images
        assert (image.num_tiles, image.width, image.height) == (num_tiles, 40, 20), (model, detail)


def test_several_images_are_not_split_if_the_model_splits_only_single_images(
    two: TwoModels, queue_url: str, request: pytest.FixtureRequest
) -> None:
    worker = ScriptedWorker(queue_url, model="onevision", spec=ONEVISION).start()
    request.addfinalizer(worker.stop)
    two.workers["onevision"] = worker
    image, text = part(encoded(scene())), {"type": "text", "text": "say fine"}
    for model, num_tiles in (("onevision", 1), ("gridded", 3)):
        assert text_of(two.chat(model, [image, image, text])) == "fine"
        assert [each.num_tiles for each in two.workers[model].assignments[-1].job.images] == [num_tiles] * 2
    assert text_of(two.chat("onevision", [image, text])) == "fine"
    assert [each.num_tiles for each in worker.assignments[-1].job.images] == [3]
