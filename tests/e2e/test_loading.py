"""Models are loaded and unloaded through the admin port. Controllers and workers are real processes."""

from __future__ import annotations

import re
import shutil
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import llava_worker
import pytest

from tests.e2e.conftest import TINY
from tests.machine_speed import scaled
from tests.processes import ControllerProcess, StartWorker, WorkerProcess, running_controller
from tests.security.hostile_checkpoints import CASES, copy_tiny
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e

NO_MODELS = Path(__file__).parent
SETTINGS = {**TINY, "model": "echo", "kv_cache_mb": 16}
SHORT_LEASE = {"lease_s": 1}  # too short on a busy machine for a worker that loads models


class AdminClient:
    """A client for the admin port that can also send chat requests to the API port."""

    def __init__(self, site: ControllerProcess, admin: str) -> None:
        self.site = site
        self.http = httpx2.Client(base_url=admin, timeout=scaled(60))

    def workers(self) -> list[dict[str, Any]]:
        workers: list[dict[str, Any]] = self.http.get("/workers").json()["workers"]
        return workers

    def worker(self) -> dict[str, Any]:
        """Wait until there is exactly one worker and return it."""
        return wait_until(lambda: workers[0] if len(workers := self.workers()) == 1 else None, "one worker")

    def command(self, worker_id: str, action: str, *, wait_s: float = 30, **body: str) -> httpx2.Response:
        return self.http.post(f"/workers/{worker_id}/{action}", params={"wait_s": wait_s}, json=body or None)

    def chat(self, model: str) -> httpx2.Response:
        body = {"model": model, "max_tokens": 5, "messages": [{"role": "user", "content": "Hi?"}]}
        return httpx2.post(f"{self.site.url}/v1/chat/completions", json=body, timeout=scaled(60))


