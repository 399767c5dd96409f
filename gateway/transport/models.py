"""The models over HTTP: the served one, and its other names."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from gateway.responses.services import Services
from gateway.transport.bodies import with_errors


def routes(services: Services) -> list[BaseRoute]:
    """Return the routes that list and describe models."""

    async def list_models(_: Request) -> Response:
        """Return the served model and its aliases."""
        names = [services.model.entry.name, *services.model.listed_aliases]
        return JSONResponse({"object": "list", "data": [_described(services, name) for name in names]})

    async def retrieve(request: Request) -> Response:
        """Return one model by its name or alias."""
        name = request.path_params["id"]
        services.model.check_name(name)
        return JSONResponse(_described(services, name))

    return [
        Route("/v1/models", with_errors(list_models), methods=["GET"]),
        Route("/v1/models/{id:path}", with_errors(retrieve), methods=["GET"]),
    ]


def _described(services: Services, name: str) -> dict[str, Any]:
    """Return the model object under `name`, which may be an alias."""
    return {
        "id": name,
        "object": "model",
        "created": services.model.created,
        "owned_by": "samovar",
        "loaded": any(engine.loaded for engine in services.pool.engines),
        "context_length": services.model.context,
        "languages": list(services.model.entry.languages),
    }
