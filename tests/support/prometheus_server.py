"""A real Prometheus for one test, and promtool."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import httpx
import yaml

from gateway.cli.launcher import free_port


def promtool(*arguments: str, text: str = "") -> str:
    """What promtool complains about; empty when it finds nothing wrong."""
    found = shutil.which("promtool")
    assert found, "promtool is missing: make test installs it, with prometheus"
    run = subprocess.run([found, *arguments], input=text, capture_output=True, text=True, check=False)
    return "" if run.returncode == 0 else run.stdout + run.stderr or f"exit code {run.returncode}"


class PrometheusServer:
    """Debian's prometheus on a free port of loopback, which scrapes gateways as the job `samovar`."""

    def __init__(
        self,
        folder: Path,
        targets: Sequence[str],
        rules: Sequence[Path] = (),
        *,
        interval: str = "1s",
        instance: str | None = None,
    ) -> None:
        """Store data in `folder`; `targets` are addresses with a port, labelled `instance` where that is given."""
        static: dict[str, Any] = {"targets": list(targets)}
        if instance is not None:
            static["labels"] = {"instance": instance}
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._address = f"127.0.0.1:{free_port()}"
        self._configuration = {
            "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
            "rule_files": [str(path) for path in rules],
            "scrape_configs": [{"job_name": "samovar", "static_configs": [static]}],
        }

    def start(self) -> Self:
        """Start it and wait until it is ready."""
        found = shutil.which("prometheus")
        assert found, "prometheus is missing: make test installs it"
        self._folder.mkdir(parents=True, exist_ok=True)
        configuration = self._folder / "prometheus.yml"
        configuration.write_text(yaml.safe_dump(self._configuration))
        command = [found, f"--config.file={configuration}", f"--web.listen-address={self._address}"]
        command += [f"--storage.tsdb.path={self._folder / 'data'}", "--log.level=warn"]
        with (self._folder / "log").open("w") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        until = time.monotonic() + 30
        while not self._is_ready():
            assert self._process.poll() is None, (self._folder / "log").read_text()
            assert time.monotonic() < until, "prometheus did not start"
            time.sleep(0.05)
        return self

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(timeout=20)
            self._process = None

    def __enter__(self) -> Self:
        """Start."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of an expression now: label sets under `metric`, and `value` as (time, text)."""
        result: list[dict[str, Any]] = self._get("query", query=expression)["result"]
        return result

    def range(self, expression: str, *, seconds: float, step: float = 1.0) -> list[dict[str, Any]]:
        """The series of an expression over the last seconds: label sets under `metric`, and `values`."""
        now = time.time()
        found = self._get("query_range", query=expression, start=now - seconds, end=now, step=step)
        series: list[dict[str, Any]] = found["result"]
        return series

    def rules(self) -> list[dict[str, Any]]:
        """All rules, as they were last evaluated."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def _get(self, what: str, **parameters: Any) -> dict[str, Any]:
        answer = httpx.get(f"http://{self._address}/api/v1/{what}", params=parameters, timeout=30).json()
        assert answer["status"] == "success", (parameters, answer)
        data: dict[str, Any] = answer["data"]
        return data

    def _is_ready(self) -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(f"http://{self._address}/-/ready", timeout=5).status_code == httpx.codes.OK
        return False
