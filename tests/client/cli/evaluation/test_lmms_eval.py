"""``llava-serve eval`` runs POPE, VQAv2 and MMBench with the real lmms-eval against the bundled model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from llava_cli.evaluation.lmms_harness import plan as plan_module

from tests.client.cli.command_line import start
from tests.client.cli.evaluation.lmms_environment import lmms_python
from tests.client.cli.evaluation.scene_datasets import (
    ANSWERS_ARE_SHIFTED,
    TASKS,
    write_datasets,
    write_gqa,
    write_llava_bench,
)
from tests.client.scripted_server import ScriptedServer, completes, returns_error, send
from tests.interop.environments import ROOT
from tests.machine_speed import scaled
from tests.processes import ControllerProcess, running_site
from tests.waiting import wait_until
from tests.wire.redis_server import running_redis

pytestmark = [pytest.mark.e2e, pytest.mark.evaluation, pytest.mark.timeout(900)]

NUM_ITEMS = 12
# In fp32, the bundled model generates the same tokens at every batch size.
TINY = {"model": "tiny", "device": "cpu", "threads": 1, "precision": "fp32"}
BENCHMARKS = ("pope", "vqav2", "mmbench")


@dataclass
class Setup:
    """A server with the bundled model, an environment with lmms-eval, and the datasets."""

    site: ControllerProcess
    python: Path
    data: Path
    folder: Path

    def start(self, *arguments: str, output: str, data: Path | None = None) -> subprocess.Popen[str]:
        places = ("--out", str(self.folder / output), "--data", str(data or self.data))
        environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(self.folder / "hub")}
        options = ("--url", self.site.url, "--python", str(self.python))
        return start("eval", *places, *options, *arguments, env=environment)

    def run(self, *arguments: str, output: str, data: Path | None = None) -> tuple[int, str, str]:
        """Run the command and return the exit code, stdout and stderr."""
        with self.start(*arguments, output=output, data=data) as process:
            stdout, stderr = process.communicate(timeout=scaled(300))
        return process.returncode, stdout, stderr


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    python = lmms_python()
    folder = tmp_path_factory.mktemp("evaluation")
    write_datasets(folder / "data", NUM_ITEMS)
    with running_redis() as url, running_site(url, folder, **TINY) as site:
        yield Setup(site, python, folder / "data", folder)


@pytest.fixture(scope="module")
def resumed(setup: Setup) -> tuple[Path, str]:
    """Kill an evaluation with SIGKILL, run it again, and return its folder and the table."""
    output = setup.folder / "out"
    responses = output / "responses.jsonl"
    with setup.start(*BENCHMARKS, "-c", "2", output="out") as process:
        wait_until(lambda: num_lines(responses) >= 10 or process.poll() is not None, timeout_s=200)
        process.send_signal(signal.SIGKILL)
    assert 10 <= num_lines(responses) < NUM_ITEMS * len(TASKS)
    exit_code, stdout, stderr = setup.run(*BENCHMARKS, output="out")
    assert exit_code == 0, stderr
    return output, stdout


def num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def items(output: Path, task: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "items" / f"{task}.jsonl").read_text().splitlines()]


def test_a_killed_evaluation_continues_and_sends_no_request_twice(
    setup: Setup, resumed: tuple[Path, str]
) -> None:
    output, _ = resumed
    requests = [json.loads(line)["request"] for line in (output / "responses.jsonl").read_text().splitlines()]
    assert len(requests) == len(set(requests)) == NUM_ITEMS * len(TASKS)
    # The worker has encoded each image once. Requests that were running at the kill were resumed.
    num_encoded = setup.site.metric("llava_engine_encoded_images_total")
    assert num_encoded + setup.site.metric("llava_engine_image_cache_hits_total") == NUM_ITEMS * len(TASKS)


def test_the_table_has_the_published_scores_and_the_page_the_wrong_responses(
    resumed: tuple[Path, str],
) -> None:
    output, table = resumed
    rows = {line.split("│")[1].strip(): line.split("│")[2:6] for line in table.splitlines() if "│" in line}
    assert [cell.strip() for cell in rows["POPE"][1:]] == ["85.9", "85.9", str(3 * NUM_ITEMS)]
    assert [cell.strip() for cell in rows["VQAv2"][1:]] == ["78.5", "80.0", str(NUM_ITEMS)]
    assert [cell.strip() for cell in rows["MMBench"][1:]] == ["64.3", "67.7", str(NUM_ITEMS)]
    results = json.loads((output / "results.json").read_text())["scores"]
    pope = sum(results[task]["pope_f1_score"] for task in TASKS[:3]) / 3
    assert float(rows["POPE"][0]) == pytest.approx(100 * pope, abs=0.05)

    page = (output / "wrong.html").read_text()
    wrong = [item for task in TASKS for item in items(output, task) if item["score"] == 0]
    shifted = [item for item in items(output, ANSWERS_ARE_SHIFTED) if item["score"] == 0]
    assert len(shifted) >= NUM_ITEMS / 2
    assert page.count("<figure>") == len(wrong)
    for item in wrong:
        (image,) = item["images"]
        assert image in page and (output / image).read_bytes().startswith(b"\x89PNG")


def test_prompts_have_the_sentences_of_the_paper(resumed: tuple[Path, str]) -> None:
    output, _ = resumed
    for task in TASKS:
        letter = "\nAnswer with the option's letter from the given choices directly."
        short = "\nAnswer the question using a single word or phrase."
        expected = letter if task == "mmbench_en_dev" else short
        assert all(str(item["prompt"]).endswith(expected) for item in items(output, task))


def test_each_item_has_the_same_result_with_the_model_object_of_transformers(
    setup: Setup, resumed: tuple[Path, str]
) -> None:
    output, _ = resumed
    reference = setup.folder / "reference"
    reference.mkdir()
    plan = plan_module.read_plan(str(output / "plan.json"))
    plan_module.write_plan(
        plan_module.Plan(**{**vars(plan), "output": str(reference)}), reference / "plan.json"
    )
    package = str(Path(plan_module.__file__).parents[1])
    program = str(Path(__file__).with_name("transformers_harness.py"))
    command = [str(setup.python), program, package, str(reference / "plan.json")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(setup.folder / "hub")}
    subprocess.run([*command, str(ROOT / "worker/llava_worker/tiny")], env=environment, check=True)
    for task in TASKS:
        assert items(reference, task) == items(output, task)
    assert (reference / "results.json").read_bytes() == (output / "results.json").read_bytes()


def judges(handler: BaseHTTPRequestHandler) -> None:
    """Respond with a score of 8 for the reference and 6 for the model."""
    choice = {"index": 0, "message": {"role": "assistant", "content": "8 6\nGood."}, "finish_reason": "stop"}
    completion = {"id": "chatcmpl-1", "model": "judge", "choices": [choice]}
    send(handler, 200, json.dumps(completion).encode())


def test_a_judge_scores_each_response_once_and_the_model_generates_greedily(
    setup: Setup, server: ScriptedServer, tmp_path: Path
) -> None:
    write_llava_bench(tmp_path / "data", 3)
    server.script(*[completes] * 3, *[judges] * 3)
    for _ in range(2):
        exit_code, stdout, stderr = setup.run(
            *("llava-bench", "--judge-url", server.url, "--judge-model", "gpt", "--url", server.url),
            output=str(tmp_path / "out"),
            data=tmp_path / "data",
        )
        assert exit_code == 0, stderr
        assert "│  75.0 │" in stdout
    assert [request.body["model"] for request in server.chats] == ["tiny-llava"] * 3 + ["gpt"] * 3
    for request in server.chats[:3]:
        [message] = request.body.pop("messages")
        assert [part["type"] for part in message["content"]] == ["image_url", "text"]
        assert request.body == {"model": "tiny-llava", "temperature": 0.0, "max_tokens": 1024}


def test_an_error_that_concerns_all_requests_ends_the_evaluation(
    setup: Setup, server: ScriptedServer, tmp_path: Path
) -> None:
    server.script(completes, completes, *[returns_error(401, "The key has been revoked.")] * 40)
    exit_code, stdout, stderr = setup.run(
        *("pope", "--url", server.url, "-c", "1"), output=str(tmp_path / "out")
    )
    assert (exit_code, stdout) == (4, "")
    assert "2 responses are stored. To continue, run the same command again.\n" in stderr
    assert "llava-serve: The key has been revoked." in stderr
    assert len(server.chats) == 3


def test_questions_and_images_can_be_separate_datasets(setup: Setup, tmp_path: Path) -> None:
    write_gqa(tmp_path / "data", 3)
    exit_code, stdout, stderr = setup.run("gqa", output=str(tmp_path / "out"), data=tmp_path / "data")
    assert exit_code == 0, stderr
    assert "100.0" in stdout
    assert [item["response"] for item in items(tmp_path / "out", "gqa")] == [
        item["target"].capitalize() for item in items(tmp_path / "out", "gqa")
    ]


def test_parquet_files_give_the_same_results(setup: Setup, resumed: tuple[Path, str], tmp_path: Path) -> None:
    program = (  # with the images in the file, as the hub stores them
        "import sys; from datasets import load_dataset; from datasets.table import embed_table_storage; "
        "rows = load_dataset('imagefolder', data_dir=sys.argv[1], split='train').with_format('arrow'); "
        "rows.map(embed_table_storage, batched=True).to_parquet(sys.argv[2])"
    )
    target = tmp_path / "lmms-lab-encoder/VQAv2/data"
    target.mkdir(parents=True)
    source = setup.data / "lmms-lab-encoder/VQAv2/validation"
    shard = target / "validation-00000-of-00001.parquet"
    subprocess.run([setup.python, "-c", program, str(source), str(shard)], check=True)
    exit_code, _, stderr = setup.run("vqav2", output=str(tmp_path / "out"), data=tmp_path)
    assert exit_code == 0, stderr
    assert items(tmp_path / "out", "vqav2_val") == items(resumed[0], "vqav2_val")


def change_answer(path: Path) -> None:
    lines = path.read_text().splitlines()
    lines[2] = json.dumps({**json.loads(lines[2]), "answer": "maybe"})
    path.write_text("\n".join(lines))


def remove_split(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("change", "task", "messages"),
    [
        (
            change_answer,
            "pope",
            ["metadata.jsonl', line 3 has the answer 'maybe', not 'yes' or 'no'. Each row must have:"],
        ),
        (remove_split, "pope", ["has no split 'popular'", "Store its Parquet files as", "popular-*.parquet"]),
        (None, "gqa", ["'lmms-lab-encoder/GQA' cannot be loaded from the hub", "hf download --repo-type"]),
        (None, "poope", ["lmms-eval has no task 'poope'. Similar names are", "pope"]),
    ],
)
def test_an_error_in_a_task_or_dataset_is_reported_before_any_request(
    setup: Setup,
    tmp_path: Path,
    change: Callable[[Path], None] | None,
    task: str,
    messages: list[str],
) -> None:
    write_datasets(tmp_path / "data", 4)
    if change is not None:
        change(tmp_path / "data/lmms-lab-encoder/POPE/Full/popular/metadata.jsonl")
    output = str(tmp_path / "out")
    exit_code, _, stderr = setup.run(task, output=output, data=tmp_path / "data")
    assert exit_code == 2
    assert [message for message in messages if message not in stderr] == [], stderr
    assert "Traceback" not in stderr
    assert not (tmp_path / "out/responses.jsonl").exists()
