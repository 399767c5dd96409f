"""Runs a command under what a systemd unit forbids a process by itself, with no systemd running.

    python -m tests.support.confined UNIT [--writable=FOLDER] COMMAND…

Applied are NoNewPrivileges, SystemCallFilter, RestrictAddressFamilies, RestrictNamespaces, RestrictRealtime,
MemoryDenyWriteExecute, UMask and LimitCORE, the way that systemd's seccomp-util.c does it. With --writable, which takes
root, ProtectSystem=strict and CapabilityBoundingSet too: all that is mounted can be read only, but for that folder, and
root has no capability. Not applied is what gives the process another view: PrivateUsers, PrivateTmp, PrivateDevices,
ProtectHome, ProtectProc and ProtectKernel…; nor what a control group limits.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

ALLOW: Final = 0x7FFF0000
REFUSE: Final = 0x00050000
NOTIFY: Final = 0x7FC00000
PR_SET_NO_NEW_PRIVS: Final = 38
SCMP_CMP_NE, SCMP_CMP_EQ, SCMP_CMP_MASKED_EQ = 1, 4, 7
FAMILIES: Final = range(46)
SHM_EXEC: Final = 0o100000
NAMESPACES: Final = {
    "cgroup": 0x02000000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "net": 0x40000000,
    "mnt": 0x00020000,
}
"""clone()'s flags, which unshare() and setns() have too."""
REALTIME: Final = (os.SCHED_FIFO, os.SCHED_RR, 6)
"""The last one is SCHED_DEADLINE."""
PR_CAPBSET_DROP: Final = 24
CAPABILITIES: Final = range(41)
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
MOUNT_SETATTR: Final = 442
AT_FDCWD, AT_RECURSIVE, RDONLY = -100, 0x8000, 1


class Comparison(ctypes.Structure):
    """libseccomp's scmp_arg_cmp: of the argument so and so, the bits of `mask` (or the value) are compared."""

    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("mask", ctypes.c_uint64), ("value", ctypes.c_uint64))


class Filter:
    """One seccomp filter, which holds for this process and all that it starts once it is loaded."""

    def __init__(self, otherwise: int) -> None:
        """What happens to calls that no rule names."""
        self._library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
        self._library.seccomp_init.restype = ctypes.c_void_p
        self._library.seccomp_notify_fd.argtypes = [ctypes.c_void_p]
        self._context = ctypes.c_void_p(self._library.seccomp_init(ctypes.c_uint32(otherwise)))

    def add(self, action: int, call: str, *comparisons: Comparison) -> None:
        """What happens to a call; names that this processor does not have are passed over."""
        number = self._library.seccomp_syscall_resolve_name(call.encode())
        if number < 0:
            return
        array = (Comparison * len(comparisons))(*comparisons)
        done = self._library.seccomp_rule_add_array(
            self._context, ctypes.c_uint32(action), number, len(comparisons), array
        )
        if done < 0 and done != -errno.EFAULT:
            raise OSError(-done, f"no rule for {call}")

    def load(self) -> None:
        """Let it hold."""
        done = self._library.seccomp_load(self._context)
        if done < 0:
            raise OSError(-done, "seccomp_load")

    def listener(self) -> int:
        """Once it is loaded with NOTIFY in it: the descriptor where whoever holds it hears of those calls."""
        descriptor: int = self._library.seccomp_notify_fd(self._context)
        if descriptor < 0:
            raise OSError(-descriptor, "seccomp_notify_fd")
        return descriptor


def properties(unit: Path) -> dict[str, list[str]]:
    """The settings of a unit file, each with its values in order."""
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def calls(words: Iterable[str]) -> set[str]:
    """System calls by name, of names and of systemd's groups."""
    found: set[str] = set()
    for word in words:
        if not word.startswith("@"):
            found.add(word)
            continue
        listed = subprocess.run(["systemd-analyze", "syscall-filter", word], capture_output=True, text=True, check=True)
        found |= calls(line.strip() for line in listed.stdout.splitlines()[1:] if not line.strip().startswith("#"))
    return found - {""}


