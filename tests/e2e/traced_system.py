"""A controller and workers, with or without tracing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
from llava_server.settings import Settings

from tests.machine_speed import scaled
from tests.processes import WorkerProcess
from tests.server.conftest import Server
from tests.waiting import wait_until

__all__ = ["CALLER", "System", "body", "within"]

CALLER = "00f067aa0ba902b7"


def body(content: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "echo", "messages": [{"role": "user", "content": content}], **fields}


def within(trace: str) -> dict[str, str]:
    """Return the headers that a caller sends if it records this trace."""
    return {"traceparent": f"00-{trace}-{CALLER}-01"}


class System:
    """A controller and its workers. Stopping the system sends all of the controller's pending spans."""

    def __init__(self, url: str, folder: Path, *, otel: bool) -> None:
        self._url, self._folder, self._otel = url, folder, otel
        self._workers: list[WorkerProcess] = []
        self._server = Server(Settings(redis_url=url, image_workers=1, auth=False, otel=otel))
        self._server.start()
        self.http = httpx2.Client(base_url=self._server.url, timeout=scaled(60))

    def worker(self, **settings: object) -> WorkerProcess:
        log = self._folder / f"worker-{len(self._workers)}.log"
        worker = WorkerProcess(self._url, log, lease_s=1, otel=self._otel, **settings)
        worker.start()
        self._workers.append(worker)
        wait_until(lambda: "worker ready" in worker.log or worker.status is not None)
        assert worker.status is None, worker.log
        wait_until(lambda: self.http.get("/readyz").status_code == 200)
        return worker

    def chat(self, content: Any, trace: str, **fields: Any) -> httpx2.Response:
        return self.http.post("/v1/chat/completions", json=body(content, **fields), headers=within(trace))

    def client(self, trace: str) -> httpx2.Client:
        """Return an HTTP client whose requests all belong to this trace."""
        return httpx2.Client(base_url=self._server.url, headers=within(trace), timeout=scaled(60))

    def stop(self) -> None:
        for worker in self._workers:
            worker.kill()
        self.http.close()
        self._server.stop()
