"""`samovar models quantize`'s work: a GGUF in another precision, and what that gains on this processor, measured."""

from __future__ import annotations

import shutil
import sys
from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from engine import (
    QUANTIZATIONS,
    Drift,
    EngineError,
    Model,
    QuantizeError,
    Rate,
    bits,
    compare,
    drift,
    model_size,
    quantize,
)
from gateway.cli import CommandError
from gateway.cli.language import Phrases
from gateway.config.settings import Settings, SettingsError
from gateway.models.catalogue import Entry, ModelNotAvailableError, find
from gateway.models.inspection import describe
from gateway.models.library import Library
from gateway.prompts.chat_template import TemplateError

TEXTS: Final = {
    "quantizing": ("quantizing", "量化"),
    "measuring": ("measuring both", "测速"),
    "file": ("file", "文件"),
    "size": ("size", "大小"),
    "prefill": ("prompt tokens/s", "读入 token/秒"),
    "decode": ("answer tokens/s", "生成 token/秒"),
    "how": (
        "{threads} threads, median of {rounds} rounds in turns (lowest – highest)",
        "{threads} 个线程，交替 {rounds} 轮的中位数（最低 – 最高）",
    ),
    "exists": (
        "{path} is there already; name another with --output, or replace it with --force",
        "{path} 已存在；用 --output 换一个文件名，或用 --force 覆盖",
    ),
    "same": (
        "{path} is the source itself; name another with --output",
        "{path} 就是源文件；请用 --output 换一个文件名",
    ),
    "again": (
        "warning: {name} is quantized already ({bits} bits a weight); again loses more: begin with F16 where you can",
        "注意：{name} 已经量化过（每个权重 {bits} 位），再次量化会进一步降低质量；如有 F16 文件，请从它开始",
    ),
    "unknown": (
        "warning: {name} does not say how many bits a weight it has; if it is quantized already, again loses more",
        "注意：{name} 没有注明每个权重的位数；如果它已经量化过，再次量化会进一步降低质量",
    ),
    "up": (
        "warning: {kind} has more bits a weight than {name}: the file grows, and nothing gets better",
        "注意：{kind} 的位数高于 {name}：文件变大，质量不会提高",
    ),
    "coarse": (
        "warning: below 4 bits a weight, small models answer noticeably worse",
        "注意：低于 4 位时，小模型的回答质量会明显下降",
    ),
    "fine": (
        "warning: below 5 bits a weight, small models answer somewhat worse; how much is measured at the end",
        "注意：低于 5 位时，小模型的回答质量会有所下降；降低多少见最后的实测",
    ),
    "same_token": (
        "same likeliest token as before: {shares}; KL divergence, nats a token: {divergences}",
        "首选 token 与原文件相同：{shares}；KL 散度（nat/token）：{divergences}",
    ),
    "share": ("{share:.0%} of {tokens} {language}", "{language} {tokens} 个中的 {share:.0%}"),
    "en": ("English", "英文"),
    "zh": ("Chinese", "中文"),
    "moved": (
        "warning: answers moved far ({worst}: over {bound} nats a token); take a finer --type, or begin with F16",
        "注意：回答偏离较大（{worst}：超过每 token {bound} nat）；更高位数的 --type，或从 F16 开始，会更接近原模型",
    ),
    "fallback": (
        "rows that are no multiple of 256 do not fit every kind; of such tensors became: {others}",
        "行长不是 256 的整数倍时，并非每种类型都适用；这些张量改为：{others}",
    ),
    "full": (
        "{path}: the disk is full; make room, or name another folder with --output",
        "{path}：磁盘已满；请清理磁盘，或用 --output 换一个目录",
    ),
    "made": ("{path}: {after} (before: {before})", "{path}：{after}（原为 {before}）"),
    "serve": ("Serve it: samovar serve --model {model}", "启动：samovar serve --model {model}"),
}
WIDE: Final = 240
"""Columns of a table that goes into a file or a pipe."""
ROUNDS: Final = 5
ROOM: Final = 16 << 20
"""Bytes free on a disk below which a write that failed is taken for a full disk."""
NEARLY_WHOLE: Final = 8
"""Bits a weight from which a file is as good to begin with as F16."""
FAR: Final = 0.1
"""Nats a token from which an answer is another one. Of an 8B model, q8_0 measures 0.001, q4_k_m 0.03, q4_0 0.07 and
q3_k_m 0.10 (llama.cpp's tools/perplexity/README.md)."""


