"""The display of `samovar top`: the metrics of /monitor, rendered for a terminal."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Final

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gateway.cli.language import Phrases
from gateway.cli.readings import Reading, increase, quantile, rate

HISTORY_SECONDS: Final = 600.0
"""Readings older than this are discarded."""
RATE_SECONDS: Final = 10.0
"""Window of rates. Shorter ones fluctuate with single answers, and engines report CPU time every five seconds."""
TOKENS: Final = "samovar_generation_tokens_total"
SOURCES: Final = {"engine": "green", "store": "cyan", "computed": "yellow"}
STATES: Final = {"busy": "green", "idle": "default", "loading": "yellow", "failed": "red", "stopped": "dim"}
BARS: Final = " ▁▂▃▄▅▆▇█"
TEXTS: Final = {
    "title": ("Samovar at {url}", "Samovar：{url}"),
    "live": ("live; press q to quit", "实时；按 q 退出"),
    "away": ("no response ({reason}); retrying…", "没有应答（{reason}），正在重试…"),
    "waiting": ("waiting", "排队中"),
    "running": ("running", "回答中"),
    "of": ("{value} of {limit}", "{value}，上限 {limit}"),
    "tokens": ("tokens per second", "词元/秒"),
    "first": ("time to first token", "首字延迟"),
    "gap": ("between tokens", "词元间隔"),
    "queued": ("queue wait", "排队时间"),
    "mostly": ("{half}, 95 % within {most}", "{half}，95% 不超过 {most}"),
    "reused": ("prompt tokens cached", "缓存命中率"),
    "connections": ("connections", "连接数"),
    "conversations": ("active conversations", "活跃对话"),
    "flow": ("last ten minutes, up to {top} tokens per second", "最近十分钟，最高 {top} 词元/秒"),
    "engine": ("engine", "引擎"),
    "state": ("state", "状态"),
    "threads": ("threads", "线程"),
    "cpu": ("CPU", "CPU"),
    "memory": ("memory", "内存"),
    "cells": ("KV cells", "KV 单元"),
    "load": ("load time", "加载用时"),
    "restarts": ("restarts", "重启"),
    "unloads": ("unloads", "卸载"),
    "stopped": ("unloaded", "未加载"),
    "loading": ("loading", "加载中"),
    "idle": ("idle", "空闲"),
    "busy": ("busy", "忙碌"),
    "failed": ("failed", "故障"),
    "gateway": ("gateway memory", "网关内存"),
    "cache": ("source of prompt tokens", "输入词元来源"),
    "source_engine": ("engine", "引擎"),
    "source_store": ("store", "存储"),
    "source_computed": ("computed", "新计算"),
    "store": ("store ({backend})", "存储（{backend}）"),
    "up": ("up", "正常"),
    "down": ("down", "不可用"),
    "requests": ("requests", "请求"),
    "status_completed": ("completed", "完成"),
    "status_incomplete": ("incomplete", "达到上限"),
    "status_failed": ("failed", "失败"),
    "status_cancelled": ("stopped by the user", "用户停止"),
    "status_rejected": ("rejected", "被拒绝"),
    "none": ("none yet", "暂无"),
}


class Board:
    """Readings of the last ten minutes, and their rendering."""

    def __init__(self, url: str, say: Phrases) -> None:
        """Start without readings."""
        self._url = url
        self._say = say
        self._readings: deque[Reading] = deque()

    def add(self, reading: Reading) -> None:
        """Append the newest reading and discard those older than `HISTORY_SECONDS`."""
        self._readings.append(reading)
        while reading.at - self._readings[0].at > HISTORY_SECONDS:
            self._readings.popleft()

    def render(self, status: str, *, since: Reading | None = None) -> RenderableType:
        """Return the whole display. Latencies cover the stored readings, or the time since `since`."""
        now = self._readings[-1]
        head = Text.assemble((self._say("title", url=self._url), "bold"), "  ", (status, "dim"))
        return Group(
            head,
            Text(),
            Columns([self._now(now), self._speed(since or self._readings[0], now)], padding=(0, 4)),
            *self._flow(),
            Text(),
            self._engines(now),
            Text(),
            self._cache(now),
            self._requests(now),
        )

    def _ago(self, seconds: float) -> Reading:
        """Return the newest reading at least `seconds` before the last one, else the oldest reading."""
        newest = self._readings[-1]
        older = (reading for reading in reversed(self._readings) if newest.at - reading.at >= seconds)
        return next(older, self._readings[0])

    def _now(self, now: Reading) -> Table:
        def bounded(name: str, limit: str) -> str:
            return self._say("of", value=_plain(now.sum(name)), limit=_plain(now.sum("samovar_limit", name=limit)))

        return _facts(
            (self._say("waiting"), bounded("samovar_requests_waiting", "queue_limit")),
            (self._say("running"), bounded("samovar_requests_running", "running")),
            (self._say("connections"), _plain(now.sum("samovar_websocket_connections"))),
            (self._say("conversations"), _plain(now.sum("samovar_sessions_active"))),
            (self._say("gateway"), _memory(now.sum("samovar_gateway_resident_bytes"))),
        )

    def _speed(self, since: Reading, now: Reading) -> Table:
        def spread(name: str) -> str:
            half, most = (quantile(since, now, f"samovar_{name}_seconds", share) for share in (0.5, 0.95))
            return "–" if half is None else self._say("mostly", half=_seconds(half), most=_seconds(most))

        prompt = now.sum("samovar_prompt_tokens_total")
        computed = now.sum("samovar_prompt_tokens_total", source="computed") or 0.0
        return _facts(
            (self._say("tokens"), _plain(rate(self._ago(RATE_SECONDS), now, TOKENS))),
            (self._say("first"), spread("time_to_first_token")),
            (self._say("gap"), spread("inter_token")),
            (self._say("queued"), spread("queue")),
            (self._say("reused"), f"{1 - computed / prompt:.0%}" if prompt else "–"),
        )

    def _flow(self) -> Iterator[RenderableType]:
        """Yield a bar chart of the generation rate, once there are enough readings for one."""
        readings = list(self._readings)[:: max(1, len(self._readings) // 60)]
        rates = [rate(before, after, TOKENS) or 0.0 for before, after in pairwise(readings)]
        if len(rates) > 1:
            top = max(rates)
            bars = "".join(BARS[round(value / (top or 1) * (len(BARS) - 1))] for value in rates)
            yield Text()
            yield Text(self._say("flow", top=_plain(top)), "dim")
            yield Text(bars, "green", no_wrap=True)

    def _engines(self, now: Reading) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        columns = ("engine", "state", "threads", "cpu", "memory", "cells", "load", "restarts", "unloads")
        for name in columns:
            table.add_column(self._say(name), justify="left" if name in ("engine", "state") else "right")
        for engine in now.values("samovar_engine_state", "engine"):
            table.add_row(*self._engine(now, engine))
        return table

    def _engine(self, now: Reading, engine: str) -> Iterator[Text | str]:
        states = [sample for sample in now.all("samovar_engine_state", engine=engine) if sample.value == 1]
        state = states[0].labels["state"] if states else ""
        yield engine
        yield Text(self._say(state), STATES[state]) if state in STATES else "–"
        yield _plain(now.sum("samovar_engine_threads", engine=engine))
        before = self._ago(RATE_SECONDS)
        used = rate(before, now, "samovar_engine_cpu_seconds_total", engine=engine)
        yield "–" if used is None or now.at - before.at < RATE_SECONDS else f"{used:.0%}"
        yield _memory(now.sum("samovar_engine_resident_bytes", engine=engine) or None)
        cells = [now.sum(f"samovar_kv_cells_{kind}", engine=engine) for kind in ("used", "total")]
        yield " / ".join(map(_plain, cells))
        yield _seconds(now.sum("samovar_engine_load_seconds", engine=engine) or None)
        yield _plain(now.sum("samovar_engine_restarts_total", engine=engine))
        yield _plain(now.sum("samovar_engine_unloads_total", engine=engine))

    def _cache(self, now: Reading) -> Table:
        tokens = {source: now.sum("samovar_prompt_tokens_total", source=source) or 0.0 for source in SOURCES}
        sources = [(f"{self._say(f'source_{name}')} {_plain(count)}", SOURCES[name]) for name, count in tokens.items()]
        stores = [
            (
                self._say("store", backend=sample.labels.get("backend", "?")),
                Text(self._say("up"), "green") if sample.value else Text(self._say("down"), "red"),
            )
            for sample in now.all("samovar_store_up")
        ]
        return _facts((self._say("cache"), _joined(sources)), *stores)

    def _requests(self, now: Reading) -> Table:
        counted: Counter[tuple[str, str]] = Counter()
        for sample in now.all("samovar_requests_total"):
            status, code = sample.labels["status"], sample.labels["code"]
            known = self._say(f"status_{status}") if f"status_{status}" in TEXTS else status
            counted[f"{known} ({code})" if code else known, "default" if status != "failed" else "red"] += int(
                sample.value
            )
        parts = [(f"{name} {count}", style) for (name, style), count in counted.items() if count]
        restarts = increase(self._readings[0], now, "samovar_engine_restarts_total") or 0.0
        if len(self._readings) > 2 and restarts:
            parts.append((f"{self._say('restarts')} {_plain(restarts)}", "red"))
        return _facts((self._say("requests"), _joined(parts) if parts else self._say("none")))


def _facts(*rows: tuple[str, str | Text]) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, value in rows:
        table.add_row(Text(name, "dim"), value)
    return table


def _joined(parts: Iterable[tuple[str, str]]) -> Text:
    return Text(" · ").join(Text(text, style) for text, style in parts)


def _plain(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}" if value == round(value) or value >= 100 else f"{value:.1f}"


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{1000 * value:.0f} ms" if value < 1 else f"{value:.1f} s"


def _memory(value: float | None) -> str:
    return "–" if value is None else f"{value / (1 << 20):.0f} MiB"
