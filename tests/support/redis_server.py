"""A real redis-server for one test, and a wire to it that can be made bad."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import redis

from gateway.cli.launcher import free_port
from tests.support.certificates import make_certificate


class RedisServer:
    """Debian's redis-server on a unix socket and a free port of loopback, with nothing written to disk."""

    def __init__(self, folder: Path, *options: str) -> None:
        """Keep its socket in `folder`; `options` as on its command line."""
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self.socket = folder / "redis.sock"

    @property
    def url(self) -> str:
        """Over TCP."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def unix(self) -> str:
        """Over the unix socket."""
        return f"unix://{self.socket}?db=0"

    def start(self) -> Self:
        """Start it and wait until it listens."""
        found = shutil.which("redis-server")
        assert found, "redis-server is missing: make test installs it"
        command = [found, "--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", str(self.socket)]
        command += ["--save", "", "--appendonly", "no", "--dir", str(self._folder), *self._options]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        until = time.monotonic() + 10
        while not _listens(self.socket):
            assert time.monotonic() < until, "redis-server did not start"
            assert self._process.poll() is None, "redis-server ended"
            time.sleep(0.01)
        return self

    def freeze(self) -> None:
        """Let it answer nothing more."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it, and all that it held."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            self.socket.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        """Start."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()

    def command(self, *words: str | bytes | int) -> Any:
        """The answer to one command."""
        with redis.Redis(unix_socket_path=str(self.socket)) as client:
            return client.execute_command(*words)

    def follow(self, master: RedisServer | None) -> None:
        """Become a replica of `master`, and wait for its data; or a master."""
        if master is None:
            self.command("REPLICAOF", "NO", "ONE")
            return
        self.command("REPLICAOF", "127.0.0.1", str(master.port))
        wait_until(lambda: self.command("ROLE")[3] == b"connected")


class Sentinel:
    """A Sentinel that watches a master under the name `samovar`."""

    def __init__(self, folder: Path, master: RedisServer, *, quorum: int, options: Sequence[str] = ()) -> None:
        """Keep its configuration in `folder`; it takes a master for dead after half a second."""
        self.port = free_port()
        self._folder = folder
        lines = [f"port {self.port}", "bind 127.0.0.1", f"sentinel monitor samovar 127.0.0.1 {master.port} {quorum}"]
        lines += ["sentinel down-after-milliseconds samovar 500", "sentinel failover-timeout samovar 3000", *options]
        folder.mkdir()
        (folder / "sentinel.conf").write_text("\n".join([*lines, f"dir {folder}"]) + "\n")

    def __enter__(self) -> Self:
        """Start, and wait until it answers."""
        command = ["redis-server", str(self._folder / "sentinel.conf"), "--sentinel"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_until(self._listens)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self._process.kill()
        self._process.wait()

    def knows(self, sentinels: int, replicas: int) -> bool:
        """Whether it has found so many other Sentinels and replicas: before, it can't fail over."""
        with redis.Redis(port=self.port, socket_timeout=2) as client:
            state = client.sentinel_master("samovar")
            return bool(state["num-other-sentinels"] == sentinels and state["num-slaves"] == replicas)

    def _listens(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0


class Switch:
    """A port that leads new connections to one server or another; old ones stay where they lead, as behind HAProxy."""

    def __init__(self, target: int) -> None:
        """Lead to port `target` at first."""
        self.target = target
        self.taken: Counter[int] = Counter()
        """Connections by target."""

    def serve(self, client: socket.socket) -> None:
        """Lead one connection."""
        self.taken[self.target] += 1
        with client, suppress(OSError), socket.create_connection(("127.0.0.1", self.target)) as server:
            never = threading.Event()
            threading.Thread(target=_copy, args=(client, server, 0.0, never), daemon=True).start()
            _copy(server, client, 0.0, never)


def wait_until(true: Callable[[], bool]) -> None:
    """Wait, not for ever."""
    until = time.monotonic() + 30
    while not true():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.02)


@contextmanager
def wire(target: Path, delay: float) -> Iterator[int]:
    """A port that leads to the unix socket `target`, with `delay` seconds before every piece that comes back."""
    ended = threading.Event()

    def serve(client: socket.socket) -> None:
        server = socket.socket(socket.AF_UNIX)
        with client, server, suppress(OSError):
            server.connect(str(target))
            threading.Thread(target=_copy, args=(client, server, 0.0, ended), daemon=True).start()
            _copy(server, client, delay, ended)

    with listening(serve) as port:
        yield port
        ended.set()


@contextmanager
def babbler(answer: bytes, *, drip: float = 0.0) -> Iterator[int]:
    """A port where whatever is sent is answered with `answer`; with `drip`, a byte at a time, so many seconds apart."""
    ended = threading.Event()

    def serve(client: socket.socket) -> None:
        with client, suppress(OSError):
            while client.recv(1 << 16) and not ended.is_set():
                for piece in [answer] if not drip else [answer[i : i + 1] for i in range(len(answer))]:
                    client.sendall(piece)
                    if ended.wait(drip):
                        return

    with listening(serve) as port:
        yield port
        ended.set()


@contextmanager
def listening(serve: object) -> Iterator[int]:
    """A free port whose connections are handed to `serve`, each in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            with suppress(OSError):
                while True:
                    client, _ = server.accept()
                    threading.Thread(target=serve, args=(client,), daemon=True).start()  # type: ignore[arg-type]

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    thread.join(timeout=5)


def make_certificates(folder: Path) -> list[str]:
    """A certificate for 127.0.0.1 that signs itself, and the options by which redis-server uses it."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    make_certificate(certificate, key, address="127.0.0.1")
    return ["--tls-cert-file", str(certificate), "--tls-key-file", str(key)]


def _copy(source: socket.socket, target: socket.socket, delay: float, ended: threading.Event) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            if ended.wait(delay):
                return
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0