@contextmanager
def running_admin(queue_url: str, folder: Path, **settings: object) -> Iterator[AdminClient]:
    folder.mkdir(exist_ok=True)
    with running_controller(queue_url, folder, admin_port=0, **settings) as site:
        found = re.search(r"admin is listening on (\S+)", site.log)
        assert found, site.log
        admin = AdminClient(site, found[1])
        with admin.http:
            yield admin


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder that contains two copies of the bundled model, one of which has corrupt weights."""
    for name in ("copy", "broken"):
        shutil.copytree(Path(llava_worker.__file__).parent / "tiny", tmp_path / "models" / name)
    (tmp_path / "models/broken/model.safetensors").write_bytes(b"no weights")
    return tmp_path / "models"


def code(response: httpx2.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


def test_a_model_is_unloaded_and_another_loaded_while_the_worker_keeps_running(
    queue_url: str, start_worker: StartWorker, models: Path, tmp_path: Path
) -> None:
    process = start_worker(**SETTINGS, loadable_models=models)
    with running_admin(queue_url, tmp_path / "first") as admin:
        before = admin.worker()
        assert (before["model"], before["state"], before["order"]) == ("echo", "serving", None)
        assert admin.chat("echo").status_code == 200

        unloaded = admin.command(before["id"], "unload")
        assert unloaded.status_code == 200
        assert unloaded.json()["order"]["state"] == "done"
        after = admin.worker()
        assert (after["id"], after["model"], after["state"]) == (before["id"], None, "empty")
        rejected = admin.chat("echo")
        assert code(rejected) == (503, "no_worker")
        assert rejected.headers["retry-after"]

        started = admin.command(before["id"], "load", wait_s=0, model="copy")
        assert started.status_code == 202
        assert started.headers["location"] == f"/workers/{before['id']}"
        assert started.json()["order"]["state"] == "pending"
        assert code(admin.command(before["id"], "unload")) == (409, "worker_has_order")
    with running_admin(queue_url, tmp_path / "second") as admin:  # the second controller
        loaded = admin.worker()
        assert (loaded["id"], loaded["model"], loaded["state"]) == (before["id"], "copy", "serving")
        assert loaded["order"] == {
            "id": started.json()["order"]["id"],
            "state": "done",
            "message": "",
            "progress": 1.0,
        }
        assert admin.chat("copy").status_code == 200
        assert admin.command(before["id"], "load", model="copy").status_code == 200
        assert admin.worker()["started_at"] == loaded["started_at"]  # the model was not reloaded

        assert code(admin.command(before["id"], "load", model="../copy")) == (400, "order_refused")
        assert admin.worker()["model"] == "copy"
        failed = admin.command(before["id"], "load", model="broken")
        assert code(failed) == (500, "load_failed")
        worker = admin.worker()
        assert (worker["model"], worker["state"], worker["order"]["state"]) == (None, "empty", "failed")
        assert "broken" in worker["order"]["message"]
        assert admin.command(before["id"], "load", model="echo").status_code == 200
        assert admin.chat("echo").status_code == 200
    assert process.status is None


def test_the_next_request_finds_a_loaded_model_although_other_requests_keep_asking_for_it(
    queue_url: str, start_worker: StartWorker, tmp_path: Path
) -> None:
    """Requests for an unknown model refresh the registry, but at most four times per second."""
    start_worker(**SETTINGS, loadable_models=NO_MODELS)
    stopped = threading.Event()

    def keep_asking(admin: AdminClient) -> None:
        while not stopped.is_set():
            admin.chat("echo")

    with running_admin(queue_url, tmp_path / "site") as admin, ThreadPoolExecutor(1) as threads:
        worker_id = admin.worker()["id"]
        asking = threads.submit(keep_asking, admin)
        try:
            for _ in range(6):
                assert admin.command(worker_id, "unload").status_code == 200
                assert code(admin.chat("echo")) == (503, "no_worker")
                assert admin.command(worker_id, "load", model="echo").status_code == 200
                assert admin.chat("echo").status_code == 200
        finally:
            stopped.set()
        asking.result()


def test_a_hostile_model_is_rejected_in_one_sentence_and_the_worker_keeps_running(
    queue_url: str, start_worker: StartWorker, tmp_path: Path
) -> None:
    """One folder for each kind of file: config, weights and tokenizer."""
    names = ("10^9 layers", "a shape of 1e400", "a regex with exponential backtracking", "a pipe as config")
    for name in names:
        CASES[name].change(copy_tiny(tmp_path / "models" / name))
    copy_tiny(tmp_path / "models" / "intact")
    process = start_worker(**SETTINGS, loadable_models=tmp_path / "models")
    with running_admin(queue_url, tmp_path / "site") as admin:
        worker_id = admin.worker()["id"]
        for name in names:
            response = admin.command(worker_id, "load", model=name)

            assert code(response)[1] == "load_failed", response.text
            message = response.json()["error"]["message"]
            assert re.search(CASES[name].error, message), message
            assert message.isprintable()
        assert "Traceback" not in process.log
        assert process.status is None
        assert admin.command(worker_id, "load", model="intact").status_code == 200
        assert admin.chat("intact").status_code == 200


def assert_other_requests_are_rejected(admin: AdminClient) -> None:
    path = f"/workers/{admin.worker()['id']}/unload"
    assert code(admin.http.post(path, headers={"origin": "https://example.com"})) == (
        403,
        "origin_not_allowed",
    )
    assert httpx2.post(f"{admin.site.url}{path}", timeout=scaled(30)).status_code == 404
    assert httpx2.get(f"{admin.site.url}/workers", timeout=scaled(30)).status_code == 404
    wrong = admin.http.post(path.replace("unload", "load"), json={"model": "tiny", "force": True})
    assert wrong.status_code == 400
    assert code(admin.command("unknown", "unload")) == (404, "worker_not_found")
    assert (admin.worker()["state"], admin.worker()["order"]) == ("serving", None)


def test_only_operators_can_send_commands_and_a_command_ends_with_its_worker(
    queue_url: str, start_worker: StartWorker, tmp_path: Path
) -> None:
    def loading(worker: WorkerProcess, admin: AdminClient) -> str:
        worker_id = str(admin.worker()["id"])
        assert admin.command(worker_id, "load", wait_s=0, model="tiny").status_code == 202
        wait_until(lambda: admin.worker()["state"] == "loading" or "loaded" in worker.log, "loading")
        return worker_id

    killed = start_worker(**SETTINGS, **SHORT_LEASE, loadable_models=NO_MODELS)
    with running_admin(queue_url, tmp_path / "site", **SHORT_LEASE) as admin:
        assert_other_requests_are_rejected(admin)
        worker_id = loading(killed, admin)
        killed.kill()
        wait_until(lambda: not admin.workers(), "the lease to expire")
        assert code(admin.http.get(f"/workers/{worker_id}")) == (404, "worker_not_found")
        assert code(admin.command(worker_id, "unload")) == (404, "worker_not_found")

        successor = start_worker(**SETTINGS, **SHORT_LEASE, loadable_models=NO_MODELS)
        worker_id = loading(successor, admin)
        successor.send(signal.SIGTERM)
        wait_until(lambda: successor.status is not None, "the worker to exit")
        assert successor.status == 0
        wait_until(lambda: not admin.workers(), "the worker to deregister")
