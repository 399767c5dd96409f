"""What docs/ and README.zh.md say is so: their blocks are typed, their links lead somewhere, their commands exist."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from gateway.cli import commands
from gateway.cli.doctor.messages import TEXTS
from gateway.errors import ApiError
from tests import ROOT
from tests.support.reader import Reader, snapshot
from tests.support.readme import CHATS, Block, blocks

README, CHINESE = ROOT / "README.md", ROOT / "README.zh.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [README, CHINESE, ROOT / "CONTRIBUTING.md", *PAGES]
SERVER = Block(0, "sh", ".venv/bin/samovar serve --port 8000", {})
FENCED = re.compile(r"^ *(```+|~~~+).*?^ *\1", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)


def runs(page: Path) -> list[Block]:
    """The blocks of a page that are run."""
    return [block for block in blocks(page.read_text()) if "skip" not in block.directives]


def name(path: Path) -> str:
    """As it is called in a test's name."""
    return path.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def open_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], Reader]]:
    """A reader of a page, with a state folder of its own, and a server where the page speaks with one."""
    source = snapshot(tmp_path_factory.mktemp("docs") / "source")
    readers: dict[Path, Reader] = {}

    def opened(page: Path) -> Reader:
        if page not in readers:
            for reader in readers.values():
                reader.stop()
            readers[page] = Reader(tmp_path_factory.mktemp(page.stem), page.read_text(), source)
            if needs_server(runs(page)):
                readers[page].do(SERVER)
        return readers[page]

    yield opened
    for reader in readers.values():
        reader.stop()


def needs_server(page: list[Block]) -> bool:
    """Whether one must run: the page speaks with it, and starts none itself."""
    speaks = any(":8000" in block.text or CHATS.search(block.text) for block in page)
    return speaks and not any(block.is_background for block in page)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "block"), [pytest.param(page, block, id=f"{name(page)} {block}") for page in PAGES for block in runs(page)]
)
def test_the_commands_of_the_docs_work(open_page: Callable[[Path], Reader], page: Path, block: Block) -> None:
    open_page(page).do(block)


@pytest.mark.parametrize("page", DOCUMENTS, ids=name)
def test_every_block_of_the_docs_states_how_to_run_it(page: Path) -> None:
    for block in blocks(page.read_text()):
        block.check()


def test_the_chinese_readme_has_the_same_blocks_which_are_tried_with_the_english_one() -> None:
    assert blocks(CHINESE.read_text()) and [
        (block.language, block.text, block.directives) for block in blocks(CHINESE.read_text())
    ] == [(block.language, block.text, block.directives) for block in blocks(README.read_text())]


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = HEADING.findall(FENCED.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", DOCUMENTS, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in LINK.findall(FENCED.sub("", page.read_text())):
        path = page.parent / target if target else page
        assert path.exists(), f"{target} is not there"
        assert not anchor or anchor in anchors(path), f"{target or page.name} has no #{anchor}"


@pytest.mark.parametrize("page", DOCUMENTS, ids=name)
def test_every_command_that_is_named_in_a_sentence_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for code in INLINE.findall(FENCED.sub("", page.read_text())):
        for command in re.findall(r"^(?:\.venv/bin/)?samovar ([a-z]+)", code):
            assert command in commands(), code
        for target in re.findall(r"^make ([a-z]+)", code):
            assert target in targets, code
        for benchmark in re.findall(r"\bBENCH=([a-z]+)", code):
            assert benchmark == "name" or find_spec(f"benchmarks.{benchmark}"), code


def test_every_error_code_is_explained_where_people_look_for_it() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    codes = {ApiError.code, *(error.code for error in ApiError.__subclasses__())}
    assert codes - set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == set()


def test_the_failures_page_quotes_events_and_alerts_that_there_are() -> None:
    page = (ROOT / "docs" / "failures.md").read_text()
    code = "".join(path.read_text() for room in ("cache", "engine", "gateway") for path in (ROOT / room).rglob("*.py"))
    rules = (ROOT / "grafana" / "rules" / "samovar.yml").read_text()
    events = set(re.findall(r'"event": "([^"]+)"', page))
    alerts = set(re.findall(r"`(Samovar[A-Z]\w+)`", page))
    assert len(events) > 4
    assert len(alerts) > 4
    assert [event for event in events if f'"{event}"' not in code] == []
    assert [alert for alert in alerts if f"alert: {alert}\n" not in rules] == []


def test_every_finding_of_the_doctor_is_explained() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    sources = "".join(path.read_text() for path in (ROOT / "gateway" / "cli" / "doctor").glob("*.py"))
    found = re.findall(r'_bad\(\s*Mark\.\w+, "\w+", "(\w+)"', sources)
    assert len(found) > 15
    quotes = [quoted for quoted in INLINE.findall(page) if len(quoted) > 3]
    for text in found:
        # What stands between its fields: the page quotes a part of it.
        said = [part.strip() for part in re.split(r"\{\w+\}", TEXTS[text][0])]
        assert not any(said) or any(quoted in part for quoted in quotes for part in said), text
