"""Tables of the results, next to the write-up's figures if those are of the same model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from gateway.cli.bench.measuring import LOAD_SHAPE
from gateway.cli.bench.results import Answer, Latency, Load, Phase, Results, Sample, Start
from gateway.cli.bench.writeup import CPU, LATENCY, MEMORY, START
from gateway.cli.figures import figure
from gateway.cli.language import Phrases

MB: Final = 1e6
TEXTS: Final = {
    "title": ("Samovar on this machine", "本机上的 Samovar"),
    "conditions": (
        "{model} ({size:.0f} MB), {cores} cores of {processor}, {memory}; {versions}, {plan}; {date}",
        "{model}（{size:.0f} MB），{processor} 的 {cores} 个核心，{memory}；{versions}，{plan}；{date}",
    ),
    "ram": ("{size:.0f} GB at {bandwidth} GB/s", "{size:.0f} GB 内存，读取带宽 {bandwidth} GB/s"),
    "planned": ("measured plan", "运行方案为本机实测"),
    "assumed": ("estimated plan, corrected with every step", "运行方案为估计，随每一步修正"),
    "busy": (
        "Warning: other processes kept {cores:.1f} cores busy meanwhile; on an idle machine the figures are better.",
        "注意：测量期间其他进程占用了 {cores:.1f} 个核心；机器空闲时数字会更好。",
    ),
    "medians": ("Medians, with minimum and maximum in brackets.", "数字为中位数，括号内为最小值与最大值。"),
    "writeup": (
        (
            " The write-up measured Qwen2.5-0.5B-Instruct on an Intel i5-1135G7 (4 cores, 16 GB), one blocking request "
            "at a time, all in one process."
        ),
        ("对照列取自原文：Qwen2.5-0.5B-Instruct，Intel i5-1135G7（4 核，16 GB），单进程，每次只处理一个请求。"),
    ),
    "made": ("Created by `samovar bench --output DIR`.", "由 `samovar bench --output 目录` 生成。"),
    "theirs": ("write-up", "原文"),
    "here": ("here", "本机"),
    "memory": ("Memory, resident, MB", "内存（常驻，MB）"),
    "phase": ("phase", "阶段"),
    "gateway": ("gateway", "网关"),
    "engines": ("engines", "引擎"),
    "together": ("total", "合计"),
    "peak": ("peak", "峰值"),
    "before": ("before the model is loaded", "加载模型之前"),
    "loaded": ("model loaded", "模型加载之后"),
    "first": ("first conversation", "首次对话"),
    "after": ("after the first conversation", "首次对话之后"),
    "rounds": ("further rounds", "继续几轮"),
    "rest": ("idle, engine unloaded", "空闲，引擎已卸载"),
    "latency": ("Latency, one conversation at a time", "延迟（每次一个对话）"),
    "shape": ("{question} → {answer} tokens", "{question} → {answer} 词元"),
    "prompt": ("prompt tokens (cached)", "输入词元（其中缓存命中）"),
    "first_token": ("time to first token, ms", "首字延迟，ms"),
    "gap": ("between tokens, ms", "词元间隔，ms"),
    "total": ("total, s", "总时间，s"),
    "rate": ("tokens per second", "词元/秒"),
    "cpu": ("CPU, % of one core: gateway + engines", "CPU，单核的 %：网关 + 引擎"),
    "start": ("Start-up, ms", "启动（ms）"),
    "part": ("part", "步骤"),
    "python": ("Python environment", "Python 环境"),
    "configuration": ("configuration, keys, stores", "配置、密钥、存储"),
    "vocabulary": ("tokenizer, chat template", "分词器、对话模板"),
    "listening": ("port bound", "绑定端口"),
    "ready": ("ready for requests", "可接受请求"),
    "engine": ("engine's Python environment", "引擎的 Python 环境"),
    "weights": ("weights mapped, tensors built", "映射权重、构建张量"),
    "context": ("KV cells and buffers", "KV 单元与缓冲区"),
    "asked": ("first token of an immediate request", "启动后立即提问的首字延迟"),
    "load": ("Load: {question} → {answer} tokens each, concurrent", "负载：同时提问，各 {question} → {answer} 词元"),
    "conversations": ("conversations", "对话数"),
    "all_rate": ("tokens per second, total", "词元/秒（合计）"),
}
"""Texts in English and Chinese."""


@dataclass(frozen=True)
class Table:
    """A table: title, column names and rows."""

    title: str
    columns: list[str]
    rows: list[list[str]]

    def without(self, column: str) -> Table:
        """Return the table without the columns of that name."""
        kept = [place for place, name in enumerate(self.columns) if name != column]
        columns, *rows = ([line[place] for place in kept] for line in (self.columns, *self.rows))
        return Table(self.title, columns, rows)


def tables(results: Results, say: Phrases) -> Iterator[Table]:
    """Yield all tables."""
    for table in (
        _memory(results.memory, say),
        _latency(results.latency, say),
        _start(results, say),
        _load(results.load, say),
    ):
        yield table if results.compared else table.without(say("theirs"))


def explanation(results: Results, say: Phrases) -> str:
    """Return what the figures are, and those of the write-up if they are shown."""
    return say("medians") + (say("writeup") if results.compared else "")


def conditions(results: Results, say: Phrases) -> str:
    """Return model, machine, versions and date in one line."""
    conditions = results.conditions
    return say(
        "conditions",
        model=conditions.model,
        size=conditions.file_bytes / MB,
        cores=conditions.cores,
        processor=conditions.processor,
        memory=say("ram", size=conditions.memory_bytes / 1e9, bandwidth=figure(conditions.bandwidth / 1e9)),
        versions=f"samovar {conditions.samovar}, llama-cpp-python {conditions.llama_cpp_python}",
        plan=say("planned" if conditions.planned else "assumed"),
        date=conditions.date,
    )


def _memory(phases: list[Phase], say: Phrases) -> Table:
    parts: list[Callable[[Sample], int]] = [lambda s: s.gateway, lambda s: s.engines, lambda s: s.together]
    rows = [
        [
            say(phase.name),
            *(f"{phase.mean(part) / MB:.1f}" for part in parts),
            f"{phase.peak / MB:.1f}",
            f"{'≤ ' if phase.name == 'rounds' else ''}{MEMORY[phase.name]}" if phase.name in MEMORY else "–",
        ]
        for phase in phases
    ]
    return Table(
        say("memory"), [say(name) for name in ("phase", "gateway", "engines", "together", "peak", "theirs")], rows
    )


def _latency(shapes: list[Latency], say: Phrases) -> Table:
    def row(name: str, part: Callable[[Answer], float], scale: float, digits: int) -> list[str]:
        theirs = [f"{scale * seconds:g}" for seconds in LATENCY[name]]
        ours = [shape.spread(part).text(scale, digits) for shape in shapes]
        return [say(name), *(text for pair in zip(ours, theirs, strict=True) for text in pair)]

    def pairs(name: str, ours: Callable[[Latency], str], theirs: str) -> list[str]:
        return [say(name), *(text for shape in shapes for text in (ours(shape), theirs))]

    rows = [
        pairs("prompt", lambda shape: f"{shape.answers[0].prompt} ({shape.answers[-1].cached})", "–"),
        row("first_token", lambda answer: answer.first, 1000, 0),
        row("gap", lambda answer: answer.gap, 1000, 1),
        row("total", lambda answer: answer.total, 1, 2),
        pairs("cpu", lambda shape: f"{100 * shape.gateway_cores:.0f} + {100 * shape.engine_cores:.0f}", CPU),
    ]
    names = [say("shape", question=shape.question, answer=shape.answers[0].output) for shape in shapes]
    return Table(say("latency"), ["", *(text for name in names for text in (name, say("theirs")))], rows)


def _start(results: Results, say: Phrases) -> Table:
    parts: dict[str, Callable[[Start], float]] = {
        "python": lambda start: start.python,
        "configuration": lambda start: start.configuration + start.parts,
        "vocabulary": lambda start: start.vocabulary,
        "listening": lambda start: start.listening,
        "ready": lambda start: start.ready,
        "engine": lambda start: start.engine,
        "weights": lambda start: start.weights,
        "context": lambda start: start.context,
        "asked": lambda start: start.first_token,
    }
    ready = sum(START.values())
    theirs = {**START, "ready": ready, "asked": ready + LATENCY["first_token"][0]}
    rows = [
        [say(name), results.start(part).text(1000), figure(1000 * theirs[name]) if name in theirs else "–"]
        for name, part in parts.items()
    ]
    return Table(say("start"), [say("part"), say("here"), say("theirs")], rows)


def _load(loads: list[Load], say: Phrases) -> Table:
    rows = [
        [
            str(load.conversations),
            load.rate.text(1, 1),
            load.spread(lambda answer: answer.first).text(1000),
            load.spread(lambda answer: answer.gap).text(1000, 1),
        ]
        for load in loads
    ]
    answer = loads[0].rounds[0].answers[0]
    title = say("load", question=LOAD_SHAPE[0], answer=answer.output)
    return Table(title, [say(name) for name in ("conversations", "all_rate", "first_token", "gap")], rows)
