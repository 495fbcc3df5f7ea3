"""Prepare a release: python tools/release.py 0.2.0

This program writes a new version to pyproject.toml and to all other files that contain it, and begins a
section of CHANGELOG.md for it. Commit the result, and push a tag such as v0.2.0. The workflow "Release" then
publishes the release.

``--notes v0.2.0`` prints the changelog of this version, and fails if the project has another version.
``--registry ghcr.io/OWNER`` writes the registry of the published images to the values of the Helm chart.
``--repository https://github.com/OWNER/NAME`` writes the URL of the repository to all files that need it.
"""

from __future__ import annotations

import datetime
import re
import subprocess
import sys
from pathlib import Path

__all__ = ["changelog_of", "release", "version", "with_registry", "with_repository"]

ROOT = Path(__file__).parents[1]
_VERSION = re.compile(r'^version = "(.+)"$', re.MULTILINE)
_SEMVER = re.compile(r"(\d+)\.(\d+)\.(\d+)")
# Files that contain the version. In each, it follows one of these texts.
FILES = (
    "CITATION.cff",
    "deploy/Dockerfile.server",
    "deploy/Dockerfile.worker",
    "deploy/Dockerfile.worker-cuda",
    "deploy/compose.gpu.yaml",
    "deploy/helm/llava-serve/Chart.yaml",
    "deploy/helm/llava-serve/values.yaml",
    "docker-bake.hcl",
    "docker-compose.yml",
    "docs/deploy/compose.md",
    "docs/deploy/kubernetes.md",
    "pyproject.toml",
    "server/llava_server/operator/health_response.py",
    "tests/deploy/value_sets.py",
)
VALUES = "deploy/helm/llava-serve/values.yaml"
# Files that contain the URL of the repository, or an ellipsis in its place if there is none yet. mkdocs.yml
# does not contain it, because each page of the site would request data from GitHub.
REPOSITORY_FILES = (
    "CITATION.cff",
    "CONTRIBUTING.md",
    "README.md",
    "deploy/helm/llava-serve/Chart.yaml",
    "docs/get-started/first-response.md",
    "pyproject.toml",
)
_REPOSITORY = re.compile(
    r'^(?:# )?(git clone |home: |repository-code: |urls\.Repository = ")(?:…|https://[^\s"]+)', re.MULTILINE
)
_BEFORE = (
    r'(^version = "|^version: |^appVersion: |VERSION=|default = "|llava-serve-[a-z-]+:|llava-serve\.", ")'
)


def version() -> str:
    """Return the version of the project."""
    found = _VERSION.search((ROOT / "pyproject.toml").read_text("utf-8"))
    assert found, "pyproject.toml contains no version"
    return found[1]


def release(old: str, new: str, texts: dict[str, str], date: str) -> dict[str, str]:
    """Return the texts of files with the new version, and a new section of the changelog.

    Raises ValueError if the new version is not higher than the old one, or if a file does not contain the old
    version.
    """
    if not _SEMVER.fullmatch(new) or _numbers(new) <= _numbers(old):
        raise ValueError(f"The new version, {new}, must be MAJOR.MINOR.PATCH and higher than {old}.")
    pattern = re.compile(_BEFORE + re.escape(old) + r"(?![\w.-])", re.MULTILINE)
    changed = {}
    for path, text in texts.items():
        if path == "CHANGELOG.md":
            changed[path] = text.replace("## Unreleased\n", f"## Unreleased\n\n## {new} - {date}\n", 1)
        else:
            changed[path] = pattern.sub(rf"\g<1>{new}", text)
        if changed[path] == text:
            raise ValueError(f"{path} contains neither the version {old} nor a section 'Unreleased'.")
    return changed


def changelog_of(text: str, wanted: str) -> str:
    """Return the section of a version in the changelog. Raises ValueError if there is none or it is empty."""
    section = re.search(
        rf"^## {re.escape(wanted)} - [\d-]+\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL
    )
    if not section or not section[1].strip():
        raise ValueError(
            f"CHANGELOG.md has no section '## {wanted} - DATE'. Run: python tools/release.py {wanted}"
        )
    return section[1].strip()


def with_registry(values: str, registry: str) -> str:
    """Return the chart's default values with images from a registry such as ghcr.io/owner."""
    return re.sub(r"^(  image: )\S*(llava-serve-)", rf"\g<1>{registry}/\g<2>", values, flags=re.MULTILINE)


def with_repository(text: str, url: str) -> str:
    """Return the text of a file with this URL of the repository.

    Raises ValueError if the URL is invalid or the text has no place for it.
    """
    if not re.fullmatch(r'https://[^\s"]+', url):
        raise ValueError(f"The URL of the repository, {url}, must begin with https://.")
    changed, count = _REPOSITORY.subn(rf"\g<1>{url}", text)
    if count != 1:
        raise ValueError(f"The URL of the repository has {count} places in this file; expected one.")
    return changed


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split("."))


def _print_notes(tag: str) -> None:
    if tag != f"v{version()}":
        raise ValueError(f"The tag is {tag}, but the version in pyproject.toml is {version()}.")
    print(changelog_of((ROOT / "CHANGELOG.md").read_text("utf-8"), version()))


def _write(new: str) -> None:
    texts = {path: (ROOT / path).read_text("utf-8") for path in (*FILES, "CHANGELOG.md")}
    for path, text in release(version(), new, texts, datetime.date.today().isoformat()).items():
        (ROOT / path).write_text(text, "utf-8")
    subprocess.run(["git", "--no-pager", "diff", "--stat"], cwd=ROOT, check=True)
    print("Review the changes, then run:")
    print(
        f"  git commit -am 'Release {new}' && git tag -a v{new} -m 'Release {new}' && git push --follow-tags"
    )


def main() -> None:
    arguments = sys.argv[1:]
    try:
        match arguments:
            case ["--notes", tag]:
                _print_notes(tag)
            case ["--registry", registry]:
                path = ROOT / VALUES
                path.write_text(with_registry(path.read_text("utf-8"), registry), "utf-8")
            case ["--repository", url]:
                for path in (ROOT / name for name in REPOSITORY_FILES):
                    path.write_text(with_repository(path.read_text("utf-8"), url), "utf-8")
            case [new] if not new.startswith("-"):
                _write(new)
            case _:
                sys.exit(__doc__)
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
