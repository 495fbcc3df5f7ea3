"""A short list of error replies means a defect. All other replies, even unknown ones, are temporary."""

from __future__ import annotations

import pytest
from llava_wire.redis.error_replies import error_kind, is_defect, unavailable_reason
from redis import exceptions
from redis._parsers.base import BaseParser

SHA = "script: f_0123, on @user_script:12."
TEMPORARY = {
    "NOREPLICAS": "NOREPLICAS Not enough good replicas to write.",
    "MISCONF": "MISCONF Errors writing to the AOF file: No space left on device",
    "READONLY": "READONLY You can't write against a read only replica.",
    "UNBLOCKED": "UNBLOCKED force unblock from blocking operation, instance state changed",
    "BUSY": "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    "NOPERM": "NOPERM User server has no permissions to run the 'evalsha' command",
    "NOAUTH": "NOAUTH Authentication required.",
    "WRONGPASS": "WRONGPASS invalid username-password pair or user is disabled.",
    "OOM": f"OOM command not allowed when used memory > 'maxmemory'. {SHA}",
    "LOADING": "LOADING Redis is loading the dataset in memory",
    "MASTERDOWN": "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "CLUSTERDOWN": "CLUSTERDOWN The cluster is down",
    "TRYAGAIN": "TRYAGAIN Multiple keys request during rehashing of slot",
    "MOVED": "MOVED 3999 127.0.0.1:6381",
    "ASK": "ASK 3999 127.0.0.1:6381",
    "NOMASTERLINK": "NOMASTERLINK Can't SYNC while not connected with my master",
    "UNKNOWNWORD": "UNKNOWNWORD of a later release",
    "ERR": "ERR max number of clients reached",
}
DEFECTS = (
    "ERR unknown command 'EVALSHAX', with args beginning with: ",
    "ERR wrong number of arguments for 'evalsha' command",
    f"ERR user_script:12: attempt to compare nil with number {SHA}",
    "ERR Error compiling script (new function): user_script:1: '=' expected",
    "ERR value is not an integer or out of range",
    "WRONGTYPE Operation against a key holding the wrong kind of value",
)


def parse(reply: str) -> Exception:
    error: Exception = BaseParser.parse_error(reply)
    return error


@pytest.mark.parametrize("kind", TEMPORARY)
def test_any_reply_that_is_not_listed_as_a_defect_is_temporary(kind: str) -> None:
    error = parse(TEMPORARY[kind])
    assert not is_defect(error)
    if kind != "ERR":
        assert error_kind(error) == kind
        assert kind in unavailable_reason(error)


@pytest.mark.parametrize("reply", DEFECTS)
def test_replies_to_a_wrong_program_are_defects(reply: str) -> None:
    assert is_defect(parse(reply))


@pytest.mark.parametrize(
    ("inner", "kind", "is_wrong"),
    [("-READONLY You can't write", "READONLY", False), ("-WRONGTYPE Operation against", "WRONGTYPE", True)],
)
def test_the_error_that_redis_6_wraps_is_classified_by_its_own_word(
    inner: str, kind: str, is_wrong: bool
) -> None:
    error = parse(f"ERR Error running script (call to f_0123): @user_script:12: @user_script: 12: {inner}")
    assert (error_kind(error), is_defect(error)) == (kind, is_wrong)


@pytest.mark.parametrize(
    "text",
    [
        "The user executing the script can't run this command or subcommand",
        "The user executing the script can't access at least one of the keys",
        "ACL failure in script: User w has no permissions to run the 'set' command",
    ],
)
def test_a_command_in_a_script_that_the_permissions_deny_is_temporary(text: str) -> None:
    error = parse(f"ERR {text} {SHA}")
    assert (error_kind(error), is_defect(error)) == ("NOPERM", False)
    assert "Check the permissions of the Redis user (ACL)." in unavailable_reason(error)


def test_a_script_that_an_operator_killed_is_retried() -> None:
    assert not is_defect(parse(f"ERR user_script:12: Script killed by user with SCRIPT KILL. {SHA}"))


def test_a_node_of_a_cluster_is_named_in_the_reason() -> None:
    error = parse(f"ERR Script attempted to access a non local key in a cluster node {SHA}")
    assert not is_defect(error)
    assert "redis+cluster://" in unavailable_reason(error)


@pytest.mark.parametrize(
    "error",
    [
        exceptions.InvalidResponse("Protocol Error: b'x'"),
        exceptions.TimeoutError("no reply"),
        exceptions.ConnectionError("closed"),
        OSError("refused"),
    ],
)
def test_protocol_and_network_errors_are_temporary(error: Exception) -> None:
    assert not is_defect(error)


def test_arguments_that_cannot_be_sent_are_a_defect() -> None:
    assert is_defect(exceptions.DataError("Invalid input of type: 'NoneType'"))
