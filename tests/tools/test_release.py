"""The version of the project is in pyproject.toml, and tools/release.py changes all copies of it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import release
import yaml

ROOT = Path(__file__).parents[2]
TEXTS = {path: (ROOT / path).read_text("utf-8") for path in (*release.FILES, "CHANGELOG.md")}
NEXT = "99.0.0"


def test_no_file_contains_the_version_in_addition_to_those_that_a_release_changes() -> None:
    command = ["git", "grep", "-lE", rf"(llava-serve[a-z-]*[:=]+|VERSION=|[vV]ersion: ){release.version()}\b"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert set(found) <= set(release.FILES)


def test_a_release_changes_the_version_everywhere_and_begins_a_section_of_the_changelog() -> None:
    changed = release.release(release.version(), NEXT, TEXTS, "2030-01-31")
    for path in release.FILES:
        assert NEXT in changed[path]
        assert not re.search(rf"(?<![\d.]){re.escape(release.version())}(?![\d.])", changed[path]), path
    assert f"## Unreleased\n\n## {NEXT} - 2030-01-31\n" in changed["CHANGELOG.md"]
    assert release.changelog_of(changed["CHANGELOG.md"], NEXT).startswith("###")


def pushed_images() -> dict[str, str]:
    """Return the name of the image that the release workflow pushes for each target of docker-bake.hcl."""
    workflow = (ROOT / ".github/workflows/release.yml").read_text("utf-8")
    return dict(re.findall(r'--set "([\w-]+)\.tags=\$images/([\w-]+):\$version"', workflow))


def test_the_release_workflow_pushes_all_images_under_the_names_that_other_files_use() -> None:
    bake = (ROOT / "docker-bake.hcl").read_text("utf-8")
    assert pushed_images() == dict(re.findall(r'target "([\w-]+)" \{[^}]*?tags += \["([\w-]+):', bake))
    command = ["git", "grep", "-hoE", rf"[a-z0-9./-]*llava-serve-[a-z-]+:{re.escape(release.version())}"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    names = {each.rpartition("/")[2].partition(":")[0] for each in found}
    assert names == set(pushed_images().values())


def test_the_published_chart_uses_the_published_images() -> None:
    workflow = (ROOT / ".github/workflows/release.yml").read_text("utf-8")
    registry = "ghcr.io/${GITHUB_REPOSITORY_OWNER,,}"
    assert f'tools/release.py --registry "{registry}"\n          helm package' in workflow
    assert f'images="{registry}"' in workflow
    published = release.with_registry((ROOT / release.VALUES).read_text("utf-8"), "ghcr.io/owner")
    values = yaml.safe_load(published)
    for role in ("server", "worker"):
        assert values[role]["image"] == f"ghcr.io/owner/{pushed_images()[role]}:{release.version()}"
    assert values["valkey"]["image"].startswith("valkey/")
    assert release.with_registry(published, "ghcr.io/other") == published.replace("owner", "other")


def test_the_url_of_the_repository_is_written_to_all_files_that_need_it() -> None:
    texts = {path: (ROOT / path).read_text("utf-8") for path in release.REPOSITORY_FILES}
    for url in ("https://example.com/a/b", "https://example.org/c"):
        texts = {path: release.with_repository(text, url) for path, text in texts.items()}
        assert f'\nurls.Repository = "{url}"\n' in texts["pyproject.toml"]
        assert yaml.safe_load(texts["CITATION.cff"])["repository-code"] == url
        assert yaml.safe_load(texts["deploy/helm/llava-serve/Chart.yaml"])["home"] == url
        for path in ("README.md", "CONTRIBUTING.md", "docs/get-started/first-response.md"):
            assert f"git clone {url} llava-serve && cd llava-serve\n" in texts[path]
    command = ["git", "grep", "-lE", "^(git clone|# ?repository|repository-code)"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert set(found) <= set(release.REPOSITORY_FILES)


@pytest.mark.parametrize("url", ["example.com/a", "http://example.com/a", "https://a b", 'https://a"'])
def test_an_invalid_url_of_the_repository_is_rejected(url: str) -> None:
    with pytest.raises(ValueError, match="must begin with https://"):
        release.with_repository("git clone … llava-serve\n", url)


def test_a_file_without_a_place_for_the_url_of_the_repository_is_rejected() -> None:
    with pytest.raises(ValueError, match="has 0 places in this file; expected one"):
        release.with_repository("nothing\n", "https://example.com/a")


@pytest.mark.parametrize("new", ["0.0.9", release.version(), "1.0", "v1.0.0", "1.0.0rc1"])
def test_a_version_that_is_not_higher_or_not_semantic_is_rejected(new: str) -> None:
    with pytest.raises(ValueError, match=r"must be MAJOR.MINOR.PATCH and higher than"):
        release.release(release.version(), new, TEXTS, "2030-01-31")


def test_release_notes_require_a_section_of_the_version() -> None:
    with pytest.raises(ValueError, match=r"has no section '## 99.0.0 - DATE'"):
        release.changelog_of(TEXTS["CHANGELOG.md"], NEXT)
