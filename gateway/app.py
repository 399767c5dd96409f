"""Assembly of the gateway from its parts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.types import Lifespan
from starlette.websockets import WebSocket

from cache import Archive, Cache, KeyRing, StoreError
from engine import Engine, EnginePool, LearningCostModel, State, Stepped
from gateway.auth.principal import principal_of
from gateway.auth.registry import UserRegistry
from gateway.auth.users import Users
from gateway.config.background import run_forever
from gateway.config.settings import Settings
from gateway.conversations.directory import Conversations
from gateway.conversations.prompt_builder import PromptBuilder
from gateway.conversations.turns import Sessions
from gateway.errors import EngineUnavailableError
from gateway.models import served
from gateway.models.learned import LearnedSaver
from gateway.models.served import ServedModel
from gateway.observability.engine_log import EngineLog
from gateway.observability.history import History
from gateway.observability.metrics import Metrics
from gateway.prompts.pool import PromptWorkers
from gateway.responses.erasure import Erasure
from gateway.responses.registry import STOPPING, Responses
from gateway.responses.services import Services, new_id
from gateway.scheduling.admission import Admission
from gateway.scheduling.dispatcher import Dispatcher
from gateway.transport import account, admin, anthropic, chat, conversations, models, monitor, ollama
from gateway.transport.authentication import SUBPROTOCOL
from gateway.transport.bodies import no_route, routing_error
from gateway.transport.documents import Documents
from gateway.transport.http import HttpResponses
from gateway.transport.intake import INTAKE, Intake, owner
from gateway.transport.middleware import middleware
from gateway.transport.ollama_models import RUNNING
from gateway.transport.openapi import published
from gateway.transport.paths import PAGES
from gateway.transport.refusals import refuse
from gateway.transport.sockets import WATCH
from gateway.transport.text import TextRoutes
from gateway.transport.web_files import WebFiles
from gateway.transport.websocket import Connection

WEB: Final = Path(__file__).parent / "web"
START_HEADERS: Final = {"Cache-Control": "no-cache", "Vary": "Accept"}


def build(settings: Settings, model: ServedModel | None = None) -> tuple[Starlette, Responses]:
    """Return the ASGI app and its registry of responses. `model` is loaded unless given; engines start on demand.

    Raises ModelNotAvailableError, ModelLoadError, TemplateError or StoreError.
    """
    model = model or served.load(settings)
    metrics = Metrics()
    keys = KeyRing.load(settings.key_source)
    cache = Cache(
        settings.cache_url,
        keys,
        ttl=settings.cache_ttl,
        max_bytes=settings.cache_max_bytes,
        observe=metrics.store.observe,
    )

    log = EngineLog()

    def changed(engine: Engine) -> None:
        log.changed(engine)
        if engine.state in (State.IDLE, State.STOPPED, State.FAILED):
            admission.pump()  # a restarted engine has room for waiting requests; if the last one failed, they fail

    costs = LearningCostModel(model.plan, model.learned.read())

    def stepped(step: Stepped) -> None:
        metrics.stepped(step, trial=dispatcher.trying)
        if step.width:
            working = sum(engine.state is State.BUSY for engine in pool.engines)
            costs.observe(step.threads, step.kind, step.width, step.seconds, working=working)

    worker = model.worker(cache.config, settings.state_dir, speculation=settings.speculation)
    pool = EnginePool(
        worker,
        count=model.engines,
        cores=settings.cores,
        idle_unload=settings.idle_unload,
        on_change=changed,
        on_step=stepped,
        on_store=metrics.store.observe_engine,
        learned=costs.learned,
    )
    dispatcher = Dispatcher(pool.engines, costs, warm=pool.warm, suspend=pool.suspend)
    admission = Admission(
        dispatcher.place, dispatcher.release, limit=settings.queue_limit, timeout=settings.queue_timeout
    )
    prompts = PromptWorkers(model.prompts(settings.instructions), on_death=metrics.prompt_workers.inc)
    sessions = _sessions(settings, keys, cache, model.tokens.digest)
    services = Services(
        settings=settings,
        model=model,
        cache=cache,
        prefixes=cache.prefixes(worker.build),
        sessions=sessions,
        conversations=Conversations(sessions),
        pool=pool,
        costs=costs,
        dispatcher=dispatcher,
        admission=admission,
        registry=UserRegistry(
            Users(settings.state_dir, ledger=cache.users),
            concurrency=settings.user_concurrency,
            messages=settings.messages_per_minute,
        ),
        prompts=prompts,
        prompt_builder=PromptBuilder(prompts, limit=model.context, new_id=new_id),
        metrics=metrics,
        fingerprint=served.fingerprint(worker.build),
        digest=str(worker.build["model"]),
    )
    metrics.watch(pool, costs)
    metrics.store.watch(cache.store.backend, lambda: cache.store.up)
    metrics.waiting.set_function(lambda: len(admission))
    metrics.running.set_function(lambda: admission.running)
    metrics.serve(model.entry.name, _limits(services))
    metrics.sessions.set_function(lambda: len(services.activity))
    responses = Responses(services, grace=settings.resume_grace)
    intake = Intake()
    history = History(metrics.registry)
    routes = [*_routes(services, responses, intake), *monitor.routes(services, history)]
    app = Starlette(
        routes=routes,
        middleware=middleware(settings, services.registry, metrics, routes),
        exception_handlers={HTTPException: routing_error},
        lifespan=_lifespan(services, responses, intake, history),
    )
    app.router.default = no_route(app.router.default)
    return app, responses


def _sessions(settings: Settings, keys: KeyRing, cache: Cache, vocabulary: str) -> Sessions:
    """Open the conversation store. Raises StoreError after closing the cache, so that no in-memory cache remains."""
    try:
        path = settings.state_dir / "conversations.db"
        archive = Archive(
            path,
            keys,
            ttl=None if settings.conversation_ttl == "never" else settings.conversation_ttl,
            tombstone_ttl=settings.cache_ttl,
            tenant_bytes=settings.user_storage,
            copies=cache.copies,
            blocks=cache.store,
            ledger=cache.documents,
        )
        return Sessions(archive, vocabulary)
    except StoreError:
        cache.close()
        raise


def _limits(services: Services) -> dict[str, float]:
    """Return the gateway's limits, named after the setting or else after the limited resource."""
    settings, model = services.settings, services.model
    configured = (
        "queue_limit",
        "queue_timeout",
        "user_storage",
        "user_concurrency",
        "connections_per_user",
        "connections_per_address",
        "messages_per_minute",
    )
    derived = {
        "cores": settings.cores,
        "engines": model.engines,
        "engine_memory": model.sizes.engine_memory,
        "kv_cells": model.cells,
        "context": model.context,
        "running": services.dispatcher.most,
    }
    return {name: getattr(settings, name) for name in configured} | derived


