"""The pages for engineers name only packages, levels and files that exist."""

from __future__ import annotations

import re

import pytest

from tests import ROOT
from tests.unit.test_project import LEVELS

PAGES = ["api", "architecture", "scheduling", "kv-cache", "failover", "glossary"]
FOLDERS = ("gateway", "engine", "cache", "tests", "deploy")


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_exists(page: str) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text()
    named = re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]*)`", text)
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_table_of_packages_has_the_levels_that_imports_obey() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    documented = {package: int(level) for level, package in re.findall(r"^\| (\d) \| `(\w+)` \|", text, re.MULTILINE)}
    assert documented == LEVELS


def test_every_term_of_the_glossary_has_its_chinese_term_and_a_meaning() -> None:
    lines = (ROOT / "docs" / "glossary.md").read_text().splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ") and not line.startswith("| term ")]
    assert len(rows) > 80
    assert [row for row in rows if len(row) != 3 or not re.search(r"[\u4e00-\u9fff]", row[1])] == []
    terms = [row[0] for row in rows]
    assert len(set(terms)) == len(terms)
