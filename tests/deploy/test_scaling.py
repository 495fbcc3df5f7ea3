"""KEDA scales a model from zero to several workers and back, according to the metrics of a real server.

With several shards, the metrics are the sums over all shards.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx2
import pytest

from tests.deploy.conftest import Rendered
from tests.deploy.helm import Helm, Manifest, named
from tests.deploy.keda import Autoscaler, MetricNotFoundError, metric_value
from tests.deploy.value_sets import SCALED
from tests.machine_speed import scaled
from tests.processes import ControllerProcess, free_port, running_controller
from tests.server.conftest import text_of
from tests.server.scripted_worker import MODEL, ScriptedWorker
from tests.waiting import wait_until
from tests.wire.redis_server import running_redis

pytestmark = pytest.mark.e2e

COOLDOWN_S = 300
SCALING = {
    "enabled": True,
    "maxReplicas": 3,
    "waitingTokensPerWorker": 500,
    "runningRequestsPerWorker": 2,
    "cooldownSeconds": COOLDOWN_S,
}
VALUES = {"models": {"model": {"servedName": MODEL, "scaling": SCALING}}}
CAPACITY = 2  # requests per worker


@pytest.fixture(scope="module")
def manifests(helm: Helm) -> list[Manifest]:
    return helm.render(VALUES)


@pytest.fixture(scope="module")
def scaled_object(manifests: list[Manifest]) -> Manifest:
    return named(manifests, "ScaledObject", "demo-llava-serve-worker-model")


class Cluster:
    """A server, and as many workers as the autoscaler requests."""

    def __init__(
        self, server: ControllerProcess, admin_url: str, redis_url: str, *, num_shards: int = 1
    ) -> None:
        self.workers: list[ScriptedWorker] = []
        self._server = server
        self._admin_url = admin_url
        self._redis_url = redis_url
        self._num_shards = num_shards
        self._pool = ThreadPoolExecutor(8)

    def metrics(self) -> str:
        return httpx2.get(f"{self._admin_url}/metrics", timeout=scaled(30)).text

    def wait_for(self, *, waiting: Callable[[float], bool], running: int) -> str:
        """Return the metrics once they show this number of waiting tokens and running requests."""

        def metrics() -> str | None:
            text = self.metrics()
            num_tokens = metric_value(text, f'llava_num_tokens_waiting{{model_name="{MODEL}"}}')
            num_running = metric_value(text, f'llava_num_requests_running{{model_name="{MODEL}"}}')
            return text if waiting(num_tokens) and num_running == running else None

        return wait_until(metrics, f"{running} running requests")

    def send(self, text: str) -> Future[httpx2.Response]:
        body = {"model": MODEL, "max_tokens": 200, "messages": [{"role": "user", "content": text}]}
        url = f"{self._server.url}/v1/chat/completions"
        return self._pool.submit(partial(httpx2.post, url, json=body, timeout=scaled(60)))

    def scale(self, replicas: int) -> None:
        while len(self.workers) < replicas:
            worker = ScriptedWorker(self._redis_url, capacity=CAPACITY, num_shards=self._num_shards)
            self.workers.append(worker.start())
        while len(self.workers) > replicas:
            self.workers.pop().stop()

    def release(self) -> None:
        """Make the workers complete their requests."""
        for worker in self.workers:
            worker.release.set()

    def close(self) -> None:
        self.release()
        self.scale(0)
        self._pool.shutdown()


# With 8 shards, it is practically impossible that all jobs which must be counted are in the same shard.
@pytest.fixture(params=[1, 8], ids=["one shard", "8 shards"])
def cluster(manifests: list[Manifest], tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A cluster without workers, whose server has the chart's setting for models on demand."""
    port = free_port()
    shards: int = request.param
    settings = {
        "admin_port": port,
        "on_demand_models": on_demand_models(manifests),
        "queue_shards": shards,
    }
    with running_redis() as url, running_controller(url, tmp_path, **settings) as process:
        cluster = Cluster(process, f"http://127.0.0.1:{port}", url, num_shards=shards)
        try:
            yield cluster
        finally:
            cluster.close()


def on_demand_models(manifests: list[Manifest]) -> str | None:
    """Return the server's setting, or None if it is not set."""
    server = named(manifests, "Deployment", "demo-llava-serve-server")
    [container] = server["spec"]["template"]["spec"]["containers"]
    return {each["name"]: each["value"] for each in container["env"]}.get("LLAVA_ON_DEMAND_MODELS")


def is_zero(number: float) -> bool:
    return number == 0


def is_positive(number: float) -> bool:
    return number > 0