def _lifespan(services: Services, responses: Responses, intake: Intake, history: History) -> Lifespan[Starlette]:
    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[Mapping[str, Any]]:
        with suppress(StoreError):  # every request will report it
            await services.sessions.mark_interrupted()
        await services.registry.refresh()
        learned = LearnedSaver(services.costs, services.model.learned)
        work = {
            "sessions": services.sessions.run,
            "cache": services.cache.run,
            "engines": services.pool.run,
            "prompts": services.prompts.run,
            "dispatcher": services.dispatcher.run,
            "conversations": responses.turns.run,
            "erasure": Erasure(responses).run,
            "learned": learned.run,
            "history": history.run,
        }
        keepers = [asyncio.create_task(run_forever(name, keep)) for name, keep in work.items()]
        watch = asyncio.create_task(run_forever("users", services.registry.watch))
        yield {INTAKE: intake}
        await services.idle_work.close()
        await responses.close(within=0)
        watch.cancel()
        await services.pool.close()
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)
        await services.registry.close()  # after those who read it
        await learned.save()
        services.sessions.close()
        await asyncio.to_thread(services.cache.close)

    return lifespan


def _routes(services: Services, responses: Responses, intake: Intake) -> list[BaseRoute]:
    async def connection(socket: WebSocket) -> None:
        if responses.closing:  # a load balancer that still routes here can open the connection elsewhere
            await refuse(EngineUnavailableError(STOPPING), socket.scope, socket.receive, socket.send)
            return
        await socket.accept(subprotocol=SUBPROTOCOL if SUBPROTOCOL in socket.scope["subprotocols"] else None)
        with services.metrics.connections.track_inprogress():
            principal = principal_of(socket)
            count_message = partial(services.registry.count_message, principal)
            if (watch_controls := socket.scope["state"].get(WATCH)) is not None:
                watch_controls(count_message, owner=owner(socket, principal))
            await Connection(responses, socket, principal=principal, count_message=count_message, intake=intake).serve()

    files = WebFiles(WEB)
    return [
        WebSocketRoute("/v1/responses", connection),
        *HttpResponses(responses).routes,
        *chat.routes(responses),
        *anthropic.routes(responses),
        *TextRoutes(responses).routes,
        *conversations.routes(responses),
        *Documents().routes,
        *models.routes(services),
        *account.routes(services),
        *admin.routes(services),
        *ollama.routes(responses),
        *(Route(path, handler) for path, handler in _handlers(services, responses, files).items()),
        *(Route(path, _page(files, f"{path[1:]}.html")) for path in PAGES),
        Mount("/static", files),
    ]


def _page(files: WebFiles, name: str) -> Callable[[Request], Awaitable[Response]]:
    """Return the handler of a page, which has no data: it fetches them with the reader's key."""

    async def serve(_: Request) -> Response:
        return files.page(name)

    return serve


def _failure(services: Services) -> str:
    """Why every request would fail, in words that strangers may read; empty when requests can be served."""
    if services.registry.unusable:
        return "users.db can't be used; the gateway's log says why"
    return services.pool.failure or services.prompts.failure


def _handlers(
    services: Services, responses: Responses, files: WebFiles
) -> dict[str, Callable[[Request], Awaitable[Response]]]:
    async def start_page(request: Request) -> Response:
        """Return the chat page to browsers, and to other programs what tells them that Ollama's API is here."""
        if "text/html" not in request.headers.get("accept", ""):
            return PlainTextResponse(RUNNING, headers=START_HEADERS)
        page = files.page("index.html")
        page.headers.update(START_HEADERS)
        return page

    async def page_facts(_: Request) -> Response:
        notice = services.settings.answer_notice
        facts = {
            "encode_ahead": services.settings.encode_ahead,
            "answer_notice": {"auto": None, "none": ""}.get(notice, notice),
            "titles": services.settings.titles,
            "offered_instructions": services.settings.offered_instructions,
            "languages": services.model.entry.languages,
        }
        return JSONResponse(facts, headers={"Cache-Control": "no-cache"})

    async def alive(_: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def ready(_: Request) -> Response:
        if responses.closing:
            return JSONResponse({"status": "stopping"}, status_code=503)
        if reason := _failure(services):
            return JSONResponse({"status": "failed", "reason": reason}, status_code=503)
        return JSONResponse({"status": "ready"})

    async def metrics(_: Request) -> Response:
        return Response(services.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return {
        "/": start_page,
        "/openapi.json": published,
        "/page.json": page_facts,
        "/monitor/metrics": metrics,  # load balancers hide `/metrics`; this route needs an admin's key
        "/healthz": alive,
        "/readyz": ready,
        "/metrics": metrics,
    }
