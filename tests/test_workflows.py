"""The workflows in .github run jobs and files that exist, and test all supported versions of Python."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = {
    path.name: yaml.safe_load(path.read_text("utf-8")) for path in ROOT.glob(".github/workflows/*.yml")
}
STEPS = [
    (name, step)
    for name, workflow in WORKFLOWS.items()
    for job in workflow["jobs"].values()
    for step in job["steps"]
]
COMMANDS = "\n".join(step["run"] for _, step in STEPS if "run" in step)
CI = (ROOT / ".ci" / "run").read_text("utf-8")
JOBS = set(re.findall(r"\.ci/run (\w+)", COMMANDS))


def targets() -> set[str]:
    """Return the targets of the Makefile."""
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


@pytest.mark.parametrize("job", sorted(JOBS))
def test_a_workflow_runs_a_job_that_exists(job: str) -> None:
    case = re.search(rf"^  (?:[\w |]+\| )?{job}(?: \|[\w |]+)?\) (.+) ;;$", CI, re.MULTILINE)
    assert case, f".ci/run has no job {job}"
    for target in re.findall(r'make ("\$1"|[a-z-]+)', case[1]):
        assert (job if target == '"$1"' else target) in targets()


def test_ci_rejects_a_job_that_does_not_exist() -> None:
    done = subprocess.run(
        ["bash", "-c", "case " + CI.partition("case ")[2], "run", "nothing"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.partition(".")[0]) == (2, "Unknown job: nothing")


def test_every_job_of_ci_is_part_of_a_workflow() -> None:
    cases = re.findall(r"^  ([a-z][\w |]*)\)", CI, re.MULTILINE)
    assert {job for case in cases for job in case.split(" | ")} == JOBS


def test_every_supported_version_of_python_is_tested() -> None:
    classifiers = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text("utf-8"))
    jobs = WORKFLOWS["ci.yml"]["jobs"]
    tested = [*jobs["test"]["strategy"]["matrix"]["python"], jobs["lowest"]["container"][7:11]]
    assert sorted(tested) == sorted(classifiers)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_can_write_only_where_a_job_says_so(name: str) -> None:
    assert WORKFLOWS[name]["permissions"] == {"contents": "read"}


@pytest.mark.parametrize(("name", "step"), STEPS, ids=lambda each: each if isinstance(each, str) else "")
def test_a_step_inserts_no_values_of_expressions_into_a_shell_script(name: str, step: dict[str, Any]) -> None:
    assert "${{" not in step.get("run", ""), f"{name}: pass the value in env"


def test_pre_commit_uses_the_versions_in_the_constraints() -> None:
    constraints = dict(
        re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    )
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"]
    versions = {hook["repo"].rpartition("/")[2]: hook["rev"] for hook in hooks}
    assert versions["ruff-pre-commit"] == f"v{constraints['ruff']}"
    assert versions["codespell"] == f"v{constraints['codespell']}"
