"""Classification of Redis errors: defects of this program, and everything else.

Redis has dozens of error replies, and adds more in each release. Almost all of them are states that pass: a
failover, a full disk, a script of another client. The list below therefore contains only the replies that
mean that this program is wrong. Every other error, known or unknown, means that Redis is temporarily
unavailable.

Sources: ``server.c`` (shared error objects), ``script.c``, ``script_lua.c`` and ``acl.c`` of Redis 6.2 to 7.4
and Valkey 7.2 to 9.1.
"""

from __future__ import annotations

import re

from redis import exceptions

__all__ = ["error_kind", "is_defect", "unavailable_reason"]

# First words of the replies that mean that this program is wrong.
_DEFECTS = frozenset({"WRONGTYPE", "NOPROTO", "EXECABORT", "INVALIDOBJ"})
# "ERR" is the first word of many unrelated replies. These texts identify the ones that are defects.
_DEFECT_TEXTS = re.compile(
    r"compiling script|user_script|unknown (?:redis )?command|wrong number of arg|syntax error"
    r"|not an integer|not a valid float|out of range|no such key|invalid expire|invalid stream id"
    r"|too many results to unpack",
    re.IGNORECASE,
)
# Texts that match the list above, although the reason is outside of this program.
_TRANSIENT_TEXTS = re.compile(
    r"DB index|SCRIPT KILL|non local key|Script killed|scripts? attempted to access", re.IGNORECASE
)
# Redis 6.2 wraps the errors of commands that a script calls: "ERR Error running script (call to f_...):
# @user_script:12: @user_script: 12: -READONLY You can't write ...".
_WRAPPED = re.compile(r"@user_script: ?\d+: -?(?P<word>[A-Z]{2,}) ")
# The replies of Redis 7.0 and of later servers if a script calls a command that the permissions (ACL) of the
# user do not allow. Their first word is "ERR".
_DENIED = re.compile(r"user executing the script can't|ACL failure in script", re.IGNORECASE)
_WORD = re.compile(r"-?([A-Z][A-Z0-9]+)(?: |$)")
_WRONG_USER = "Check the user and the password in the Redis URL."
_CLUSTER_NODE = "The Redis URL names one node of a cluster. Use redis+cluster://."
_REMEDIES = {
    "NOAUTH": _WRONG_USER,
    "WRONGPASS": _WRONG_USER,
    "NOPERM": "Check the permissions of the Redis user (ACL).",
    "MOVED": _CLUSTER_NODE,
}
_NON_LOCAL = "non local key"  # a script accessed a key of another node of the cluster


def error_kind(error: BaseException) -> str:
    """Return the first word of an error reply, such as "READONLY", or "timeout" or "connection"."""
    if isinstance(error, exceptions.TimeoutError):
        return "timeout"
    text = str(error)
    if wrapped := _WRAPPED.search(text):
        return wrapped["word"]
    if isinstance(error, exceptions.ResponseError) and _DENIED.search(text):
        return "NOPERM"
    if code := getattr(error, "status_code", None):
        return str(code)
    if isinstance(error, exceptions.ResponseError) and (match := _WORD.match(text)):
        return match[1]
    return "connection" if isinstance(error, exceptions.ConnectionError | OSError) else "protocol"


def is_defect(error: BaseException) -> bool:
    """Return whether a Redis error means that this program is wrong, so that a retry cannot succeed."""
    if isinstance(error, exceptions.DataError):
        return True  # raised by redis-py before it sends anything
    if not isinstance(error, exceptions.ResponseError):
        return False
    kind = error_kind(error)
    if kind == "ERR":
        text = str(error)
        return bool(_DEFECT_TEXTS.search(text)) and not _TRANSIENT_TEXTS.search(text)
    return kind in _DEFECTS


def unavailable_reason(error: BaseException) -> str:
    """Describe an error in the words of Redis, with a remedy if the configuration may be wrong."""
    text = " ".join(str(error).split()).removesuffix(".") or type(error).__name__
    if code := getattr(error, "status_code", None):  # redis-py has removed the first word
        text = f"{code} {text}"
    remedy = _CLUSTER_NODE if _NON_LOCAL in text else _REMEDIES.get(error_kind(error), "")
    return f"{text}. {remedy}".strip()
