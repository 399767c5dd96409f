"""The files of the chat page: pages that are never out of date, and static files that browsers keep for good."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Final

from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

PREFIX: Final = "v-"
"""Start of the path segment that names a version: `/static/v-0123456789ab/app.js`."""
IMMUTABLE: Final = "public, max-age=31536000, immutable"
REVALIDATE: Final = "no-cache"
_DIGITS: Final = 12
"""Hexadecimal digits of a version."""
_VERSIONED: Final = re.compile(rf"^{PREFIX}([0-9a-f]{{{_DIGITS}}}){re.escape(os.sep)}")


class WebFiles(StaticFiles):
    """Static files under paths that contain a digest of all of them, and the HTML pages that refer to these paths.

    A page and the modules that it loads must come from one version. Therefore pages are revalidated at every visit, and
    refer to files by version. A file requested without a version, or by another one, is sent as it is now, for example
    to a page that was opened before an upgrade, and is not to be cached.
    """

    def __init__(self, folder: Path) -> None:
        """Serve the files of `folder`, as they are now."""
        super().__init__(directory=folder)
        self._folder = folder
        self.version = _digest(folder)

    def get_path(self, scope: Scope) -> str:
        """Return the path of the requested file below the folder, without the version."""
        return _VERSIONED.sub("", super().get_path(scope))

    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        """Return a file, or 304 if the client has it."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        requested = _VERSIONED.match(super().get_path(scope))
        current = requested is not None and requested[1] == self.version
        response.headers["Cache-Control"] = IMMUTABLE if current else REVALIDATE
        return response

    def page(self, name: str) -> Response:
        """Return an HTML page of the folder, with the current version in the paths of its files."""
        html = (self._folder / name).read_text().replace('"static/', f'"static/{PREFIX}{self.version}/')
        return HTMLResponse(html, headers={"Cache-Control": REVALIDATE})


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:_DIGITS]
