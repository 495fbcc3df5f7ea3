"""A batch outlives the controller that drives it: each line is answered once, whoever dies."""

from __future__ import annotations

import httpx2
import pytest

from tests.machine_speed import scaled
from tests.server.batch_kit import begin, ended, line, lines, results
from tests.server.scripted_worker import ScriptedWorker
from tests.server.test_server_process import Process
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("is_killed", [True, False], ids=["killed", "terminated"])
def test_another_controller_ends_the_batch_and_no_line_has_two_answers(
    queue_url: str, worker: ScriptedWorker, is_killed: bool
) -> None:
    first, second = Process(queue_url, "--no-auth"), None
    try:
        quick = [line(f"quick {number}", f"say {number}") for number in range(10)]
        slow = [line(f"slow {number}", "hold") for number in range(3)]
        rest = [line(f"rest {number}", f"say {number}") for number in range(30)]
        with httpx2.Client(base_url=first.url, timeout=scaled(30)) as http:
            wait_until(lambda: http.get("/readyz").status_code == 200)
            batch = begin(http, lines(*quick, *slow, *rest))
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
            batch = ended(http, batch, timeout_s=60)
            answers = results(http, batch)
        assert batch["status"] == "completed"
        assert batch["request_counts"] == {"total": 43, "completed": 43, "failed": 0}
        assert answers["rest 7"] == "7"
        assert {answers[f"slow {number}"] for number in range(3)} == {"begun done"}
        ran = [each.job.job_id for each in worker.assignments if not each.token_ids]
        assert len(ran) == len(set(ran)) == 43  # and the slow ones were not begun anew
    finally:
        for process in (first, second):
            if process is not None:
                process.kill()