def allowed(values: Iterable[str]) -> set[str]:
    """The system calls that the lines of SystemCallFilter leave."""
    left: set[str] = set()
    for value in values:
        if value.startswith("~"):
            left -= calls(value[1:].split())
        else:
            left |= calls(value.split())
    return left


def protect(writable: Path) -> None:
    """Let this process, and all that it starts, write into one folder alone, and give up what makes root strong."""
    library = ctypes.CDLL(None, use_errno=True)

    def done(result: int, what: str) -> None:
        if result:
            raise OSError(ctypes.get_errno(), what)

    place = os.fsencode(writable)
    done(library.unshare(NAMESPACES["mnt"]), "unshare")
    done(library.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "mounts of its own")
    done(library.mount(place, place, None, MS_BIND, None), "a mount of its own for the folder")
    for path, wanted, unwanted, how in ((b"/", RDONLY, 0, AT_RECURSIVE), (place, 0, RDONLY, 0)):
        attributes = struct.pack("=4Q", wanted, unwanted, 0, 0)
        done(library.syscall(MOUNT_SETATTR, AT_FDCWD, path, how, attributes, len(attributes)), "mount_setattr")
    for capability in CAPABILITIES:
        library.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)  # what is left after exec is none; a kernel may have fewer


def confine(unit: Path) -> None:
    """Forbid this process, and all that it starts, what the unit does."""
    said = properties(unit)
    assert said["NoNewPrivileges"] == said["MemoryDenyWriteExecute"] == ["yes"]
    assert said["RestrictNamespaces"] == said["RestrictRealtime"] == ["yes"]
    permitted = allowed(said["SystemCallFilter"])
    resource.setrlimit(resource.RLIMIT_CORE, (int(said["LimitCORE"][0]),) * 2)
    os.umask(int(said["UMask"][0], 8))
    if ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError("prctl")

    details = Filter(ALLOW)
    families = {getattr(socket, name) for name in said["RestrictAddressFamilies"][0].split()}
    for family in set(FAMILIES) - families:
        details.add(REFUSE | errno.EAFNOSUPPORT, "socket", Comparison(0, SCMP_CMP_EQ, family, 0))
    both = mmap.PROT_WRITE | mmap.PROT_EXEC
    details.add(REFUSE | errno.EPERM, "mmap", Comparison(2, SCMP_CMP_MASKED_EQ, both, both))
    for call in ("mprotect", "pkey_mprotect"):
        details.add(REFUSE | errno.EPERM, call, Comparison(2, SCMP_CMP_MASKED_EQ, mmap.PROT_EXEC, mmap.PROT_EXEC))
    for flag in NAMESPACES.values():
        for call in ("clone", "unshare"):
            details.add(REFUSE | errno.EPERM, call, Comparison(0, SCMP_CMP_MASKED_EQ, flag, flag))
        details.add(REFUSE | errno.EPERM, "setns", Comparison(1, SCMP_CMP_MASKED_EQ, flag, flag))
    details.add(REFUSE | errno.EPERM, "setns", Comparison(1, SCMP_CMP_EQ, 0, 0))
    details.add(REFUSE | errno.ENOSYS, "clone3")  # whose flags lie in memory: libraries then use clone
    for policy in REALTIME:
        details.add(REFUSE | errno.EPERM, "sched_setscheduler", Comparison(1, SCMP_CMP_EQ, policy, 0))
    details.add(REFUSE | errno.EPERM, "shmat", Comparison(2, SCMP_CMP_MASKED_EQ, SHM_EXEC, SHM_EXEC))

    names = Filter(REFUSE | errno.EPERM)
    for call in permitted:
        names.add(ALLOW, call)
    details.load()
    names.load()


if __name__ == "__main__":
    unit, *command = sys.argv[1:]
    if command[0].startswith("--writable="):
        protect(Path(command.pop(0).partition("=")[2]))
    confine(Path(unit))
    os.execvp(command[0], command)  # noqa: S606 - the command is the test's
