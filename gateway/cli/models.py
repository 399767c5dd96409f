"""`samovar models list|pull|path|quantize`: list, download, locate and quantize models"""

from __future__ import annotations

import difflib
import sys
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from engine import model_size
from gateway.cli import CommandError
from gateway.cli.arguments import Parser
from gateway.cli.language import Phrases, is_chinese
from gateway.config.settings import Settings
from gateway.models.catalogue import CATALOGUE, EMBEDDED, ModelNotAvailableError, Published, find
from gateway.models.library import Library

SETTINGS: Final = ("cores",)
TEXTS: Final = {
    "name": ("name", "名称"),
    "file": ("file", "文件"),
    "size": ("size", "大小"),
    "licence": ("licence", "许可证"),
    "languages": ("languages", "语言"),
    "here": ("here", "本机"),
    "yes": ("yes", "有"),
    "embedded": ("embedded", "内置"),
    "sha256": ("sha256", "sha256"),
    "more": ("{first} + {count}", "{first} + {count}"),
    "get": ("Download one: samovar models pull NAME", "下载：samovar models pull 名称"),
    "pulling": ("downloading", "下载"),
    "verifying": ("verifying", "校验"),
    "pulled": (
        "{name} is downloaded and verified: {path}\nServe it: samovar serve --model {name}, or make serve MODEL={name}",
        "{name} 已下载并校验：{path}\n启动：samovar serve --model {name}，或 make serve MODEL={name}",
    ),
    "comes_along": ("{name} is embedded in Samovar: nothing to download", "{name} 随 Samovar 安装，无需下载"),
    "stopped": ("stopped; run the same command again to resume", "已停止；再次运行同一命令即可继续"),
    "unknown": (
        "no model is named {name}{near}; see: samovar models list",
        "没有名为 {name} 的模型{near}；请看：samovar models list",
    ),
    "near": (" (did you mean {name}?)", "（是否指 {name}？）"),
}
FULL_WIDTH: Final = 240
"""Width in columns of a table written to a file or a pipe, where nothing is truncated."""
FILE_WIDTH: Final = 120
"""Terminal width in columns from which file names are shown; they are similar to the model names."""


def arguments(parser: Parser) -> None:
    """Declare the actions."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="list the catalogue and the models on this machine")
    listing.add_argument("--json", action="store_true", help="print JSON with all fields")
    pull = actions.add_parser("pull", help="download and verify a model; resumes an interrupted download")
    pull.add_argument("name", metavar="NAME", help="a name from the catalogue")
    pull.add_argument("--endpoint", metavar="URL", help="a mirror of huggingface.co; also read from HF_ENDPOINT")
    quantize = actions.add_parser(
        "quantize", help="make a model smaller and faster, and measure the gain on this machine"
    )
    quantize.add_argument("source", metavar="SRC", help="a name that --model accepts, or the path of a GGUF file")
    kinds = "q4_0 and iq4_nl have the fastest prefill; q4_k_m, q5_k_m, q8_0, … are more precise"
    quantize.add_argument("--type", required=True, metavar="TYPE", type=str.lower, help=kinds)
    quantize.add_argument("--output", type=Path, metavar="FILE", help="output file; default: next to SRC")
    quantize.add_argument("--no-measure", action="store_true", help="skip the measurement, which takes a while")
    quantize.add_argument("--force", action="store_true", help="replace an existing file")
    path = actions.add_parser("path", help="print the path of a model's file")
    path.add_argument("name", metavar="NAME", help="a name that --model accepts")


def run(settings: Settings, options: Namespace) -> int:
    """Run the action. Raises CommandError."""
    say = Phrases(TEXTS, chinese=is_chinese())
    match options.action:
        case "list":
            _list(say, as_json=options.json)
        case "pull":
            _pull(say, options.name, options.endpoint)
        case "quantize":
            from gateway.cli import quantizing

            quantizing.make(Phrases(quantizing.TEXTS, chinese=say.chinese), settings, options)
        case "path":
            try:
                print(find(options.name).path)
            except ModelNotAvailableError as error:
                raise CommandError(str(error).removeprefix("model: ")) from error
    return 0


@dataclass(frozen=True)
class Row:
    """A model in the catalogue or on this machine."""

    name: str
    repository: str
    file: str
    size: int | None
    sha256: str | None
    licence: str
    languages: tuple[str, ...]
    here: bool


def rows(library: Library) -> list[Row]:
    """Return the models of the catalogue, then the user's own files in the library."""
    published = [_row(entry, library) for entry in CATALOGUE.values()]
    known = {entry.file for entry in CATALOGUE.values()}
    return published + [
        Row(path.stem, "", path.name, _size(path), None, "", (), here=True)
        for path in library.files()
        if path.name not in known
    ]


