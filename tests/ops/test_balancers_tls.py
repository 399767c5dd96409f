"""The balancers of `deploy/` speak TLS 1.2 and newer, whatever the machine's OpenSSL would speak."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.support.balancers import BALANCERS, Balancer, HAProxy, Nginx, free_ports

ANYTHING = """\
openssl_conf = all
[all]
ssl_conf = ssl
[ssl]
system_default = anything
[anything]
MinProtocol = TLSv1
CipherString = ALL:@SECLEVEL=0
"""
"""An openssl.cnf under which a balancer's own configuration alone refuses the old versions."""
OLDEST = {HAProxy: ("ssl-min-ver TLSv1.2", "ssl-min-ver TLSv1.0"), Nginx: ("TLSv1.2 TLSv1.3", "TLSv1 TLSv1.1 TLSv1.2")}
"""What the shipped files say, and what would let the old versions in."""


class Ready(BaseHTTPRequestHandler):
    """As much of a gateway as a balancer asks for."""

    def do_GET(self) -> None:
        """Ready."""
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def ready() -> Iterator[str]:
    """Its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Ready) as server:
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def speaks(port: int, newest: ssl.TLSVersion) -> str:
    """The version that is agreed on with a client that speaks no newer one, or why there is none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, newest
    try:
        with socket.create_connection(("127.0.0.1", port)) as wire, context.wrap_socket(wire) as client:
            return client.version() or ""
    except ssl.SSLError as error:
        return error.reason


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@BALANCERS
def test_the_balancers_speak_no_tls_older_than_1_2(
    tmp_path: Path, ready: str, monkeypatch: pytest.MonkeyPatch, kind: type[Balancer]
) -> None:
    (tmp_path / "openssl.cnf").write_text(ANYTHING)
    monkeypatch.setenv("OPENSSL_CONF", str(tmp_path / "openssl.cnf"))
    versions = (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
    tls, plain = free_ports(2)
    balancer = kind(tmp_path / "balancer", [ready, ready], (tls, plain))
    with balancer.running():
        found = [speaks(tls, newest) for newest in versions]
    assert found == ["TLSV1_ALERT_PROTOCOL_VERSION"] * 2 + ["TLSv1.2", "TLSv1.3"]

    shipped, old = OLDEST[kind]  # so that the refusal is known to come from this
    balancer.config.write_text(balancer.config.read_text().replace(shipped, old))
    with balancer.running():
        assert speaks(tls, ssl.TLSVersion.TLSv1_1) == "TLSv1.1"
