"""The table in docs/clients.md lists the versions that the tests install."""

from __future__ import annotations

import json
import re

from tests.clients.conftest import CLIENTS
from tests.clients.table import rows

PINNED = re.compile(r"^([\w-]+)(?:\[\w+\])?==([\w.]+)$", re.MULTILINE)
NPM_HELPERS = {"ws", "zod"}
"""Packages that the clients need, and that are no clients."""
PROXY_PACKAGES = "# What litellm's proxy imports."
"""The pins after this line of requirements.txt are no clients either."""


def test_the_table_lists_the_versions_that_are_installed() -> None:
    python, npm = dict[str, str](), dict[str, str]()
    for script, row in rows().items():
        (npm if script.startswith("npm/") or "codex" in script else python).update(row.versions)
    texts = [path.read_text() for path in CLIENTS.glob("requirements*.txt")]
    requirements = "".join(text.partition(PROXY_PACKAGES)[0] for text in texts)
    assert python == dict(PINNED.findall(requirements))
    dependencies = json.loads((CLIENTS / "package.json").read_text())["dependencies"]
    assert npm == {name: version for name, version in dependencies.items() if name not in NPM_HELPERS}


def test_every_script_is_in_the_table() -> None:
    scripts = {
        path.relative_to(CLIENTS).as_posix() for path in [*CLIENTS.glob("python/*.py"), *CLIENTS.glob("npm/*.js")]
    }
    assert scripts <= set(rows())
