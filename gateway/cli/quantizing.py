"""Implementation of `samovar models quantize`: convert a GGUF file, and measure speed and quality on this machine."""

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
from gateway.cli.figures import figure
from gateway.cli.idle_machine import wait_for_idle_machine
from gateway.cli.language import Phrases
from gateway.config.other_load import BUSY, OtherLoad
from gateway.config.settings import Settings, SettingsError
from gateway.models.catalogue import Entry, ModelNotAvailableError, find
from gateway.models.inspection import describe
from gateway.models.library import Library
from gateway.prompts.chat_template import TemplateError

TEXTS: Final = {
    "quantizing": ("quantizing", "量化"),
    "measuring": ("measuring both", "测速"),
    "busy": (
        "warning: other processes kept {cores:.1f} cores busy meanwhile; measure again on an idle machine",
        "注意：测量期间其他进程占用了 {cores:.1f} 个核心；请在机器空闲时重新测量",
    ),
    "unclear": ("not distinguishable", "无法区分"),
    "file": ("file", "文件"),
    "size": ("size", "大小"),
    "prefill": ("prompt tokens/s", "预填充词元/秒"),
    "decode": ("answer tokens/s", "生成词元/秒"),
    "how": (
        "{threads} threads, median of {rounds} alternating rounds (lowest – highest)",
        "{threads} 个线程，交替 {rounds} 轮的中位数（最低 – 最高）",
    ),
    "exists": (
        "{path} exists; choose another file with --output, or replace it with --force",
        "{path} 已存在；用 --output 换一个文件名，或用 --force 覆盖",
    ),
    "same": (
        "{path} is the source file; choose another file with --output",
        "{path} 就是源文件；请用 --output 换一个文件名",
    ),
    "again": (
        "warning: {name} is already quantized ({bits} bits per weight) and loses more quality; prefer an F16 source",
        "注意：{name} 已经量化过（每个权重 {bits} 位），再次量化会进一步降低质量；如有 F16 文件，请从它开始",
    ),
    "unknown": (
        "warning: {name} does not state its bits per weight; if it is already quantized, it loses more quality",
        "注意：{name} 没有注明每个权重的位数；如果它已经量化过，再次量化会进一步降低质量",
    ),
    "up": (
        "warning: {kind} has more bits per weight than {name}: the file grows, but quality does not improve",
        "注意：{kind} 的位数高于 {name}：文件变大，质量不会提高",
    ),
    "coarse": (
        "warning: below 4 bits per weight, small models answer noticeably worse",
        "注意：低于 4 位时，小模型的回答质量会明显下降",
    ),
    "fine": (
        "warning: below 5 bits per weight, small models answer somewhat worse; the loss is measured at the end",
        "注意：低于 5 位时，小模型的回答质量会有所下降；降低多少见最后的实测",
    ),
    "same_token": (
        "same most likely token as the source: {shares}; KL divergence in nats per token: {divergences}",
        "首选词元与原文件相同：{shares}；KL 散度（nat/词元）：{divergences}",
    ),
    "share": ("{share:.0%} of {tokens} {language}", "{language} {tokens} 个中的 {share:.0%}"),
    "en": ("English", "英文"),
    "zh": ("Chinese", "中文"),
    "moved": (
        "warning: answers differ a lot ({worst}: over {bound} nats per token); use a finer --type, or start from F16",
        "注意：回答偏离较大（{worst}，超过 {bound} nat/词元）；请改用位数更高的 --type，或从 F16 重新量化",
    ),
    "fallback": (
        "tensors whose row length is not a multiple of 256 do not support every type; they were converted to: {others}",
        "行长不是 256 整数倍的张量并非支持每种类型，已改用：{others}",
    ),
    "full": (
        "{path}: the disk is full; free some space, or choose another folder with --output",
        "{path}：磁盘已满；请清理磁盘，或用 --output 换一个目录",
    ),
    "made": ("{path}: {after} (before: {before})", "{path}：{after}（原为 {before}）"),
    "serve": ("Serve it: samovar serve --model {model}", "启动：samovar serve --model {model}"),
}
WIDE: Final = 240
"""Width in columns of a table written to a file or a pipe."""
ROUNDS: Final = 5
ROOM: Final = 16 << 20
"""Bytes. With less free space than this, a failed write is reported as a full disk."""
NEARLY_WHOLE: Final = 8
"""Bits per weight from which a source file is as good as F16."""
FAR: Final = 0.1
"""Nats per token from which answers differ noticeably. For an 8B model, q8_0 measures 0.001, q4_k_m 0.03, q4_0 0.07 and
q3_k_m 0.10 (llama.cpp's tools/perplexity/README.md)."""


def make(say: Phrases, settings: Settings, options: Namespace) -> None:
    """Quantize a model as `options` say. Raises CommandError, or SettingsError for an unknown type."""
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
    """Measure and print size, speed and quality of both files. Raises CommandError."""
    wait_for_idle_machine(console, chinese=say.chinese)
    others = OtherLoad()
    with _progress(console) as progress:
        bar = progress.add_task(say("measuring"), total=None)
        try:
            old, new = compare(
                [before, after], threads=threads, rounds=ROUNDS,
                progress=lambda done, total: progress.update(bar, completed=done, total=total),
            )  # fmt: skip
            disturbance = others.cores()
            drifts = drift(before, after, threads=threads)
        except EngineError as error:
            raise CommandError(str(error)) from error
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("file", "size", "prefill", "decode"):
        table.add_column(say(column), justify="left" if column == "file" else "right", no_wrap=True)
    for path, pace in ((before, old), (after, new)):
        table.add_row(path.name, _size(path), _rate(pace.prefill), _rate(pace.decode))
    gains = _gain(say, old.prefill, new.prefill), _gain(say, old.decode, new.decode)
    table.add_row("", f"× {model_size(after) / model_size(before):.2f}", *gains, style="bold")
    Console(highlight=False, width=None if sys.stdout.isatty() else WIDE).print(table)
    print(say("how", rounds=ROUNDS, threads=threads))
    if disturbance >= BUSY:
        console.print(say("busy", cores=disturbance), style="yellow", markup=False, soft_wrap=True)
    _print_quality(say, console, drifts)


def _print_quality(say: Phrases, console: Console, drifts: list[Drift]) -> None:
    """Print how far the new file's answers differ from the source's."""
    shares = [say("share", share=each.same, tokens=each.tokens, language=say(each.language)) for each in drifts]
    divergences = [f"{each.divergence:.3f} {say(each.language)}" for each in drifts]
    print(say("same_token", shares=", ".join(shares), divergences=", ".join(divergences)))
    # The negated comparison also catches NaN.
    far = [each for each in drifts if not each.divergence <= FAR]
    if far:
        worst = ", ".join(say(each.language) for each in far)
        console.print(say("moved", worst=worst, bound=FAR), style="yellow", markup=False, soft_wrap=True)


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _rate(rate: Rate) -> str:
    return f"{figure(rate.median)} ({figure(rate.lowest)}–{figure(rate.highest)})"


def _gain(say: Phrases, old: Rate, new: Rate) -> str:
    """Return the factor between two rates, unless their ranges overlap."""
    if max(old.lowest, new.lowest) <= min(old.highest, new.highest):
        return say("unclear")
    return f"× {new.median / old.median:.2f}"


def _size(path: Path) -> str:
    return f"{model_size(path) / 1e6:.0f} MB"
