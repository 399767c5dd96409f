"""The chat page's files: versions and caching."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from gateway.transport.web_files import WebFiles


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A page with one module."""
    (tmp_path / "index.html").write_text('<script src="static/app.js"></script>')
    (tmp_path / "app.js").write_text("one")
    return tmp_path


def client(folder: Path) -> TestClient:
    """Return a client of an application that serves `folder` as it is now."""
    files = WebFiles(folder)

    async def page(_: Request) -> Response:
        return files.page("index.html")

    return TestClient(Starlette(routes=[Route("/", page), Mount("/static", files)]))


def script(served: TestClient) -> str:
    """Return the path of the page's module."""
    return "/" + served.get("/").text.split('"')[1]


def test_a_page_is_revalidated_and_its_files_are_immutable(folder: Path) -> None:
    served = client(folder)
    assert served.get("/").headers["cache-control"] == "no-cache"
    found = served.get(script(served))
    assert (found.text, found.headers["cache-control"]) == ("one", "public, max-age=31536000, immutable")


def test_after_an_upgrade_the_page_refers_to_new_paths_and_old_ones_are_not_cached(folder: Path) -> None:
    before = script(client(folder))
    (folder / "app.js").write_text("two")
    served = client(folder)
    assert script(served) != before
    assert served.get(script(served)).text == "two"
    for path in (before, "/static/app.js"):
        found = served.get(path)
        assert (found.text, found.headers["cache-control"]) == ("two", "no-cache")


def test_a_version_is_no_way_out_of_the_folder(folder: Path) -> None:
    (folder.parent / "secret").write_text("secret")
    served = client(folder)
    version = script(served).split("/")[2]
    for path in (f"/static/{version}/%2e%2e/secret", f"/static/{version}/{version}/app.js", f"/static/{version}/"):
        assert served.get(path).status_code == 404
