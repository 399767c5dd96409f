"""The balancers that `deploy/` configures, before a server that tells what it sees: addresses, certificates."""

from __future__ import annotations

import os
import re
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from gateway.transport.proxies import Proxies
from tests.support.balancers import BALANCERS, DEPLOY, Balancer, HAProxy, Nginx, free_ports
from tests.support.certificates import make_certificate
from tests.support.readme import blocks


@contextmanager
def witness() -> Iterator[str]:
    """A server behind a gateway's own `Proxies` that answers what it sees of a request; gives its address."""

    async def report(request: Request) -> JSONResponse:
        client = request.client.host if request.client else None
        return JSONResponse({"client": client, "host": request.headers["host"], "scheme": request.url.scheme})

    app = Proxies(Starlette(routes=[Route("/{path:path}", report)]), trusted=["127.0.0.1"])
    server = uvicorn.Server(uvicorn.Config(app, proxy_headers=False, log_level="error", lifespan="off"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def test_the_shipped_configurations_are_what_the_programs_themselves_accept(tmp_path: Path) -> None:
    for kind in (HAProxy, Nginx):
        balancer = kind(tmp_path / kind.__name__, ["127.0.0.1:1", "127.0.0.1:2"], (3, 4))
        found = balancer.check()
        assert found.returncode == 0, found.stderr
        assert "warning" not in (found.stdout + found.stderr).lower()
        balancer.config.write_text(balancer.config.read_text() + "\nnonsense here;\n")
        assert balancer.check().returncode != 0


@BALANCERS
def test_the_gateway_sees_a_clients_address_and_ignores_its_forwarded_headers(
    tmp_path: Path, kind: type[Balancer]
) -> None:
    with witness() as address:
        tls, plain = free_ports(2)
        balancer = kind(tmp_path / "balancer", [address, address], (tls, plain), int(address.rpartition(":")[2]))
        with balancer.running():
            lies = {"X-Forwarded-For": "10.9.8.7", "X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "http"}
            seen = balancer.get("/", source="127.0.0.5", **lies).json()
            assert seen == {"client": "127.0.0.5", "host": balancer.url.removeprefix("https://"), "scheme": "https"}
            # While a certificate is renewed; all else moves to TLS.
            challenge = httpx.get(balancer.plain + "/.well-known/acme-challenge/word", timeout=10)
            assert challenge.status_code == 200
            assert httpx.get(balancer.plain + "/.well-known/acme", timeout=10).status_code == 308


def test_nginx_shows_a_certificate_that_certbot_has_renewed(tmp_path: Path) -> None:
    live, folder = tmp_path / "live", tmp_path / "balancer"
    live.mkdir()
    page = (DEPLOY.parent / "docs" / "operations.md").read_text()
    [links] = [block.text for block in blocks(page) if "/etc/nginx/samovar.crt" in block.text]
    with witness() as address:
        ports = free_ports(2)
        balancer = Nginx(folder, [address, address], (ports[0], ports[1]))
        (folder / "cert.pem").rename(live / "fullchain.pem")
        (folder / "key.pem").rename(live / "privkey.pem")
        for line in re.findall("^ln -s .*", links, re.MULTILINE):
            moved = line.replace("/etc/letsencrypt/live/samovar.example.org", str(live))
            moved = moved.replace("/etc/nginx/samovar.crt", str(folder / "cert.pem"))
            moved = moved.replace("/etc/nginx/samovar.key", str(folder / "key.pem"))
            assert "/etc/" not in moved
            subprocess.run(["sh", "-c", moved], check=True)
        with balancer.running():
            first = ssl.get_server_certificate(("127.0.0.1", ports[0]))
            for name in ("fullchain.pem", "privkey.pem"):
                (live / name).unlink()
            make_certificate(live / "fullchain.pem", live / "privkey.pem", address="127.0.0.1")
            assert ssl.get_server_certificate(("127.0.0.1", ports[0])) == first
            systemctl = tmp_path / "systemctl"  # which does what the real one has nginx do
            systemctl.write_text(
                f'#!/bin/sh\n[ "$*" = "try-reload-or-restart nginx" ] && kill -HUP $(cat {folder}/nginx.pid)\n'
            )
            systemctl.chmod(0o755)
            environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "RENEWED_LINEAGE": str(live)}
            subprocess.run(["sh", DEPLOY / "nginx" / "renewed.sh"], env=environment, check=True)
            for _ in range(500):
                shown = ssl.get_server_certificate(("127.0.0.1", ports[0]))
                if shown != first:
                    break
                time.sleep(0.02)
            assert shown.split() == (live / "fullchain.pem").read_text().split()
