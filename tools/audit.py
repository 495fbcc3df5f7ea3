"""Check the locked dependencies of the images for known vulnerabilities. Usage: ``make audit``.

The vulnerabilities come from PyPI. The exit status is 0 if none is known, 1 if there are any, and 2 if a
package could not be checked. pip-audit itself also reports success if PyPI has no data.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "deploy" / "requirements"
# worker-cuda contains all packages of worker, and the version of torch for which PyPI has data.
LOCKS = ("server", "worker-cuda", "build")


def findings(report: str) -> tuple[list[str], list[str]]:
    """Return the vulnerabilities and the packages that were not checked.

    Raises ValueError if the text is not a report of pip-audit.
    """
    parsed = json.loads(report)
    if not isinstance(parsed, dict) or "dependencies" not in parsed:
        raise ValueError("not a report of pip-audit")
    dependencies: list[dict[str, Any]] = parsed["dependencies"]
    vulnerable = []
    for package in dependencies:
        for found in package.get("vulns", ()):
            versions = ", ".join(found["fix_versions"]) or "no version"
            vulnerable.append(f"{package['name']} {package['version']}: {found['id']}, fixed in {versions}")
    return vulnerable, [package["name"] for package in dependencies if "skip_reason" in package]


def audit(name: str) -> int:
    """Print the findings for one lock file and return the exit status."""
    command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--require-hashes", "--format", "json"]
    command += ["--progress-spinner", "off", "--requirement", str(FOLDER / f"{name}.txt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        vulnerable, unchecked = findings(done.stdout)
    except ValueError:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        print(f"{name}: pip-audit failed: {reason}")
        return 2
    for line in vulnerable:
        print(f"{name}: {line}")
    if unchecked:
        print(f"{name}: PyPI returned no data for {len(unchecked)} packages, including {unchecked[0]}.")
    elif not vulnerable:
        print(f"{name}: no known vulnerabilities")
    return 2 if unchecked else int(bool(vulnerable))


if __name__ == "__main__":
    sys.exit(max(audit(name) for name in LOCKS))
