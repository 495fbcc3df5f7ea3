"""Resolve the tags of the images in ``docker-compose.yml`` and update their digests.

Usage: ``python tools/pin_images.py [--check] [--registry https://mirror.gcr.io]``. With ``--check``, the
program changes nothing and exits with status 1 if a tag has another digest than the file. Tags move when an
image is rebuilt, for example after a security update of Debian.

The protocol is the pull API of the OCI Distribution Specification 1.1, with Docker's token authentication.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import httpx2

COMPOSE = Path(__file__).parents[1] / "docker-compose.yml"
DOCKER_HUB = "https://registry-1.docker.io"
# An entry of x-images: the YAML key and anchor, the repository, the tag and the digest.
ENTRY = re.compile(
    r"^(?P<key>  \w+: &\w+ )(?P<repository>[a-z0-9][\w.:/-]*):(?P<tag>[\w.-]+)"
    r"(?:@(?P<digest>sha256:[0-9a-f]{64}))?$",
    re.MULTILINE,
)
# Images for several architectures, and images for one.
MEDIA_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)


class RegistryError(Exception):
    """A registry is unreachable or returned an unexpected response."""


@dataclass(frozen=True)
class Reference:
    """The location of an image's tag."""

    registry: str  # base URL
    repository: str
    tag: str

    @classmethod
    def parse(cls, repository: str, tag: str, docker_hub: str = DOCKER_HUB) -> Reference:
        """Parse a repository as Docker does: without a host name, it is a repository of Docker Hub."""
        host, slash, rest = repository.partition("/")
        if slash and ("." in host or ":" in host):
            return cls(f"https://{host}", rest, tag)
        return cls(docker_hub, repository if slash else f"library/{repository}", tag)


def digest_of(reference: Reference, http: httpx2.Client) -> str:
    """Return the digest of a tag's manifest. Raises RegistryError."""
    url = f"{reference.registry}/v2/{reference.repository}/manifests/{reference.tag}"
    headers = {"accept": ", ".join(MEDIA_TYPES)}
    try:
        response = http.get(url, headers=headers)
        if response.status_code == 401:
            token = _token(response.headers.get("www-authenticate", ""), http)
            response = http.get(url, headers={**headers, "authorization": f"Bearer {token}"})
    except httpx2.HTTPError as error:
        raise RegistryError(f"{url}: {error or type(error).__name__}") from error
    if response.status_code != 200:
        raise RegistryError(f"{url}: status {response.status_code}")
    digest = f"sha256:{hashlib.sha256(response.content).hexdigest()}"
    claimed = response.headers.get("docker-content-digest", digest)
    if claimed != digest:
        raise RegistryError(f"{url}: the registry reports {claimed}, but the manifest has {digest}")
    return digest


def _token(challenge: str, http: httpx2.Client) -> str:
    """Return an anonymous access token for the scope of a 401 response."""
    parameters = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    if not challenge.startswith("Bearer ") or "realm" not in parameters:
        raise RegistryError(f"unsupported authentication: {challenge or 'no WWW-Authenticate header'}")
    response = http.get(parameters.pop("realm"), params=parameters)
    token = response.json().get("token") if response.status_code == 200 else None
    if not isinstance(token, str):
        raise RegistryError(f"{response.url}: status {response.status_code}, no token")
    return token


def pinned(text: str, http: httpx2.Client, docker_hub: str = DOCKER_HUB) -> str:
    """Return the compose file with the current digest of each tag. Raises RegistryError."""

    def pin(entry: re.Match[str]) -> str:
        digest = digest_of(Reference.parse(entry["repository"], entry["tag"], docker_hub), http)
        return f"{entry['key']}{entry['repository']}:{entry['tag']}@{digest}"

    return ENTRY.sub(pin, text)


def main(arguments: list[str], compose: Path = COMPOSE) -> int:
    """Run the program and return its exit status."""
    parser = argparse.ArgumentParser(prog="pin_images.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare the digests")
    parser.add_argument("--registry", default=DOCKER_HUB, help="URL of Docker Hub or of a mirror")
    options = parser.parse_args(arguments)
    before = compose.read_text("utf-8")
    try:
        with httpx2.Client(timeout=30, follow_redirects=True) as http:
            after = pinned(before, http, options.registry.rstrip("/"))
    except RegistryError as error:
        print(f"pin_images.py: {error}", file=sys.stderr)
        return 1
    changed = [entry[0].split(" ")[-1] for entry in ENTRY.finditer(after) if entry[0] not in before]
    for image in changed:
        print(image)
    if not options.check:
        compose.write_text(after, "utf-8")
    return int(options.check and bool(changed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
