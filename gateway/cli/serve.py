"""`samovar serve`: run the gateway in the foreground until SIGINT or SIGTERM"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Final

import structlog
import uvicorn
import uvloop

from cache import StoreError
from engine import EngineError, LearningCostModel
from gateway.app import build
from gateway.cli import CommandError
from gateway.cli.keys import has_keys
from gateway.cli.streams import OutputError, discard_output
from gateway.config.machine import available_memory
from gateway.config.settings import Settings
from gateway.config.systemd import Supervisor
from gateway.models import served
from gateway.models.catalogue import EMBEDDED, GET_QWEN, ModelNotAvailableError
from gateway.observability import logs
from gateway.observability.stages import Stages
from gateway.prompts.chat_template import TemplateError
from gateway.responses.registry import Responses
from gateway.responses.self_test import SelfTest
from gateway.responses.warm_up import WarmUp
from gateway.transport.header_timeout import KEEP_ALIVE_SECONDS, HeaderTimeout
from gateway.transport.sockets import BoundedSocket

BACKLOG: Final = 2048
"""Connections waiting to be accepted. After a restart, all clients reconnect at once."""
GRACE_SECONDS: Final = 30
"""Seconds in which running answers may complete after SIGTERM. systemd kills a service after 90 s."""
UNREAD_MILLISECONDS: Final = 120_000
"""Milliseconds after which the kernel closes a connection whose peer does not acknowledge data."""
FAREWELL_SECONDS: Final = 0.2
"""Seconds for sending the last events and the close frames."""
LAST_SECONDS: Final = 5
"""Seconds that connections which do not close may delay the shutdown."""
HURRIED_SECONDS: Final = 1
"""Like `LAST_SECONDS`, after a second signal."""

MEASURED_PLAN: Final = (
    "Engines use the plan measured on this machine, and correct it with every step.\n"
    "引擎使用本机实测的运行方案，并随每一步修正。"
)
LEARNED_PLAN: Final = (
    "Engines use the plan learned on this machine, and go on learning; `samovar tune --show` prints it.\n"
    "引擎使用在本机学到的运行方案，并继续学习；运行 samovar tune --show 可查看。"
)
ASSUMED_PLAN: Final = (
    "Engines start with an estimated plan and learn this machine's speed from every step; `samovar tune` measures it "
    "at once.\n"
    "引擎以估计的运行方案开始，并从每一步学习本机的速度；运行 samovar tune 可立即实测。"
)
CONTEXT: Final = (
    "A conversation may hold {context} tokens; `samovar doctor` says what limits it.\n"
    "每个对话最多 {context} 个词元；samovar doctor 会说明受何限制。"
)
NO_KEYS: Final = (
    "No API keys: everybody who can reach this address may chat, as one tenant. To change that: samovar keys add NAME\n"
    "未设置 API 密钥：能访问此地址的人都可使用，并视为同一用户。添加密钥：samovar keys add 名称"
)


class Server(uvicorn.Server):
    """A uvicorn server that reports when it listens, drains on a signal, and returns instead of re-raising it."""

    greeting = ""
    responses: Responses
    stages: Stages
    supervisor: Supervisor
    _draining: asyncio.Task[None] | None = None
    _signals = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then log and print it and notify systemd."""
        gc.freeze()  # a full collection would visit the 400,000 references of the start, and stop the event loop
        await super().startup(sockets)
        if self.started:
            self.stages.done("listening")
            structlog.get_logger().info("serving", **self.stages.seconds)
            _greet(self.greeting)
            self.supervisor.ready(self.greeting.partition(" — ")[0])
            self._use_idle_time()

    def _use_idle_time(self) -> None:
        """Warm up and learn until the first request, as far as the settings say."""
        services = self.responses.services
        if services.settings.preload:
            warm_up, self_test = WarmUp(services), SelfTest(services)
            services.idle_work.start([warm_up.run, *([self_test.run] if services.settings.self_test else [])])

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM: the first drains running answers, the second ends them, the third exits."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._signalled)
        yield

    def _signalled(self) -> None:
        self._signals += 1
        if self._draining is None:
            self.supervisor.stopping(f"running answers may end within {GRACE_SECONDS} s")
            advice = f"running answers may end within {GRACE_SECONDS} s; a second signal ends them at once"
            structlog.get_logger().info("stopping", advice=advice)
            # uvicorn closes every socket when it begins to shut down, so those that still answer come first.
            self._draining = asyncio.create_task(self._drain())
        elif self._signals == 2:
            self.config.timeout_graceful_shutdown = HURRIED_SECONDS
            self.responses.end_now()
        else:
            self.force_exit = True
            self._draining.cancel()

    async def _drain(self) -> None:
        try:
            await self.responses.close(within=GRACE_SECONDS)
            await asyncio.sleep(FAREWELL_SECONDS)
        finally:
            self.should_exit = True


