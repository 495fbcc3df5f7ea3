"""A seccomp sandbox that allows only the system calls needed for decoding images.

System calls that open files or sockets or start programs or threads are blocked. They fail with EPERM, so a
library that makes one of these calls raises an error, just as it does for a damaged image. The filter cannot
be removed. If the system does not support the sandbox, ``enter_sandbox`` returns the reason.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys

__all__ = ["enter_sandbox"]

# The kernel's architecture constant and the allowed system calls, keyed by machine type.
_MACHINES: dict[str, tuple[int, dict[str, int]]] = {
    "x86_64": (
        0xC000003E,
        {
            "read": 0,
            "write": 1,
            "close": 3,
            "fstat": 5,
            "lseek": 8,
            "mmap": 9,
            "mprotect": 10,
            "munmap": 11,
            "brk": 12,
            "rt_sigaction": 13,
            "rt_sigprocmask": 14,
            "rt_sigreturn": 15,
            "sched_yield": 24,
            "mremap": 25,
            "madvise": 28,
            "setitimer": 38,
            "exit": 60,
            "gettimeofday": 96,
            "getrusage": 98,
            "futex": 202,
            "restart_syscall": 219,
            "clock_gettime": 228,
            "exit_group": 231,
            "prlimit64": 302,
            "getrandom": 318,
        },
    ),
    "aarch64": (
        0xC00000B7,
        {
            "close": 57,
            "lseek": 62,
            "read": 63,
            "write": 64,
            "fstat": 80,
            "exit": 93,
            "exit_group": 94,
            "futex": 98,
            "setitimer": 103,
            "clock_gettime": 113,
            "sched_yield": 124,
            "restart_syscall": 128,
            "rt_sigaction": 134,
            "rt_sigprocmask": 135,
            "rt_sigreturn": 139,
            "getrusage": 165,
            "gettimeofday": 169,
            "brk": 214,
            "munmap": 215,
            "mremap": 216,
            "mmap": 222,
            "mprotect": 226,
            "madvise": 233,
            "prlimit64": 261,
            "getrandom": 278,
        },
    ),
}
_PROT_EXEC = 4

# linux/filter.h and linux/seccomp.h
_LOAD, _RETURN, _IF_EQUAL, _IF_ANY_BIT, _IF_AT_LEAST = 0x20, 0x06, 0x15, 0x45, 0x35
_ALLOW, _FORBID, _KILL = 0x7FFF0000, 0x00050001, 0x80000000  # _FORBID: fail with EPERM
_NUMBER, _ARCH, _FIRST_ARGUMENT, _THIRD_ARGUMENT = 0, 4, 16, 32  # offsets of the low words, little-endian
_X32_BIT = 0x40000000
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def enter_sandbox(machine: str | None = None) -> str | None:
    """Restrict this process until it exits.

    Return None on success, or the reason why the process cannot be restricted.
    """
    machine = platform.machine() if machine is None else machine
    if sys.platform != "linux" or machine not in _MACHINES:
        return f"no list of allowed system calls for {sys.platform} on {machine}"
    instructions = _filter(*_MACHINES[machine])
    buffer = ctypes.create_string_buffer(instructions)
    program = _Program(len(instructions) // 8, ctypes.addressof(buffer))
    kernel = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    if kernel.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero, zero, zero):
        return f"no_new_privs: {os.strerror(ctypes.get_errno())}"
    if kernel.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_MODE_FILTER), ctypes.byref(program), zero, zero):
        return f"seccomp: {os.strerror(ctypes.get_errno())}"
    return None


def _filter(arch: int, numbers: dict[str, int]) -> bytes:
    """Return the BPF program.

    Each instruction is 8 bytes long, and jumps specify the number of instructions to skip.
    """
    plain = [number for name, number in numbers.items() if name not in ("mmap", "mprotect", "prlimit64")]
    program = [
        _instruction(_LOAD, _ARCH),
        _instruction(_IF_EQUAL, arch, if_false=2),  # system call numbers depend on the architecture
        _instruction(_LOAD, _NUMBER),
        _instruction(_IF_AT_LEAST, _X32_BIT, if_false=1),  # the x32 ABI of x86_64 has its own numbers
        _instruction(_RETURN, _KILL),
    ]
    for number in plain:
        program += [_instruction(_IF_EQUAL, number, if_false=1), _instruction(_RETURN, _ALLOW)]
    for name in ("mmap", "mprotect"):  # deny executable memory
        program += [
            _instruction(_IF_EQUAL, numbers[name], if_false=4),
            _instruction(_LOAD, _THIRD_ARGUMENT),
            _instruction(_IF_ANY_BIT, _PROT_EXEC, if_false=1),
            _instruction(_RETURN, _FORBID),
            _instruction(_RETURN, _ALLOW),
        ]
    program += [  # allow prlimit64 for this process only
        _instruction(_IF_EQUAL, numbers["prlimit64"], if_false=3),
        _instruction(_LOAD, _FIRST_ARGUMENT),
        _instruction(_IF_EQUAL, 0, if_false=1),
        _instruction(_RETURN, _ALLOW),
        _instruction(_RETURN, _FORBID),
    ]
    return b"".join(program)


def _instruction(code: int, value: int, *, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, 0, if_false, value)
