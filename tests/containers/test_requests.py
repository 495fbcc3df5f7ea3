"""A deployment of docker-compose.yml serves requests, with exact texts while containers are replaced."""

from __future__ import annotations

import json
import logging
import signal
import time

import pytest
from llava_client import AuthenticationError, Client
from PIL import Image, ImageDraw

from tests.containers.deployment import Deployment, Images
from tests.containers.load import Load
from tests.containers.podman import Container, podman
from tests.waiting import wait_until

pytestmark = [pytest.mark.containers, pytest.mark.timeout(900)]

LOG = logging.getLogger("tests.containers")
NUM_WORKERS = 3
NUM_AFTER = 6  # responses that must be complete after a container has been replaced


def circle(color: str) -> Image.Image:
    image = Image.new("RGB", (200, 200), "white")
    ImageDraw.Draw(image).ellipse((50, 50, 150, 150), fill=color)
    return image


def is_unhealthy(container: Container) -> bool:
    return not container.is_healthy()


def busiest_worker(project: Deployment) -> Container:
    """Return the worker with the most running sequences. Waits until a worker has one."""

    def find() -> Container | None:
        workers = json.loads(project.admin("/workers"))["workers"]
        busiest = max(workers, key=lambda worker: int(worker["num_running"]))
        if not busiest["num_running"]:
            return None
        by_name = {each.hostname: each for each in project.workers}
        return by_name.get(busiest["id"].split("-")[0])

    return wait_until(find, "a busy worker")


def test_v1_requires_a_key_that_was_created_with_exec(project: Deployment, api_key: str) -> None:
    with Client(project.url, api_key) as client:
        assert [model.id for model in client.models()] == ["tiny-llava"]
    with Client(project.url, "lv-unknown") as client, pytest.raises(AuthenticationError):
        client.models()
    LOG.info("the API key is accepted, and another one is rejected")


@pytest.mark.parametrize("color", ["red", "blue"])
def test_a_question_about_an_image_gets_the_exact_text(project: Deployment, api_key: str, color: str) -> None:
    with Client(project.url, api_key) as client:
        text = client.chat("What color is the circle?", image=circle(color), temperature=0).text
    assert text == f"The circle is {color}."
    LOG.info("%s circle: %r", color, text)


def test_the_server_is_ready_only_with_a_queue_and_a_registered_worker(project: Deployment) -> None:
    assert project.server.is_healthy()
    project.compose("stop", "redis")
    wait_until(lambda: "unavailable" in project.readiness()[1], "a server without a queue")
    assert project.readiness()[0] == 503
    assert is_unhealthy(project.server)
    assert is_unhealthy(project.workers[0])
    assert "connected" in project.server.read("python", "-c", LIVE)
    workers = [worker.id for worker in project.workers]
    podman("stop", *workers)
    project.compose("start", "redis")
    wait_until(project.redis.is_healthy, "the queue")
    project.compose("restart", "server")
    wait_until(lambda: "No worker has registered yet" in project.readiness()[1], "a server without a worker")
    assert is_unhealthy(project.server)
    podman("start", *workers)
    project.wait_until_ready(len(workers))
    LOG.info("health checks fail without a queue and without a worker, and then pass")


LIVE = "import urllib.request as http; http.urlopen('http://127.0.0.1:8000/livez'); print('connected')"


def test_a_worker_that_hangs_is_unhealthy(project: Deployment) -> None:
    worker = project.workers[0]
    worker.signal_programs(signal.SIGSTOP)
    try:
        wait_until(lambda: is_unhealthy(worker), "an unhealthy worker")
    finally:
        worker.signal_programs(signal.SIGCONT)
    wait_until(worker.is_healthy, "a healthy worker")
    LOG.info("the health check of a stopped worker fails")


def test_texts_are_exact_while_workers_are_added_and_one_is_killed(
    project: Deployment, api_key: str, expected: list[str]
) -> None:
    with Load(project.url, api_key, expected) as load:
        load.wait_until_streaming()
        project.scale(NUM_WORKERS)
        load.wait_until_finished(NUM_AFTER)
        LOG.info("scaled to %d workers; %d responses", NUM_WORKERS, load.num_finished)
        worker = busiest_worker(project)
        pid = worker.pid
        num_streaming = load.wait_until_streaming()
        worker.kill()
        load.wait_until_finished(NUM_AFTER)
        wait_until(lambda: worker.pid not in (0, pid), "a restart of the worker", timeout_s=60)
        wait_until(worker.is_healthy, "a healthy worker", timeout_s=60)
        LOG.info("killed a worker during %d streams; it was restarted", num_streaming)
        finish(load)


def test_texts_are_exact_while_redis_is_restarted(
    project: Deployment, api_key: str, expected: list[str]
) -> None:
    with Load(project.url, api_key, expected) as load:
        num_streaming = load.wait_until_streaming()
        started_at = time.monotonic()
        project.compose("restart", "redis")
        load.wait_until_finished(NUM_AFTER)
        LOG.info(
            "restarted Redis during %d streams; further responses after %.0f s",
            num_streaming,
            time.monotonic() - started_at,
        )
        finish(load)


def test_texts_are_exact_while_the_server_is_killed(
    project: Deployment, api_key: str, expected: list[str]
) -> None:
    with Load(project.url, api_key, expected) as load:
        num_streaming = load.wait_until_streaming()
        server = project.server
        pid = server.pid
        server.kill()
        load.wait_until_finished(NUM_AFTER)
        assert server.pid not in (0, pid)
        LOG.info("killed the server during %d streams; it was restarted", num_streaming)
        finish(load)


def test_texts_are_exact_while_all_containers_are_updated(
    project: Deployment, api_key: str, expected: list[str], images: Images, next_images: Images
) -> None:
    project.scale(NUM_WORKERS)
    project.use(next_images)
    try:
        with Load(project.url, api_key, expected) as load:
            for service in ("worker", "server"):
                num_streaming = load.wait_until_streaming()
                started_at = time.monotonic()
                project.up(service, num_workers=NUM_WORKERS)
                load.wait_until_finished(NUM_AFTER)
                LOG.info(
                    "updated %s during %d streams in %.0f s",
                    service,
                    num_streaming,
                    time.monotonic() - started_at,
                )
            finish(load)
        project.wait_until_ready(NUM_WORKERS)
        assert {each.image_id for each in project.workers} == {image_id(next_images.worker)}
        assert project.server.image_id == image_id(next_images.server) != image_id(images.server)
    finally:
        project.use(images)


def test_a_wrong_text_is_found(project: Deployment, api_key: str, expected: list[str]) -> None:
    with Load(project.url, api_key, [*expected[1:], expected[0]]) as load:
        load.wait_until_finished(1)
    assert len(load.wrong) == load.num_finished


def finish(load: Load) -> None:
    num_responses = load.stop()
    assert load.wrong == []
    LOG.info("all %d texts were exact", num_responses)


def image_id(name: str) -> str:
    return podman("image", "inspect", "--format", "{{.Id}}", name).strip()
