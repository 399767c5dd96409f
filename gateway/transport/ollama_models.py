"""What Ollama's API says about the server and its model."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from engine import Engine, State, repacks_weights
from gateway.models.catalogue import CATALOGUE
from gateway.protocol.ollama_answers import timestamp
from gateway.protocol.requests import convert
from gateway.responses.services import Services
from gateway.transport.bodies import json_body, with_errors

API_VERSION: Final = "0.13.0"
"""The version of Ollama whose API this is. Clients compare it with the lowest that they need."""
RUNNING: Final = "Ollama is running"
"""What Ollama answers at `/`, and clients look for."""
LATEST: Final = ":latest"
"""The tag of names without a tag."""
_NEVER: Final = timedelta(days=106_751)
"""As long as Ollama keeps a model that is never unloaded: the longest duration that Go can represent."""

Json = dict[str, Any]


class ShowFields(msgspec.Struct, frozen=True):
    """The body of `POST /api/show`."""

    model: str | None = None
    name: str | None = None
    """The former name of `model`."""


def model_routes(services: Services) -> list[BaseRoute]:
    """Return the routes that describe the server and its model."""

    async def version(_: Request) -> Response:
        """Return the version of the API."""
        return JSONResponse({"version": API_VERSION})

    async def tags(_: Request) -> Response:
        """Return the served model and its aliases."""
        modified = timestamp(services.model.created)
        names = [services.model.entry.name, *services.model.listed_aliases]
        return JSONResponse({"models": [{**_model(services, name), "modified_at": modified} for name in names]})

    async def running(_: Request) -> Response:
        """Return the model if an engine has loaded it."""
        loaded = [engine for engine in services.pool.engines if engine.loaded]
        return JSONResponse({"models": [_loaded(services, loaded)] if loaded else []})

    async def show(request: Request) -> Response:
        """Describe a model."""
        body = await json_body(request, lambda fields: convert(fields, ShowFields))
        name = served_name(services, body.model or body.name or None)
        services.model.check_name(name)
        return JSONResponse(_description(services))

    return [
        Route("/api/version", with_errors(version), methods=["GET"]),
        Route("/api/tags", with_errors(tags), methods=["GET"]),
        Route("/api/ps", with_errors(running), methods=["GET"]),
        Route("/api/show", with_errors(show), methods=["POST"]),
    ]


def served_name(services: Services, name: str | None) -> str | None:
    """Return the name of a model without the tag that Ollama's clients add; a name that is served as it is wins."""
    if name is None or name in (services.model.entry.name, *services.model.aliases):
        return name
    return name.removesuffix(LATEST)


def _capabilities(services: Services) -> list[str]:
    has_tools = services.model.abilities.tools != "omitted"
    return ["completion", *(["tools"] if has_tools else []), *(["thinking"] if can_think(services) else [])]


def can_think(services: Services) -> bool:
    """Return whether the model's template can ask it to reason."""
    return services.model.abilities.thinking


def _model(services: Services, name: str) -> Json:
    """Return the model under `name`, which may be an alias."""
    name = name if ":" in name else f"{name}{LATEST}"
    size = sum(file.size for file in services.model.mark)
    return {"name": name, "model": name, "size": size, "digest": services.digest, "details": _details(services)}


def _loaded(services: Services, engines: list[Engine]) -> Json:
    model = _model(services, services.model.entry.name)
    weights = model["size"] * (len(engines) if repacks_weights() else 1)  # which engines share otherwise
    return {
        **model,
        "size": weights + len(engines) * services.model.cell_bytes,
        "size_vram": 0,
        "context_length": services.model.context,
        "expires_at": timestamp(services.clock() + max(_seconds_left(services, engine) for engine in engines)),
    }


def _seconds_left(services: Services, engine: Engine) -> float:
    """Return the seconds until an engine without further requests is unloaded."""
    after = services.settings.idle_unload
    if not after:
        return _NEVER.total_seconds()
    idle = time.monotonic() - engine.since if engine.state is State.IDLE else 0.0
    return max(0.0, after - idle)


def _details(services: Services) -> Json:
    details = services.model.details
    return {
        "parent_model": "",
        "format": "gguf",
        "family": details.architecture,
        "families": [details.architecture],
        "parameter_size": _rounded(details.parameters),
        "quantization_level": details.quantization,
    }


def _rounded(parameters: int) -> str:
    """Return a number of parameters as Ollama writes it: `134.52M`, `1.5B`."""
    if parameters >= 1_000_000_000:
        return f"{parameters / 1e9:.1f}B"
    return f"{parameters / 1e6:.2f}M" if parameters >= 1_000_000 else f"{parameters / 1e3:.2f}K"


def _description(services: Services) -> Json:
    model = services.model
    details, published = model.details, CATALOGUE.get(model.entry.name)
    return {
        "license": published.licence if published else "",
        "modelfile": "",
        "parameters": f"num_ctx {model.context}",
        "template": model.template,
        "details": _details(services),
        "model_info": {
            "general.architecture": details.architecture,
            "general.parameter_count": details.parameters,
            f"{details.architecture}.context_length": model.context,
        },
        "capabilities": _capabilities(services),
        "modified_at": timestamp(model.created),
    }