def run(settings: Settings) -> int:
    """Serve until a signal.

    Raises CommandError if the gateway cannot start, SettingsError if it would be open to everybody by mistake.
    """
    stages = Stages()
    logs.configure()
    keys = has_keys(settings)
    settings.check_exposure(has_keys=keys)
    _allow_connections()
    listener = _listen(settings)
    port = listener.getsockname()[1]
    settings = settings.model_copy(update={"port": port})
    stages.done("configuration")
    try:
        model = served.load(settings)
        stages.done("vocabulary")
        _warn_of_memory(model)
        app, responses = build(settings, model)
    except (ModelNotAvailableError, TemplateError, EngineError, StoreError) as error:
        listener.close()
        raise CommandError(str(error)) from error
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        proxy_headers=False,  # uvicorn would trust every client on loopback; see transport/proxies.py
        server_header=False,
        http=HeaderTimeout,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        ws=BoundedSocket,
        ws_max_size=16 << 20,
        ws_per_message_deflate=False,  # it doubles the memory of a connection for text that is sent once
        ws_ping_interval=50.0,  # under the 60 s of nginx and most NATs, at half the cost of the usual 20 s
        ws_ping_timeout=20.0,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
        timeout_graceful_shutdown=LAST_SECONDS,
    )
    server = Server(config)
    server.responses = responses
    stages.done("parts")
    server.stages = stages
    server.supervisor = Supervisor()
    server.greeting = f"Samovar: {settings.url} — open it in a browser, or run: samovar chat"
    if settings.model == EMBEDDED:
        server.greeting += f"\n{GET_QWEN}"
    if not keys:
        server.greeting += f"\n{NO_KEYS}"
    server.greeting += f"\n{CONTEXT.format(context=model.context)}"
    server.greeting += f"\n{_plan(responses.services.costs)}"
    uvloop.run(server.serve(sockets=[listener]))
    return 0


def _plan(costs: LearningCostModel) -> str:
    """Return the line that says what the engines' plan rests on."""
    if costs.measured:
        return MEASURED_PLAN
    return LEARNED_PLAN if costs.samples else ASSUMED_PLAN


def _warn_of_memory(model: served.ServedModel) -> None:
    """Log a warning if not even one engine fits into the memory of the machine or cgroup: the kernel would kill it."""
    needed, available = model.footprint(1), available_memory()
    if needed > available:
        structlog.get_logger().warning(
            "too little memory for an engine",
            needed_bytes=needed,
            available_bytes=available,
            hint="set a smaller context, memory or model, or raise the memory limit",
        )


def _greet(greeting: str) -> None:
    """Print the greeting, without lines that stdout's encoding lacks. The gateway also serves if stdout is full."""
    first, *rest = greeting.splitlines()
    lines = [first, *(line for line in rest if _is_printable(line))]
    try:
        print(*lines, sep="\n", flush=True)
    except OutputError as error:
        discard_output()
        structlog.get_logger().warning("greeting not printed", reason=str(error))


def _is_printable(line: str) -> bool:
    try:
        line.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        return False
    return True


def _allow_connections() -> None:
    """Raise the soft limit of open files to the hard limit: each connection is a file, and shells allow 1 024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _listen(settings: Settings) -> socket.socket:
    """Listen on the port before anything is loaded. Raises CommandError if the port cannot be used.

    With SO_REUSEADDR two processes can bind to one port; only listen(2) fails in the second.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(
        socket, "TCP_USER_TIMEOUT"
    ):  # inherited by every connection: a client that never reads must not hold its file forever
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_MILLISECONDS)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise CommandError(f"port: {settings.host}:{settings.port} can't be used: {error.strerror}") from error
    return listener
