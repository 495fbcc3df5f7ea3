"""Load and unload by the operator's port: a controller and workers as processes."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import llava_worker
import pytest

from tests.e2e.conftest import TINY
from tests.machine_speed import scaled
from tests.processes import ControllerProcess, StartWorker, WorkerProcess, running_controller
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e

NO_MODELS = Path(__file__).parent
SETTINGS = {**TINY, "model": "echo", "kv_cache_mb": 16, "lease_s": 1}


class Port:
    """An operator at the admin port, and a user at the API's."""

    def __init__(self, site: ControllerProcess, admin: str) -> None:
        self.site = site
        self.http = httpx2.Client(base_url=admin, timeout=scaled(60))

    def workers(self) -> list[dict[str, Any]]:
        workers: list[dict[str, Any]] = self.http.get("/workers").json()["workers"]
        return workers

    def worker(self) -> dict[str, Any]:
        """The only one, once it is there."""
        wait_until(lambda: len(self.workers()) == 1, "one worker")
        return self.workers()[0]

    def order(self, worker_id: str, what: str, *, wait_s: float = 30, **body: str) -> httpx2.Response:
        return self.http.post(f"/workers/{worker_id}/{what}", params={"wait_s": wait_s}, json=body or None)

    def ask(self, model: str) -> httpx2.Response:
        body = {"model": model, "max_tokens": 5, "messages": [{"role": "user", "content": "Hi?"}]}
        return httpx2.post(f"{self.site.url}/v1/chat/completions", json=body, timeout=scaled(60))


@contextmanager
def operating(queue_url: str, folder: Path) -> Iterator[Port]:
    folder.mkdir(exist_ok=True)
    with running_controller(queue_url, folder, admin_port=0, lease_s=1) as site:
        found = re.search(r"admin listens on (\S+)", site.log)
        assert found, site.log
        port = Port(site, found[1])
        with port.http:
            yield port


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder with a copy of the bundled model, and one whose weights are broken."""
    for name in ("copy", "broken"):
        shutil.copytree(Path(llava_worker.__file__).parent / "tiny", tmp_path / "models" / name)
    (tmp_path / "models/broken/model.safetensors").write_bytes(b"no weights")
    return tmp_path / "models"


def code(response: httpx2.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


def test_a_model_is_unloaded_and_another_loaded_while_the_worker_lives(
    queue_url: str, start_worker: StartWorker, models: Path, tmp_path: Path
) -> None:
    process = start_worker(**SETTINGS, loadable_models=models)
    with operating(queue_url, tmp_path / "first") as port:
        before = port.worker()
        assert (before["model"], before["state"], before["order"]) == ("echo", "serving", None)
        assert port.ask("echo").status_code == 200

        unloaded = port.order(before["id"], "unload")
        assert unloaded.status_code == 200
        assert unloaded.json()["order"]["state"] == "done"
        after = port.worker()
        assert (after["id"], after["model"], after["state"]) == (before["id"], None, "empty")
        wait_until(lambda: port.ask("echo").status_code == 503, "a model without a worker")
        refused = port.ask("echo")
        assert code(refused) == (503, "no_worker")
        assert refused.headers["retry-after"]

        started = port.order(before["id"], "load", wait_s=0, model="copy")
        assert started.status_code == 202
        assert started.headers["location"] == f"/workers/{before['id']}"
        assert started.json()["order"]["state"] == "pending"
        assert code(port.order(before["id"], "unload")) == (409, "worker_has_order")
    with operating(queue_url, tmp_path / "second") as port:  # the first controller is gone
        loaded = port.worker()
        assert (loaded["id"], loaded["model"], loaded["state"]) == (before["id"], "copy", "serving")
        assert loaded["order"] == {
            "id": started.json()["order"]["id"],
            "state": "done",
            "message": "",
            "progress": 1.0,
        }
        assert port.ask("copy").status_code == 200
        assert port.order(before["id"], "load", model="copy").status_code == 200
        assert port.worker()["started_at"] == loaded["started_at"]  # it was not loaded again

        assert code(port.order(before["id"], "load", model="../copy")) == (400, "order_refused")
        assert port.worker()["model"] == "copy"
        failed = port.order(before["id"], "load", model="broken")
        assert code(failed) == (500, "load_failed")
        worker = port.worker()
        assert (worker["model"], worker["state"], worker["order"]["state"]) == (None, "empty", "failed")
        assert "broken" in worker["order"]["message"]
        assert port.order(before["id"], "load", model="echo").status_code == 200
        wait_until(lambda: port.ask("echo").status_code == 200, "the model at the controller")
    assert process.status is None


def refuses_strangers(port: Port) -> None:
    path = f"/workers/{port.worker()['id']}/unload"
    assert code(port.http.post(path, headers={"origin": "https://example.com"})) == (400, "invalid_request")
    assert httpx2.post(f"{port.site.url}{path}", timeout=scaled(30)).status_code == 404
    assert httpx2.get(f"{port.site.url}/workers", timeout=scaled(30)).status_code == 404
    wrong = port.http.post(path.replace("unload", "load"), json={"model": "tiny", "force": True})
    assert wrong.status_code == 400
    assert code(port.order("nobody", "unload")) == (404, "worker_not_found")
    assert (port.worker()["state"], port.worker()["order"]) == ("serving", None)


def test_only_an_operator_gives_orders_and_a_worker_killed_while_it_loads_is_gone_with_its_own(
    queue_url: str, start_worker: StartWorker, tmp_path: Path
) -> None:
    def loading(worker: WorkerProcess, port: Port) -> str:
        worker_id = str(port.worker()["id"])
        assert port.order(worker_id, "load", wait_s=0, model="tiny").status_code == 202
        wait_until(lambda: port.worker()["state"] == "loading" or "loaded" in worker.log, "loading")
        return worker_id

    killed = start_worker(**SETTINGS, loadable_models=NO_MODELS)
    with operating(queue_url, tmp_path / "site") as port:
        refuses_strangers(port)
        worker_id = loading(killed, port)
        killed.kill()
        wait_until(lambda: not port.workers(), "the lease's end")
        assert code(port.http.get(f"/workers/{worker_id}")) == (404, "worker_not_found")
        assert code(port.order(worker_id, "unload")) == (404, "worker_not_found")

        successor = start_worker(**SETTINGS, loadable_models=NO_MODELS)
        worker_id = loading(successor, port)
        successor.send(signal.SIGTERM)
        wait_until(lambda: successor.status is not None, "the worker's end")
        assert successor.status == 0
        wait_until(lambda: not port.workers(), "its leave")
