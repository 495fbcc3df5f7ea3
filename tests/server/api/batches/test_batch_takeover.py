"""When a server exits, another one takes over its batch. Each line runs exactly once."""

from __future__ import annotations

import httpx2
import pytest

from tests.machine_speed import scaled
from tests.server.batch_requests import completions, create_batch, input_file, request_line, wait_for_end
from tests.server.scripted_worker import ScriptedWorker
from tests.server.test_server_process import Process
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("is_killed", [True, False], ids=["killed", "terminated"])
def test_another_server_completes_the_batch_and_each_line_runs_once(
    queue_url: str, worker: ScriptedWorker, is_killed: bool
) -> None:
    first, second = Process(queue_url, "--no-auth"), None
    try:
        quick = [request_line(f"quick {number}", f"say {number}") for number in range(10)]
        slow = [request_line(f"slow {number}", "hold") for number in range(3)]
        rest = [request_line(f"rest {number}", f"say {number}") for number in range(30)]
        with httpx2.Client(base_url=first.url, timeout=scaled(30)) as http:
            wait_until(lambda: http.get("/readyz").status_code == 200)
            batch = create_batch(http, input_file(*quick, *slow, *rest))
            path = f"/v1/batches/{batch['id']}"
            wait_until(lambda: http.get(path).json()["request_counts"]["completed"] == 40)
        second = Process(queue_url, "--no-auth")
        if is_killed:
            first.kill()
        else:
            first.popen.terminate()
            assert first.wait() == 0
        with httpx2.Client(base_url=second.url, timeout=scaled(30)) as http:
            assert http.get(path).json()["status"] == "in_progress"
            worker.release.set()
            batch = wait_for_end(http, batch, timeout_s=60)
            texts = completions(http, batch)
        assert batch["status"] == "completed"
        assert batch["request_counts"] == {"total": 43, "completed": 43, "failed": 0}
        assert texts["rest 7"] == "7"
        assert {texts[f"slow {number}"] for number in range(3)} == {"begun done"}
        started = [each.job.job_id for each in worker.assignments if not each.token_ids]
        assert len(started) == len(set(started)) == 43
    finally:
        for process in (first, second):
            if process is not None:
                process.kill()