def _size(path: Path) -> int | None:
    """Return the size of a model in bytes, with all its shards; None if a shard is missing."""
    try:
        return model_size(path)
    except OSError:
        return None


def _row(published: Published, library: Library) -> Row:
    record = library.record(published.file)
    size, sha256 = (published.size, published.sha256) if record is None else (record.size, record.sha256)
    try:
        size, here = find(published.name, library).path.stat().st_size, True
    except (ModelNotAvailableError, OSError):
        here = False
    return Row(
        name=published.name,
        repository=published.repository,
        file=published.file,
        size=size,
        sha256=sha256,
        licence=published.licence,
        languages=published.languages,
        here=here,
    )


def _list(say: Phrases, *, as_json: bool) -> None:
    found = rows(Library())
    if as_json:
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
        return
    whole = not sys.stdout.isatty()
    console = Console(highlight=False, width=FULL_WIDTH if whole else None)
    table = Table(box=None, header_style="bold", pad_edge=False)
    columns = ["name", "file", "size", "licence", "languages", "here", "sha256"]
    if console.width < FILE_WIDTH:
        columns.remove("file")
    for column in columns:
        table.add_column(say(column), no_wrap=True, justify="right" if column == "size" else "left")
    for row in found:
        cells = _cells(say, row, whole=whole)
        table.add_row(*(cells[column] for column in columns))
    console.print(table)
    if not whole and not all(row.here for row in found):
        console.print(say("get"), style="dim")


def _cells(say: Phrases, row: Row, *, whole: bool) -> dict[str, str]:
    languages, sha256 = " ".join(row.languages), row.sha256 or "–"
    if not whole:
        sha256 = f"{sha256[:8]}…" if row.sha256 else sha256
        if len(row.languages) > 3:
            languages = say("more", first=" ".join(row.languages[:2]), count=len(row.languages) - 2)
    return {
        "name": row.name,
        "file": row.file,
        "size": f"{row.size / 1e6:.0f} MB" if row.size else "–",
        "licence": row.licence,
        "languages": languages,
        "here": say("embedded" if row.name == EMBEDDED else "yes") if row.here else "",
        "sha256": sha256,
    }


def _pull(say: Phrases, name: str, endpoint: str | None) -> None:
    published = CATALOGUE.get(name)
    if published is None:
        near = difflib.get_close_matches(name, CATALOGUE, 1)
        raise CommandError(say("unknown", name=name, near=say("near", name=near[0]) if near else ""))
    if not published.repository:
        print(say("comes_along", name=name))
        return
    from gateway.models.hub import PullError, pull

    library = Library()
    console = Console(stderr=True)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(
        TextColumn("{task.description}"), *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        bars = [progress.add_task(say(text), visible=False) for text in ("pulling", "verifying")]

        def report(done: int, total: int, *, verifying: bool) -> None:
            progress.update(bars[verifying], completed=done, total=total, visible=True)

        try:
            pull(published, library, endpoint=endpoint, progress=report)
        except PullError as error:
            raise CommandError(str(error)) from error
        except KeyboardInterrupt as error:
            raise CommandError(say("stopped")) from error
    print(say("pulled", name=name, path=library.path(published.file)))
