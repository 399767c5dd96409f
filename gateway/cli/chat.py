"""`samovar chat`: chat with a running gateway, in the terminal or over a pipe"""

from __future__ import annotations

import getpass
import http.client
import re
import sys
import time
from contextlib import suppress
from queue import Empty
from typing import Any, Final

from gateway.cli import CommandError
from gateway.cli.answer import Answer, Tally
from gateway.cli.client import Client, KeyNeededError, RefusedError, UnreachableError, get
from gateway.cli.language import Phrases, is_chinese
from gateway.cli.screen import Screen, interrupts, plain
from gateway.config.settings import Settings

ATTEMPTS: Final = 3
"""Times that a question is sent if the connection drops before any of its answer has arrived."""
PAUSES: Final = (0.0, 0.5, 1.0, 2.0, 4.0)
"""Seconds before each attempt to reconnect. Together they cover the restart of a gateway."""
KEY_TRIES: Final = 3
COMMAND: Final = re.compile(r"[/／]([A-Za-z]+)")
"""Chinese input methods type the full-width slash."""

TEXTS: Final = {
    "nobody": (
        "no gateway responds at {url} ({reason}); start one with `make serve` or `samovar serve`",
        "{url} 没有网关应答（{reason}）；请先运行 `make serve` 或 `samovar serve`",
    ),
    "refused": ("{url} rejected the connection: {reason}", "{url} 拒绝了连接：{reason}"),
    "no_port": (
        "port: cannot connect to port 0; set the gateway's port with --port",
        "port：无法连接端口 0；请用 --port 指定网关的端口",
    ),
    "tls": ("tls_cert: {reason}", "tls_cert：{reason}"),
    "hello": (
        "Samovar at {url}. /help lists the commands, Ctrl-C stops an answer, Ctrl-D quits.",
        "Samovar：{url}。/help 查看命令，Ctrl-C 停止回答，Ctrl-D 退出。",
    ),
    "model": ("Model: {model}", "模型：{model}"),
    "english": (
        "This model knows English only. 此模型只懂英文。",
        "此模型只懂英文。This model knows English only.",
    ),
    "help": (
        (
            "/new    start a new conversation\n"
            "/stats  tokens, cached tokens, speed, time to first token\n"
            "/help   this list\n"
            "/quit   quit (or press Ctrl-D)\n"
            "Ctrl-C  stop the answer"
        ),
        (
            "/new    开始新对话\n"
            "/stats  词元数、缓存命中、速度与首字延迟\n"
            "/help   显示此列表\n"
            "/quit   退出（也可按 Ctrl-D）\n"
            "Ctrl-C  停止回答"
        ),
    ),
    "unknown": ("no such command: /{name}; /help lists them", "没有命令 /{name}；/help 查看全部命令"),
    "new": ("Started a new conversation.", "已开始新对话。"),
    "leave": ("Press Ctrl-C again, or Ctrl-D, to quit.", "再按一次 Ctrl-C，或按 Ctrl-D 退出。"),
    "key": ("API key: ", "API 密钥："),
    "reconnecting": ("Connection lost; reconnecting…", "连接已断开，正在重连…"),
    "lost": (
        "the connection was lost before the answer was complete; ask again to continue",
        "回答完成之前连接已断开；再次提问即可继续",
    ),
    "abandoned": ("Stopped waiting for the gateway.", "不再等待网关。"),
    "stopping": ("Stopping…", "正在停止…"),
    "thinking": ("…", "…"),
    "queued": ("Position {position} in the queue", "排在第 {position} 位"),
    "about": (", about {seconds} s", "，预计等待 {seconds} 秒"),
    "cancelled": ("(stopped)", "（已停止）"),
    "max_output_tokens": (
        "(length limit of one answer reached; send “continue” for more)",
        "（已达到单次回答的长度上限；发送“继续”可接着写）",
    ),
    "incomplete": ("(incomplete: {reason})", "（回答不完整：{reason}）"),
    "reason_interrupted": ("the gateway stopped", "服务中断"),
    "reason_steered": ("replaced by new input", "被新的输入取代"),
    "empty": ("(the answer is empty)", "（回答为空）"),
    "start_new": (" → start a new conversation with /new", " → 用 /new 开始新对话"),
    "no_stats": ("No answers yet.", "还没有回答。"),
    "last": (
        "Last answer: {output} tokens, {rate} tokens/s, first token {first} s; prompt {prompt}, {cached} cached",
        "上次回答：{output} 个词元，{rate} 词元/秒，首字延迟 {first} 秒；输入 {prompt} 个，缓存命中 {cached} 个",
    ),
    "total": (
        "All {answers}: {output} tokens, {rate} tokens/s, first token {first} s; prompt {prompt}, {cached} cached",
        "共 {answers} 次：{output} 个词元，{rate} 词元/秒，首字延迟 {first} 秒；输入 {prompt} 个，缓存命中 {cached} 个",
    ),
}


