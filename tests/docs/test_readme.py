"""Everything that the README says to type is typed, in a fresh clone; `readme.py` tells how blocks are marked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import ROOT
from tests.support.reader import Background, BlockFailedError, Reader
from tests.support.readme import Block, UnknownBlockError, blocks

README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """One reader for all of the README: later blocks live off earlier ones."""
    reader = Reader(tmp_path_factory.mktemp("reader"), README)
    yield reader
    reader.stop()


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("block", [block for block in blocks(README) if "skip" not in block.directives], ids=str)
def test_the_commands_of_the_readme_work(reader: Reader, block: Block) -> None:
    reader.do(block)


@pytest.mark.slow
def test_ctrl_c_ends_the_server_without_a_word_of_complaint(reader: Reader) -> None:
    output = reader.stop()
    assert output, "the README starts no server"
    assert "make: ***" not in output
    assert "Traceback" not in output


def test_every_block_of_the_readme_states_how_to_run_it() -> None:
    for block in blocks(README):
        block.check()


def only(markdown: str) -> Block:
    """The one block of a document."""
    (block,) = blocks(markdown)
    return block


def test_a_block_is_found_with_its_comments_and_its_line() -> None:
    block = only(
        'Say:\n\n<!-- test: stdin "Hi\\n/stats\\n" -->\n<!-- test: expect "tokens" -->\n```sh\nsamovar chat\n```\n'
    )
    assert (block.line, block.language, block.commands) == (5, "sh", ["samovar chat"])
    assert block.argument("stdin") == "Hi\n/stats\n"
    assert block.argument("expect") == "tokens"
    block.check()


def test_a_comment_holds_for_the_next_block_only() -> None:
    first, second = blocks("<!-- test: run -->\n```sh\nls\n```\n```sh\nls\n```")
    assert (first.directives, second.directives) == ({"run": ""}, {})
    assert only("<!-- test: run -->\nBut first some words.\n```sh\nls\n```").directives == {}


def test_of_a_console_block_what_follows_the_prompt_is_typed() -> None:
    block = only("```console\n$ curl \\\n>   http://127.0.0.1:8000/\nanswer\n$ make -n help\n```")
    assert block.commands == ["curl \\\n  http://127.0.0.1:8000/", "make -n help"]


def test_a_block_inside_a_list_loses_its_indent() -> None:
    assert only("- do\n  ```sh\n  cd /\n  make -n help\n  ```").commands == ["cd /", "make -n help"]


def test_a_server_stays_in_the_background_without_a_comment() -> None:
    assert only("```sh\ncd samovar\nmake serve PORT=9000\n```").is_background
    assert only("```sh\n.venv/bin/samovar serve --port 9000\n```").is_background
    assert not only("```sh\nmake serve -n; make -n test\ncurl http://127.0.0.1:8000/\n```").is_background


def test_blocks_to_look_at_are_left_alone() -> None:
    assert blocks("```json\n{}\n```\n```text\nsamovar> hello\n```\n```toml\nport = 1\n```") == []


@pytest.mark.parametrize(
    ("markdown", "complaint"),
    [
        ("```\nmake serve\n```", "name its language"),
        ("```shell\nmake serve\n```", "name its language"),
        ("```sh\nsudo apt-get install -y make\n```", "how to run sudo"),
        ("```sh\ncurl -s http://127.0.0.1:8000/ | jq .\n```", "how to run jq"),
        ("```sh\n.venv/bin/samovar chat\n```", "say what is typed"),
        ("```console\nonly output\n```", "no command"),
        ("```text\n$ samovar models list\n```", "commands in it that nobody runs"),
        ("<!-- test: skip -->\n```sh\nls\n```", "say why"),
        ("<!-- test: backgruond -->\n```sh\nls\n```", "no such comment"),
    ],
)
def test_a_block_with_unknown_programs_is_rejected(markdown: str, complaint: str) -> None:
    with pytest.raises(UnknownBlockError, match=complaint):
        only(markdown).check()


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Reader]:
    """A reader of a document that begins with a clone."""
    reader = Reader(tmp_path, "git clone https://example.org/samovar.git")
    yield reader
    reader.stop()


@pytest.mark.slow
def test_folder_and_variables_go_on_from_block_to_block(terminal: Reader) -> None:
    terminal.do(only("```sh\ngit clone https://example.org/samovar.git\ncd samovar\nexport DRINK='black tea'\n```"))
    terminal.do(
        only('<!-- test: run -->\n<!-- test: expect "black tea" -->\n```sh\ntest -f Makefile; echo $DRINK\n```')
    )
    terminal.do(only("```python\nimport os\nassert os.environ['DRINK'] == 'black tea'\n```"))


@pytest.mark.slow
def test_make_test_is_only_looked_up(terminal: Reader) -> None:
    terminal.do(only("```sh\ngit clone https://example.org/samovar.git && cd samovar\n```"))
    terminal.do(only('<!-- test: expect "-m tests" -->\n```sh\nmake test  # all of them\n```'))


@pytest.mark.slow
def test_what_is_typed_arrives_on_a_terminal(terminal: Reader) -> None:
    script = "while read -r line; do echo got $line; done; test -t 0 && test -t 1"
    marks = '<!-- test: run -->\n<!-- test: stdin "tea\\nsugar\\n" -->\n<!-- test: expect "got sugar" -->'
    terminal.do(only(f"{marks}\n```sh\necho ready; {script}\n```"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "markdown",
    [
        "```sh\nmake no-such-target\n```",
        "```python\nraise SystemExit(3)\n```",
        '<!-- test: expect "tea" -->\n```sh\nmake help\n```',
        "<!-- test: background -->\n```sh\nexport NOTHING=1\n```",
        '<!-- test: run -->\n<!-- test: stdin "x\\n" -->\n```sh\necho ready; read -r line; exit 4\n```',
    ],
)
def test_a_block_that_does_not_work_is_seen(terminal: Reader, markdown: str) -> None:
    terminal.do(only("```sh\ngit clone https://example.org/samovar.git && cd samovar\n```"))
    with pytest.raises(BlockFailedError):
        terminal.do(only(markdown))


@pytest.mark.slow
def test_what_does_not_leave_on_ctrl_c_is_ended_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.support.reader.LEAVE_SECONDS", 0.5)
    script = "trap '' INT; echo deaf; sleep 60 & wait"
    stubborn = Background(script, tmp_path, {"PATH": os.environ["PATH"]}, tmp_path / "log")
    stubborn.wait_until(lambda: "deaf" in stubborn.output(), "a sign of life")
    with pytest.raises(BlockFailedError, match="did not end"):
        stubborn.stop()