def make(say: Phrases, settings: Settings, options: Namespace) -> None:
    """Quantize as asked. Raises CommandError."""
    kind: str = options.type
    if kind not in QUANTIZATIONS:
        raise SettingsError(f"--type: {kind} is none of {', '.join(QUANTIZATIONS)}")
    entry = _source(options.source)
    target = _target(say, entry, kind, options.output, force=options.force)
    console = Console(stderr=True, highlight=False)
    for warning in _warnings(say, entry, kind):
        console.print(warning, style="yellow", markup=False, soft_wrap=True)
    fallbacks = _quantize(say, console, entry, target, kind, settings.cores)
    print(say("made", path=target, before=_size(entry.path), after=_size(target)))
    if fallbacks:
        print(say("fallback", others=", ".join(f"{other} × {count}" for other, count in fallbacks.most_common())))
    if not options.no_measure:
        _measure(say, console, entry.path, target, settings.cores)
    print(say("serve", model=target.stem if Library().own(target.stem) == target else target))


def _source(source: str) -> Entry:
    try:
        entry = find(source)
        if not entry.trusted:
            describe(entry.path)
    except (ModelNotAvailableError, TemplateError, EngineError, OSError) as error:
        raise CommandError(str(error)) from error
    return entry


def _target(say: Phrases, entry: Entry, kind: str, output: Path | None, *, force: bool) -> Path:
    folder = Library().folder if entry.trusted else entry.path.parent
    target = (output or folder / f"{entry.name}.{kind}.gguf").absolute()
    if target.exists():
        if target.samefile(entry.path):
            raise CommandError(say("same", path=target))
        if not force:
            raise CommandError(say("exists", path=target))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"{target.parent}: {error.strerror}") from error
    return target


def _warnings(say: Phrases, entry: Entry, kind: str) -> list[str]:
    model = Model(entry.path, vocab_only=True)
    before, after = bits(model.metadata("general.file_type")), QUANTIZATIONS[kind].bits
    model.close()
    if before is not None and after > before:
        return [say("up", kind=kind, name=entry.name)]
    warnings = []
    if before is None:
        warnings.append(say("unknown", name=entry.name))
    elif before < NEARLY_WHOLE:
        warnings.append(say("again", name=entry.name, bits=before))
    if after < 5:
        warnings.append(say("coarse" if after < 4 else "fine"))
    return warnings


def _quantize(say: Phrases, console: Console, entry: Entry, target: Path, kind: str, threads: int) -> Counter[str]:
    part = target.with_name(f".{target.name}.part")
    with _progress(console) as progress:
        bar = progress.add_task(say("quantizing"), total=None)
        try:
            fallbacks = quantize(
                entry.path, part, kind, threads=threads,
                progress=lambda number, total: progress.update(bar, completed=number, total=total),
            )  # fmt: skip
        except QuantizeError as error:
            if shutil.disk_usage(target.parent).free < ROOM:
                raise CommandError(say("full", path=target.parent)) from error
            raise CommandError(str(error)) from error
    part.replace(target)
    return fallbacks


def _measure(say: Phrases, console: Console, before: Path, after: Path, threads: int) -> None:
    """Print what was gained. Raises CommandError."""
    with _progress(console) as progress:
        bar = progress.add_task(say("measuring"), total=None)
        try:
            old, new = compare(
                [before, after], threads=threads, rounds=ROUNDS,
                progress=lambda done, total: progress.update(bar, completed=done, total=total),
            )  # fmt: skip
            drifts = drift(before, after, threads=threads)
        except EngineError as error:
            raise CommandError(str(error)) from error
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("file", "size", "prefill", "decode"):
        table.add_column(say(column), justify="left" if column == "file" else "right", no_wrap=True)
    for path, pace in ((before, old), (after, new)):
        table.add_row(path.name, _size(path), _rate(pace.prefill), _rate(pace.decode))
    gains = (
        model_size(after) / model_size(before),
        new.prefill.median / old.prefill.median,
        new.decode.median / old.decode.median,
    )
    table.add_row("", *(f"× {gain:.2f}" for gain in gains), style="bold")
    Console(highlight=False, width=None if sys.stdout.isatty() else WIDE).print(table)
    print(say("how", rounds=ROUNDS, threads=threads))
    _tell_quality(say, console, drifts)


def _tell_quality(say: Phrases, console: Console, drifts: list[Drift]) -> None:
    """Print what was lost."""
    shares = [say("share", share=each.same, tokens=each.tokens, language=say(each.language)) for each in drifts]
    divergences = [f"{each.divergence:.3f} {say(each.language)}" for each in drifts]
    print(say("same_token", shares=", ".join(shares), divergences=", ".join(divergences)))
    # Also where it is no number at all.
    far = [each for each in drifts if not each.divergence <= FAR]
    if far:
        worst = ", ".join(say(each.language) for each in far)
        console.print(say("moved", worst=worst, bound=FAR), style="yellow", markup=False, soft_wrap=True)


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _rate(rate: Rate) -> str:
    return f"{rate.median:.0f} ({rate.lowest:.0f}–{rate.highest:.0f})"


def _size(path: Path) -> str:
    return f"{model_size(path) / 1e6:.0f} MB"
