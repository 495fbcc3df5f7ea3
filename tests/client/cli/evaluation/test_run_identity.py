"""Stored responses are used only for the models that gave them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from llava_cli.evaluation.run_identity import Identity, model_identity, read_run_id
from llava_client.client import Client
from llava_client.errors import APIConnectionError, ConfigurationError

from tests.client.scripted_server import ScriptedServer


def identify(server: ScriptedServer, role: str = "model") -> Identity:
    with Client(server.url, max_retries=0) as client:
        return model_identity(client, role, "tiny-llava")


def test_runs_of_the_same_model_share_an_id(server: ScriptedServer, tmp_path: Path) -> None:
    server.model_fields = {"digest": "aaa"}
    assert read_run_id(tmp_path, identify(server)) == read_run_id(tmp_path, identify(server))


@pytest.mark.parametrize("role", ["model", "judge"])
def test_another_model_with_the_same_name_does_not_continue_a_run(
    server: ScriptedServer, tmp_path: Path, role: str
) -> None:
    server.model_fields = {"digest": "aaa"}
    read_run_id(tmp_path, identify(server, role))
    server.model_fields = {"digest": "bbb"}
    with pytest.raises(ConfigurationError) as error:
        read_run_id(tmp_path, identify(server, role))
    assert str(error.value) == (
        f"{str(tmp_path)!r} has results with the digest or URL of the {role} 'aaa', but this command has "
        "'bbb'. Use another --out, or delete the folder."
    )


def test_a_server_without_digests_is_identified_by_its_url(server: ScriptedServer, tmp_path: Path) -> None:
    identity = identify(server)
    assert identity["digest or URL of the model"] == server.url
    read_run_id(tmp_path, identity)
    with pytest.raises(ConfigurationError, match="digest or URL of the model"):
        read_run_id(tmp_path, {**identity, "digest or URL of the model": "http://other"})


def test_a_server_that_cannot_be_reached_is_reported() -> None:
    with Client("http://127.0.0.1:9", max_retries=0) as client, pytest.raises(APIConnectionError):
        model_identity(client, "model", "tiny-llava")


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"model": "x"})])
def test_a_file_of_another_program_is_reported(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ConfigurationError, match="is not a file of this command"):
        read_run_id(tmp_path, {})
