"""The test of a release, which `helm test` runs in the server's image.

Checks that the server is ready and that authentication is enforced. If an API key is available, or if none is
required, it also requests one token from each model.
"""

import json
import os
import pathlib
import sys
import urllib.error
import urllib.request

URL = os.environ["SERVER_URL"]
REQUIRES_KEY = os.environ["REQUIRES_KEY"] == "true"
KEYS_FILE = os.environ.get("API_KEYS_FILE")
TIMEOUT_S = float(os.environ["TIMEOUT_S"])  # of a request, including the start of a worker from zero


def send(path, body=None, key=None):
    """Send a request. Return the status and the body."""
    headers = {"content-type": "application/json"}
    if key:
        headers["authorization"] = f"Bearer {key}"
    request = urllib.request.Request(URL + path, body and json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def check(what, path, expected, **options):
    """Send a request, and exit with status 1 unless the status is the expected one."""
    status, body = send(path, **options)
    sys.stdout.write(f"{what}: status {status}\n")
    if status != expected:
        sys.exit(f"{what}: expected status {expected}, received {status}: {body}")


check("the server is ready", "/readyz", 200)
if REQUIRES_KEY:
    check("a request without an API key is rejected", "/v1/models", 401)
key = pathlib.Path(KEYS_FILE).read_text().split()[0] if KEYS_FILE else None
if key or not REQUIRES_KEY:
    message = {"role": "user", "content": "Hello"}
    for model in json.loads(os.environ["MODELS"]):
        chat = {"model": model, "messages": [message], "max_tokens": 1}
        check(f"{model} completes a chat request", "/v1/chat/completions", 200, body=chat, key=key)
else:
    sys.stdout.write("no chat request was sent, because server.apiKeysSecret is not set\n")
