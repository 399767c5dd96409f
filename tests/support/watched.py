"""Runs a command and tells whom it and all that it starts call, by what the kernel is asked: C code and DNS included.

    python -m tests.support.watched SOCKET COMMAND…

A seccomp filter hands each such call to whoever holds its listener, which is sent to SOCKET; it is written down there,
and goes on. Nothing is too short to be seen, which a look at the open connections now and then would miss.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import ipaddress
import os
import select
import socket
import struct
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.support.confined import (
    ALLOW,
    NOTIFY,
    PR_SET_NO_NEW_PRIVS,
    SCMP_CMP_EQ,
    SCMP_CMP_MASKED_EQ,
    SCMP_CMP_NE,
    Comparison,
    Filter,
)

LIBRARY: Final = ctypes.CDLL("libseccomp.so.2")
RECEIVE: Final = 0xC0502100
SEND: Final = 0xC0182101
"""linux/seccomp.h's SECCOMP_IOCTL_NOTIF_RECV and _SEND."""
CONTINUE: Final = 1
CALL: Final = struct.Struct("=QIIiIQ6Q")
"""struct seccomp_notif: id, thread, flags, and the call: its number, architecture, instruction and arguments."""
ANSWER: Final = struct.Struct("=QqiI")
"""struct seccomp_notif_resp: id, value, error, flags."""
KIND: Final = 0xF
"""Of socket()'s second argument, what is no flag."""


@contextmanager
def watching(folder: Path) -> Iterator[tuple[list[str], list[str]]]:
    """What to put before one command, and the list of whom it called: complete when the command has ended.

    An entry is `address:port`, the path of a UNIX socket, or `datagrams` for a socket that needs no connection.
    """
    path, called = folder / "watch", list[str]()
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(path))
        door.listen()
        door.settimeout(60)
        thread = threading.Thread(target=_hear, args=(door, called), daemon=True)
        thread.start()
        yield [sys.executable, "-m", "tests.support.watched", str(path)], called
        thread.join(timeout=20)
        assert not thread.is_alive(), "what was watched still runs"


def _hear(door: socket.socket, called: list[str]) -> None:
    """Until the last process that is watched has ended."""
    client, _ = door.accept()
    with client:
        _, [listener], _, _ = socket.recv_fds(client, 1, 1)
    names = {LIBRARY.seccomp_syscall_resolve_name(name.encode()): name for name in ("connect", "socket", "sendto")}
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    while not poll.poll()[0][1] & select.POLLHUP:
        call = bytearray(CALL.size)
        try:
            fcntl.ioctl(listener, RECEIVE, call)
            asked, thread, _, number, _, _, *arguments = CALL.unpack(call)
            called.append(_whom(names[number], thread, arguments))
            fcntl.ioctl(listener, SEND, ANSWER.pack(asked, 0, 0, CONTINUE))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EINTR):  # who asked was killed meanwhile
                raise
    os.close(listener)


def _whom(name: str, thread: int, arguments: Sequence[int]) -> str:
    """The address is read from the memory of who calls."""
    if name == "socket":
        return "datagrams"
    address, size = arguments[4:6] if name == "sendto" else arguments[1:3]
    with Path(f"/proc/{thread}/mem").open("rb", buffering=0) as memory:
        memory.seek(address)
        data = memory.read(min(size, 128))
    family = int.from_bytes(data[:2], sys.byteorder)
    if family == socket.AF_UNIX:
        return os.fsdecode(data[2:].partition(b"\0")[0])
    host = data[4:8] if family == socket.AF_INET else data[8:24]
    return f"{ipaddress.ip_address(host)}:{int.from_bytes(data[2:4], 'big')}"


def watch(path: str) -> None:
    """Have this process, and all that it starts, watched by whoever listens at `path`."""
    if ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError("prctl")
    with socket.socket(socket.AF_UNIX) as door:
        door.connect(path)
        calls = Filter(ALLOW)
        calls.add(NOTIFY, "connect")
        for family in (socket.AF_INET, socket.AF_INET6):
            datagrams = Comparison(1, SCMP_CMP_MASKED_EQ, KIND, socket.SOCK_DGRAM)
            calls.add(NOTIFY, "socket", Comparison(0, SCMP_CMP_EQ, family, 0), datagrams)
        calls.add(NOTIFY, "sendto", Comparison(4, SCMP_CMP_NE, 0, 0))
        calls.load()
        socket.send_fds(door, [b"!"], [calls.listener()])


if __name__ == "__main__":
    watch(sys.argv[1])
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 - the command is the test's
