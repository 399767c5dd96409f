"""Fixtures that many tests share, and the order: fast tests first, the longest of the slow ones next."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio
from hypothesis import settings
from playwright.async_api import Browser, BrowserContext, Page, async_playwright, expect

from engine import Model, WorkerConfig
from engine.process import EngineProcess
from engine.stopwatch import Question
from engine.tuning import Watch
from tests import ROOT
from tests.support.browsing import CHROMIUM_ARGUMENTS, SOCKET, OpenPage, Play, Prepare
from tests.support.plans import MEASURED
from tests.support.running import Gateway
from tests.support.tiny_model import write_tiny_model

TIERS: Final = ("unit", "docs", "process", "browser", "ops", "clients")
"""The tiers in the order in which their fast tests run; slow ones run in the opposite order."""
NPM: Final = f"openai@{json.loads((ROOT / 'tests/clients/package.json').read_text())['dependencies']['openai']}"
"""The version that docs/clients.md lists; it asks for Node 22, and also runs on Node 20 of Debian and Ubuntu."""


settings.register_profile("samovar", deadline=None, derandomize=True)  # each run tries the same examples
settings.register_profile("search", deadline=None)  # `pytest --hypothesis-profile=search` tries others
settings.load_profile("samovar")
expect.set_options(timeout=30_000)  # a busy machine shows some changes only after the 5 s that are the default


def pytest_configure() -> None:
    """Handle SIGINT here and in children: a shell starts background processes with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Where only serial tests run, leave out the files that have none: importing all of them takes many seconds."""
    only_serial = config.option.markexpr.split(" and ")[-1] == "serial"
    test = collection_path.suffix == ".py" and collection_path.name.startswith("test_")
    return True if only_serial and test and "mark.serial" not in collection_path.read_text() else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its tier, and sort the tests.

    Fast ones come first, unit tests before all others, so that a mistake shows in seconds. Of the slow ones, those of
    the clients come first: a file of minutes at the end would leave the other workers idle.
    """
    for item in items:
        item.add_marker(tier(item))
    items.sort(key=place)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    """Limit the time of the fixtures."""
    with time_limit(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """Limit the time of the fixtures' ends."""
    with time_limit(item):
        return (yield)


@contextmanager
def time_limit(item: pytest.Item) -> Iterator[None]:
    """Fail after the time limit of a test.

    pytest-timeout limits the test alone (`timeout_func_only`). Otherwise its timer runs on while pytest reports a
    failure, and an exception that is raised there is an internal error, which ends the whole run.
    """
    marker = item.get_closest_marker("timeout")
    seconds = float(marker.args[0] if marker else item.config.getini("timeout"))

    def expire(*_: object) -> None:
        pytest.fail(f"the fixtures took longer than {seconds:g} s")

    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def place(item: pytest.Item) -> tuple[bool, int]:
    """Return the sort key of a test."""
    slow, order = item.get_closest_marker("slow") is not None, TIERS.index(tier(item))
    return slow, -order if slow else order


def tier(item: pytest.Item) -> str:
    """Return the tier of a test: the name of its folder."""
    return item.path.parent.name


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random-weight model that real llama.cpp runs in milliseconds."""
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture
def killed_stopwatch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that measure are gone when they are asked for the first time."""
    ask = Watch.ask

    def killed(watch: Watch, question: Question) -> None:
        os.kill(watch.pid, signal.SIGKILL)
        os.waitid(os.P_PID, watch.pid, os.WEXITED | os.WNOWAIT)
        ask(watch, question)

    monkeypatch.setattr(Watch, "ask", killed)


@pytest.fixture(scope="session")
def npm_openai(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the npm package is installed; it stays empty on a machine without npm."""
    folder = tmp_path_factory.mktemp("npm")
    (folder / "package.json").write_text('{"type": "module", "private": true}')
    if shutil.which("npm"):
        subprocess.run(["npm", "install", "--no-audit", "--no-fund", NPM], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, built without a network of a clean copy of the sources."""
    folder = tmp_path_factory.mktemp("package")
    for name in ("cache", "engine", "gateway"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", folder, folder], check=True, capture_output=True)
    [built] = folder.glob("samovar-*.whl")
    return built


@pytest.fixture(scope="session")
def model(tiny_model: Path) -> Model:
    """The tiny model, loaded in this process."""
    return Model(tiny_model)


@pytest.fixture
async def engine(tiny_model: Path) -> AsyncIterator[EngineProcess]:
    """A running engine process with the tiny model and one thread."""
    process = EngineProcess("0", WorkerConfig(str(tiny_model), 2048, 8, MEASURED), on_change=lambda _: None)
    await process.start()
    process.set_threads(1)
    yield process
    await process.stop()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway process with the embedded model, shared by all tests, which must be marked `slow`."""
    with Gateway(tmp_path_factory.mktemp("embedded"), max_output_tokens=256, titles=False) as gateway:
        yield gateway


@pytest.fixture
def tiny_server(tmp_path: Path, tiny_model: Path) -> Iterator[Gateway]:
    """A gateway with the tiny model for one test, which may stop it; `shared_server` costs less."""
    with Gateway(tmp_path, model=tiny_model, context=512) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Gateway]:
    """A gateway with the tiny model for all tests of a file that neither stop it nor count its totals."""
    with Gateway(tmp_path_factory.mktemp("shared"), model=tiny_model, context=512) as gateway:
        yield gateway


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    """One Chromium for all tests of a file."""
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM_ARGUMENTS)
        yield chromium
        await chromium.close()


@pytest_asyncio.fixture(loop_scope="module")
async def open_page(browser: Browser, server: Gateway) -> AsyncIterator[OpenPage]:
    """Opens the page in a fresh browser context; whatever a test does there, the console must stay free of errors."""
    complaints: list[str] = []
    contexts: list[BrowserContext] = []

    async def opened(
        play: Play | None = None,
        locale: str = "en-US",
        url: str = server.url,
        before: Prepare | None = None,
        **context: Any,
    ) -> Page:
        contexts.append(await browser.new_context(locale=locale, **context))
        page = await contexts[-1].new_page()
        if before is not None:
            await before(page)
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        if play is not None:
            await page.route_web_socket(SOCKET, play)
        response = await page.goto(url)
        assert response is not None
        assert "default-src 'self'" in response.headers["content-security-policy"]
        await expect(page.get_by_test_id("status")).to_have_attribute("data-state", "open")
        return page

    yield opened
    for context in contexts:
        await context.close()
    assert complaints == []
