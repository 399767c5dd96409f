"""`deploy/audit.sh` against an OSV on loopback: what it asks, and what it makes of each kind of answer.

That the real database can't be reached is in `test_security.py`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT
from tests.support.running import CHILD_ENVIRONMENT

PINS = "first==1.0\nsecond==2.0\n"


class Osv(ThreadingHTTPServer):
    """Answers as api.osv.dev does: nothing is known of any package but those that are `weak`."""

    def __init__(self) -> None:
        """Listen on a free port."""
        self.weak: set[str] = set()
        self.status = 200
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), Answer)


class Answer(BaseHTTPRequestHandler):
    """To one question."""

    server: Osv

    def do_POST(self) -> None:
        """`{}` is OSV's word for nothing known."""
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        package = question["package"]
        self.server.asked.append(f"{package['name']}=={question['version']}")
        known: dict[str, Any] = {}
        if package["name"] in self.server.weak:
            mended = {"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "9.9"}]}
            known["vulns"] = [{"id": "PYSEC-1", "affected": [{"package": package, "ranges": [mended]}]}]
        body = json.dumps(known).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing on stderr."""


@pytest.fixture
def osv() -> Iterator[Osv]:
    """It listens."""
    with Osv() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def audit(folder: Path, osv: Osv, pins: str) -> subprocess.CompletedProcess[str]:
    """Run the script in a checkout that has these pins, with this installation as its own."""
    (folder / "deploy").mkdir()
    shutil.copy(ROOT / "deploy" / "audit.sh", folder / "deploy")
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / "constraints.txt").write_text(pins)
    here = {"PIP_AUDIT_OSV_URL": f"http://127.0.0.1:{osv.server_port}/v1/query", "no_proxy": "127.0.0.1"}
    environment = {**CHILD_ENVIRONMENT, **here}
    command = ["sh", str(folder / "deploy" / "audit.sh")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_an_audit_asks_about_every_pinned_version_and_is_clean_when_nothing_is_known(tmp_path: Path, osv: Osv) -> None:
    pins = (ROOT / "constraints.txt").read_text()
    done = audit(tmp_path, osv, pins)
    assert "No known vulnerabilities found" in done.stdout
    assert (done.returncode, done.stderr) == (0, "")
    assert len(osv.asked) == sum("==" in line for line in pins.splitlines())


def test_an_audit_names_the_package_that_something_is_known_of_and_fails(tmp_path: Path, osv: Osv) -> None:
    osv.weak = {"second"}
    done = audit(tmp_path, osv, PINS)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].split() == ["second", "2.0", "PYSEC-1", "9.9"]
    assert osv.asked == PINS.split()


def test_an_audit_whose_database_is_out_of_order_is_not_clean(tmp_path: Path, osv: Osv) -> None:
    osv.status = 503
    done = audit(tmp_path, osv, PINS)
    assert done.returncode == 1
    assert done.stderr.startswith("Nothing was audited: ")
    assert done.stdout == ""