def test_a_model_scales_from_zero_with_its_load_and_back(cluster: Cluster, scaled_object: Manifest) -> None:
    keda = Autoscaler(scaled_object, replicas=1)  # the default of a new Deployment
    idle = cluster.wait_for(waiting=is_zero, running=0)
    assert keda.poll(idle, 0) == 1
    assert keda.poll(idle, COOLDOWN_S + 1) == 0

    # The first request waits in the server, because no worker has ever served the model.
    first = cluster.send("hold")
    now_s = 1000.0
    assert keda.poll(cluster.wait_for(waiting=lambda tokens: tokens == 1, running=0), now_s) == 1
    cluster.scale(keda.replicas)

    # A running request keeps its worker, even after the cooldown period.
    busy = cluster.wait_for(waiting=is_zero, running=1)
    now_s += 2 * COOLDOWN_S
    assert [keda.poll(busy, now_s + elapsed) for elapsed in (0, COOLDOWN_S + 1)] == [1, 1]

    # Six more requests: one runs, and five wait with 1,007 tokens, for which three workers are required.
    others = [cluster.send("hold") for _ in range(6)]
    queued = cluster.wait_for(waiting=lambda tokens: tokens > 1000, running=CAPACITY)
    now_s += 1000
    assert keda.poll(queued, now_s) == 3
    cluster.scale(keda.replicas)
    full = cluster.wait_for(waiting=is_positive, running=3 * CAPACITY)
    assert keda.poll(full, now_s + 15) == 3

    cluster.release()
    assert {text_of(response.result()) for response in (first, *others)} == {"begun done"}
    idle = cluster.wait_for(waiting=is_zero, running=0)
    assert keda.poll(idle, now_s + 30) == 3, "the load may return"
    assert keda.poll(idle, now_s + 15 + COOLDOWN_S) > 0
    assert keda.poll(idle, now_s + 16 + COOLDOWN_S) == 0
    cluster.scale(0)

    # The server now knows the model, so the next request waits in the queue.
    again = cluster.send("say again")
    now_s += 10_000
    assert keda.poll(cluster.wait_for(waiting=lambda tokens: tokens > 200, running=0), now_s) == 1
    cluster.scale(keda.replicas)
    assert text_of(again.result()) == "again"


def test_without_the_trigger_for_running_requests_a_busy_worker_would_be_removed(
    scaled_object: Manifest,
) -> None:
    busy = "".join(
        f'llava_num_{what}{{model_name="{MODEL}"}} {value}\n'
        for what, value in (("tokens_waiting", 0), ("requests_running", 1))
    )
    broken = copy.deepcopy(scaled_object)
    del broken["spec"]["triggers"][0]
    for manifest, expected in ((scaled_object, 1), (broken, 0)):
        assert Autoscaler(manifest, replicas=1).poll(busy, COOLDOWN_S + 1) == expected


def test_a_server_that_does_not_know_the_model_does_not_scale_it(scaled_object: Manifest) -> None:
    with pytest.raises(MetricNotFoundError):
        Autoscaler(scaled_object, replicas=1).poll("llava_queue_up 1\n", 0)


def test_only_models_that_scale_to_zero_accept_requests_without_workers(rendered: Rendered) -> None:
    for name in SOURCES:
        assert on_demand_models(rendered(name)) == "llava-hf/llava-1.5-7b-hf"


def exported(num_waiting_tokens: int, **labels: str) -> str:
    """Return the metrics of a server. Prometheus adds ``labels`` when it scrapes them."""
    names = {"model_name": "llava-hf/llava-1.5-7b-hf", **labels}
    series = "{" + ",".join(f'{name}="{value}"' for name, value in names.items()) + "}"
    return f"llava_num_tokens_waiting{series} {num_waiting_tokens}\nllava_num_requests_running{series} 12\n"


SOURCES: dict[str, dict[str, str]] = {
    "scale to zero": {},
    "scaling with Prometheus": {"namespace": "llava", "service": "demo-llava-serve-admin"},
    "scaling with labels of Prometheus": {"cluster": "eu", "release": "demo"},
}


def test_all_sources_of_metrics_read_the_same_series(rendered: Rendered) -> None:
    for name, labels in SOURCES.items():
        small = named(rendered(name), "ScaledObject", "demo-llava-serve-worker-small")
        assert Autoscaler(small, replicas=1).poll(exported(45_000, **labels), 0) == 3


def test_releases_in_the_same_prometheus_do_not_scale_each_other(helm: Helm) -> None:
    values = {**SCALED, "keda": {"metricsSource": "prometheus"}}
    of_demo = exported(0, namespace="llava", service="demo-llava-serve-admin")
    for release, namespace in (("other", "llava"), ("demo", "staging")):
        service = f"{release}-llava-serve-admin"
        of_other = exported(45_000, namespace=namespace, service=service)
        for name, space, expected in (("demo", "llava", 1), (release, namespace, 3)):
            small = named(
                helm.render(values, name, space), "ScaledObject", f"{name}-llava-serve-worker-small"
            )
            assert Autoscaler(small, replicas=1).poll(of_demo + of_other, 0) == expected
