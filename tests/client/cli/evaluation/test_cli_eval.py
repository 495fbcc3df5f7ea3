"""Invalid arguments of ``llava-serve eval``, and the table of scores."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from llava_cli import create_app
from llava_cli.evaluation.benchmarks import BENCHMARKS
from llava_cli.evaluation.environment import LMMS_EVAL, REQUIREMENTS, TORCH
from llava_cli.evaluation.job import Outcome
from llava_cli.evaluation.report import score_table, write_wrong_page
from rich.console import Console
from typer.testing import CliRunner, Result

from tests.client.scripted_server import ScriptedServer

ROOT = Path(__file__).parents[4]


def run_eval(*arguments: str) -> Result:
    return CliRunner().invoke(create_app(), ["eval", *arguments])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Pass a benchmark, such as pope, or paper for all"),
        (["pope", "--data", "missing"], "'missing' is not a folder."),
        (["pope", "--judge-url", "http://localhost:1"], "--judge-url and --judge-model require each other."),
        (["pope", "mm-vet"], "A judge model scores mm-vet. Pass --judge-url and --judge-model"),
        (["paper"], "A judge model scores llava-bench and mm-vet."),
        (["pope", "--python", "/nothing"], "Cannot run --python '/nothing': No such file or directory."),
        (["pope", "--python", sys.executable], f"has no lmms-eval, not {LMMS_EVAL}. Install it with: "),
    ],
)
def test_invalid_arguments_are_reported_in_one_line(
    server: ScriptedServer, tmp_path: Path, arguments: list[str], message: str
) -> None:
    result = run_eval(*arguments, "--url", server.url, "--out", str(tmp_path / "out"))
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert server.chats == []


def test_an_unreachable_server_is_reported(tmp_path: Path) -> None:
    result = run_eval("pope", "--url", "http://127.0.0.1:9", "--out", str(tmp_path / "out"))
    assert result.exit_code == 3
    assert not (tmp_path / "out").exists()


def test_the_versions_that_are_installed_are_those_that_are_tested() -> None:
    assert LMMS_EVAL in REQUIREMENTS.read_text().splitlines()
    assert TORCH in (ROOT / "constraints.txt").read_text().splitlines()


def make_outcome(score: float = 0.5) -> Outcome:
    tasks = {task: benchmark.metric for benchmark in BENCHMARKS for task in benchmark.tasks}
    scores = {**{task: {metric: score} for task, metric in tasks.items()}, "docvqa_val": {"anls": 0.25}}
    counts = dict.fromkeys(scores, 1000)
    return Outcome(model="m", benchmarks=list(BENCHMARKS), scores=scores, counts=counts, num_rejected=0)


def test_the_table_lists_all_benchmarks_next_to_the_published_scores() -> None:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(score_table(make_outcome()))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capture.get().splitlines()]
    rows = [row for row in rows if row]
    assert [row[0] for row in rows] == [*(each.title for each in BENCHMARKS), "docvqa_val: anls"]
    by_title = {row[0]: row[1:5] for row in rows}
    assert by_title["POPE"] == ["50.0", "85.9", "85.9", "3,000"]
    assert by_title["MME"] == ["0.5", "1510.7", "1531.3", "1,000"]
    assert by_title["docvqa_val: anls"] == ["0.25", "", "", "1,000"]


def test_the_page_escapes_what_the_model_and_the_dataset_contain(tmp_path: Path) -> None:
    outcome = Outcome(model="<m>", benchmarks=[], scores={}, counts={"t": 2}, num_rejected=0)
    wrong = {
        "id": 0,
        "prompt": "<b>",
        "response": "<script>",
        "target": "&",
        "score": 0,
        "images": ["a b.png"],
    }
    right = {**wrong, "id": 1, "score": 1, "response": "correct"}
    unscored = {**wrong, "id": 2, "score": None, "response": "unknown"}
    (tmp_path / "items").mkdir()
    lines = "".join(json.dumps(item) + "\n" for item in (wrong, right, unscored))
    (tmp_path / "items/t.jsonl").write_text(lines)
    page = write_wrong_page(outcome, tmp_path).read_text()
    assert page.count("<figure>") == 1
    assert 'src="a%20b.png"' in page
    assert "&lt;script&gt;" in page and "<script>" not in page
    assert "correct" not in page and "unknown" not in page
