"""HAProxy and nginx as `deploy/` configures them, with only what a machine decides put in: addresses, ports, paths."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import ROOT
from tests.support.redis_server import make_certificates

DEPLOY = ROOT / "deploy"
SHIPPED_GATEWAYS = ("10.0.0.11:8000", "10.0.0.12:8000")
NGINX = """\
{user}daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
worker_processes 1;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/samovar.conf;
}}
"""
"""What Debian's nginx.conf is around a site, for a user without rights."""


class Balancer(ABC):
    """One of the two, in a folder of its own, over TLS on a free port of loopback; over plain HTTP on another."""

    def __init__(self, folder: Path, gateways: Sequence[str], ports: tuple[int, int], certbot: int = 9) -> None:
        """Write its configuration: `gateways` are host:port, `ports` those of TLS and of plain HTTP."""
        self.certbot = certbot
        self.url = f"https://127.0.0.1:{ports[0]}"
        self.plain = f"http://127.0.0.1:{ports[1]}"
        self._folder = folder
        self._puts = {**dict(zip(SHIPPED_GATEWAYS, gateways, strict=True)), **self.machine(ports)}
        folder.mkdir()
        make_certificates(folder)
        (folder / "both.pem").write_bytes((folder / "cert.pem").read_bytes() + (folder / "key.pem").read_bytes())
        self.tls = ssl.create_default_context(cafile=str(folder / "cert.pem"))
        self.config = folder / self.shipped.name
        self.config.write_text(self._adapted())

    shipped: Path
    """The file of `deploy/`."""

    @abstractmethod
    def machine(self, ports: tuple[int, int]) -> dict[str, str]:
        """What the shipped file says about the machine it runs on, and what to say here."""

    @abstractmethod
    def command(self, *, check: bool) -> list[str]:
        """The program's command line: to serve, or only to look at the configuration."""

    def check(self) -> subprocess.CompletedProcess[str]:
        """Let the program itself look at the configuration."""
        return subprocess.run(self.command(check=True), capture_output=True, text=True, check=False)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Serve meanwhile."""
        with (self._folder / "log").open("w") as log:
            process = subprocess.Popen(self.command(check=False), stdout=log, stderr=log)
        try:
            self._wait_until_ready(process)
            yield
        finally:
            process.terminate()
            process.wait(10)

    def get(self, path: str, *, source: str = "127.0.0.1", **headers: str) -> httpx.Response:
        """GET a route over TLS, as a client of this address."""
        transport = httpx.HTTPTransport(verify=self.tls, local_address=source)
        with httpx.Client(transport=transport, timeout=10) as client:
            return client.get(self.url + path, headers=headers)

    def post(self, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
        """POST a route over TLS."""
        return httpx.post(self.url + path, json=body, headers=headers, verify=self.tls, timeout=30)

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        until = time.monotonic() + 15
        while True:
            with suppress(httpx.TransportError):
                if self.get("/readyz").status_code == 200:
                    return
            assert process.poll() is None, (self._folder / "log").read_text()
            assert time.monotonic() < until, (self._folder / "log").read_text()
            time.sleep(0.05)

    def _adapted(self) -> str:
        text = self.shipped.read_text()
        for old, new in self._puts.items():
            assert old in text, f"{self.shipped} says nothing about {old}"
            text = text.replace(old, new)
        return text


class HAProxy(Balancer):
    """Debian's haproxy."""

    shipped = DEPLOY / "haproxy" / "haproxy.cfg"

    def machine(self, ports: tuple[int, int]) -> dict[str, str]:
        """It drops root's rights and opens many files, which a test may not, and logs to the system's log."""
        tls, plain = ports
        return {
            "bind :443 ": f"bind 127.0.0.1:{tls} ",
            "bind :80\n": f"bind 127.0.0.1:{plain}\n",
            "    bind :::443 v6only ssl crt /etc/haproxy/samovar.pem alpn h2,http/1.1\n": "",
            "    bind :::80 v6only\n": "",
            "127.0.0.1:8402": f"127.0.0.1:{self.certbot}",
            "/etc/haproxy/samovar.pem": f"{self._folder}/both.pem",
            "maxconn 20000": "maxconn 500",
            "log /dev/log local0": "log stderr format raw local0",
            "chroot /var/lib/haproxy\n    user haproxy\n    group haproxy\n": "",
        }

    def command(self, *, check: bool) -> list[str]:
        """-db stays in the foreground."""
        return [_program("haproxy"), *(["-c"] if check else ["-db"]), "-f", str(self.config)]


class Nginx(Balancer):
    """Debian's nginx."""

    shipped = DEPLOY / "nginx" / "samovar.conf"

    def machine(self, ports: tuple[int, int]) -> dict[str, str]:
        """Loopback of IPv6 may be missing, and need not be tried."""
        tls, plain = ports
        return {
            "listen 443": f"listen 127.0.0.1:{tls}",
            "listen 80": f"listen 127.0.0.1:{plain}",
            "listen [::]:443 ssl http2;": "",
            "listen [::]:80;": "",
            "127.0.0.1:8402": f"127.0.0.1:{self.certbot}",
            "/etc/nginx/samovar.crt": f"{self._folder}/cert.pem",
            "/etc/nginx/samovar.key": f"{self._folder}/key.pem",
        }

    def command(self, *, check: bool) -> list[str]:
        """The shipped file is a site, and needs an nginx.conf around it."""
        main = self._folder / "nginx.conf"
        user = "user root;\n" if os.geteuid() == 0 else ""  # whom else root's folders are closed to
        main.write_text(NGINX.format(folder=self._folder, user=user))
        return [_program("nginx"), *(["-t"] if check else []), "-p", str(self._folder), "-c", str(main)]


def _program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    assert found, f"{name} is missing: make test installs it"
    return found


BALANCERS = pytest.mark.parametrize("kind", [HAProxy, Nginx])


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [listener.getsockname()[1] for listener in sockets]
