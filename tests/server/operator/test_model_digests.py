"""The digest of a model is listed, and each response has the fingerprint of the model that generated it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
from llava_wire.messages.event import ErrorCode

from tests.machine_speed import scaled
from tests.server.conftest import Serve
from tests.server.scripted_worker import MODEL, ScriptedWorker
from tests.waiting import wait_until

OLD, NEW = "1234567890abcdef", "abcdef1234567890"
FINGERPRINTS = {OLD: "fp_1234567890", NEW: "fp_abcdef1234"}


@dataclass
class Site:
    """A server, and workers with different digests that are started and stopped by the tests."""

    url: str
    http: httpx2.Client
    workers: list[ScriptedWorker]

    def start(self, digest: str) -> ScriptedWorker:
        worker = ScriptedWorker(self.url, model_digest=digest).start()
        self.workers.append(worker)
        wait_until(lambda: self.listed().get("num_workers") == len(self.workers))
        return worker

    def stop(self, worker: ScriptedWorker) -> None:
        self.workers.remove(worker)
        worker.release.set()
        worker.stop()

    def listed(self) -> dict[str, Any]:
        models = self.http.get("/v1/models").json()["data"]
        return dict(models[0]) if models else {}

    def chat(self, text: str = "say fine", **fields: Any) -> httpx2.Response:
        body = {"model": MODEL, "messages": [{"role": "user", "content": text}], **fields}
        return self.http.post("/v1/chat/completions", json=body)


@pytest.fixture
def site(queue_url: str, serve: Serve) -> Iterator[Site]:
    with httpx2.Client(base_url=serve().url, timeout=scaled(60)) as http:
        site = Site(queue_url, http, [])
        yield site
        for worker in list(site.workers):
            site.stop(worker)


def fingerprints(stream: str) -> set[str]:
    chunks = [line.removeprefix("data: ") for line in stream.splitlines() if line.startswith("data: {")]
    return {json.loads(chunk)["system_fingerprint"] for chunk in chunks}


def test_models_are_listed_with_their_digests(site: Site) -> None:
    site.start("")
    assert site.listed()["digest"] is None
    site.start(OLD)
    wait_until(lambda: site.listed()["digest"] == OLD)
    assert site.http.get(f"/v1/models/{MODEL}").json()["digest"] == OLD


def test_the_fingerprint_is_derived_from_the_digest(site: Site) -> None:
    old = site.start(OLD)
    first = site.chat().json()["system_fingerprint"]
    assert first == site.chat().json()["system_fingerprint"] == FINGERPRINTS[OLD]
    site.stop(old)
    site.start(NEW)
    assert site.chat().json()["system_fingerprint"] == FINGERPRINTS[NEW]


def test_each_response_has_the_fingerprint_of_the_model_that_generated_it(site: Site) -> None:
    site.start(OLD)
    ScriptedWorker(site.url, model_digest=NEW).start().stop_pulling()
    wait_until(lambda: site.listed()["digest"] == NEW and site.listed()["num_workers"] == 2)
    streamed = site.chat(stream=True)
    assert fingerprints(streamed.text) == {FINGERPRINTS[OLD]}
    complete = site.chat().json()
    assert complete["system_fingerprint"] == FINGERPRINTS[OLD]
    path = f"/v1/chat/completions/{complete['id']}"
    assert site.http.get(path).json()["system_fingerprint"] == FINGERPRINTS[OLD]
    assert fingerprints(site.http.get(path, params={"stream": "true"}).text) == {FINGERPRINTS[OLD]}
    text = {"model": MODEL, "prompt": "say fine"}
    assert site.http.post("/v1/completions", json=text).json()["system_fingerprint"] == FINGERPRINTS[OLD]


def test_a_changed_model_is_reported_as_a_temporary_error(site: Site) -> None:
    site.start(OLD)
    response = site.chat(f"refuse {ErrorCode.MODEL_CHANGED.value}")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "model_changed")
    assert response.headers["x-should-retry"] == "true"