def run(settings: Settings) -> int:
    """Chat until the input ends. Raises CommandError if the gateway cannot be reached or rejects the connection."""
    say = Phrases(TEXTS, chinese=is_chinese())
    if settings.port == 0:
        raise CommandError(say("no_port"))
    try:
        client = Client(settings)
    except (OSError, ValueError) as error:
        raise CommandError(say("tls", reason=error)) from error
    try:
        _open(client, say)
        return Chat(client, Screen(), say, settings).run()
    except (UnreachableError, RefusedError) as error:
        raise CommandError(_explain(say, settings, error)) from error
    finally:
        client.close()


def _open(client: Client, say: Phrases) -> None:
    """Connect. If the gateway requires an API key and stdin is a terminal, ask for it, up to three times."""
    for _ in range(KEY_TRIES if sys.stdin.isatty() else 0):
        try:
            client.open()
        except KeyNeededError as error:
            print(plain(str(error)), file=sys.stderr)
            client.key = getpass.getpass(say("key"))
            if not client.key:
                break
        else:
            return
    client.open()


class Chat:
    """A conversation between the input, the screen and the gateway."""

    def __init__(self, client: Client, screen: Screen, say: Phrases, settings: Settings) -> None:
        """Start a conversation without turns."""
        self._client = client
        self._screen = screen
        self._say = say
        self._settings = settings
        self._previous: str | None = None
        self._failed = False
        self._last: Tally | None = None
        self._total = Tally()

    def run(self) -> int:
        """Chat until the end of input or /quit. Return 1 if input from a pipe had a line that failed, else 0."""
        with self._screen.in_use():
            if self._screen.interactive:
                self._greet()
            self._converse()
        return int(self._failed and not self._screen.interactive)

    def _converse(self) -> None:
        while (text := self._next()) is not None:
            command = COMMAND.fullmatch(text)
            if command is None:
                self._ask(text)
            elif command[1].lower() == "quit":
                break
            else:
                self._command(command[1].lower())

    def _greet(self) -> None:
        self._screen.note(self._say("hello", url=self._settings.url))
        with suppress(OSError, http.client.HTTPException, KeyError, TypeError, IndexError):
            model = get(self._settings, "/v1/models", key=self._client.key)[1]["data"][0]
            self._screen.note(self._say("model", model=plain(str(model["id"]))))
            if model["languages"] == ["en"]:
                self._screen.note(self._say("english"))

    def _next(self) -> str | None:
        """Return the next line that is not empty; None at the end of input."""
        warned = False
        while True:
            try:
                if text := self._screen.read().strip():
                    return text
                warned = False
            except EOFError:
                self._end_line()
                return None
            except KeyboardInterrupt:
                empty = self._screen.is_line_empty()
                self._end_line()
                if not self._screen.interactive or (empty and warned):
                    return None
                warned = empty
                if empty:
                    self._screen.note(self._say("leave"))

    def _end_line(self) -> None:
        if self._screen.interactive:
            self._screen.text("\n")

    def _command(self, name: str) -> None:
        match name:
            case "new":
                self._previous = None
                self._screen.note(self._say("new"))
            case "stats":
                self._stats()
            case "help":
                self._screen.line(self._say("help"))
            case _:
                self._error(self._say("unknown", name=name))

    def _stats(self) -> None:
        if self._last is None:
            self._screen.line(self._say("no_stats"))
            return
        self._screen.line(self._say("last", **self._last.figures()))
        self._screen.line(self._say("total", **self._total.figures()))

    def _error(self, text: str) -> None:
        self._failed = True
        self._screen.error(text)

    def _ask(self, text: str) -> None:
        """Send a question and show the answer. The next turn continues from it if the gateway stored it."""
        answer = Answer(self._screen, self._say)
        with self._screen.busy(), interrupts(lambda: self._client.events.put("interrupt")):
            self._client.clear()
            for attempt in range(1, ATTEMPTS + 1):
                if not self._connect():
                    self._screen.clear_status()
                    return
                self._client.send(self._question(text))
                self._follow(answer, last=attempt == ATTEMPTS)
                if answer.end:
                    break
        if answer.end == "stored":
            self._previous = answer.id
            self._last = answer.tally
            self._total.add(answer.tally)
        else:
            self._failed = True

    def _question(self, text: str) -> dict[str, Any]:
        question = {"type": "response.create", "input": text}
        return question if self._previous is None else {**question, "previous_response_id": self._previous}

    def _follow(self, answer: Answer, *, last: bool) -> None:
        """Show the answer up to its end.

        Return without an end if the connection dropped before any text arrived, so that the question can be resent.
        """
        cancelling = False
        while not answer.end:
            arrival = self._client.events.get()
            if arrival == "lost":
                if answer.started or cancelling or last:
                    answer.fail("lost", {"code": "connection_lost", "message": self._say("lost")})
                return
            if arrival == "interrupt":
                self._interrupt(answer, again=cancelling)
                cancelling = True
                continue
            known = bool(answer.id)
            answer.handle(arrival)
            if cancelling and not known and answer.id:
                self._cancel(answer)

    def _interrupt(self, answer: Answer, *, again: bool) -> None:
        """Stop the answer. The second interrupt does not wait for the gateway, which may not respond."""
        if again:
            self._client.disconnect()
            answer.fail("lost", {"code": "cancelled", "message": self._say("abandoned")})
        elif answer.id:
            self._cancel(answer)
        if not answer.started:
            self._screen.status(self._say("stopping"))

    def _cancel(self, answer: Answer) -> None:
        self._client.send({"type": "response.cancel", "response_id": answer.id})

    def _connect(self) -> bool:
        """Connect, with retries for some seconds. Print the error and return False if that fails."""
        for pause in PAUSES:
            if pause:
                self._screen.status(self._say("reconnecting"))
                if self._interrupted(pause):
                    return False
            try:
                self._client.open()
            except RefusedError as error:
                self._error(_explain(self._say, self._settings, error))
                return False
            except UnreachableError as error:
                reason = error
            else:
                return True
        self._error(_explain(self._say, self._settings, reason))
        return False

    def _interrupted(self, seconds: float) -> bool:
        """Return whether Ctrl-C is pressed within `seconds`."""
        until = time.monotonic() + seconds
        with suppress(Empty):
            while self._client.events.get(timeout=max(0.0, until - time.monotonic())) != "interrupt":
                pass
            return True
        return False


def _explain(say: Phrases, settings: Settings, error: UnreachableError | RefusedError) -> str:
    key = "nobody" if isinstance(error, UnreachableError) else "refused"
    return say(key, url=settings.url, reason=plain(str(error)))
