"""What the monitor page shows besides metrics: the last hour, and users. `Authentication` demands an admin's key."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from gateway.auth.reports import described
from gateway.observability.history import History
from gateway.responses.services import Services
from gateway.transport.account import PRIVATE
from gateway.transport.bodies import with_errors


def routes(services: Services, history: History) -> list[BaseRoute]:
    """Return the routes for the app."""

    async def past(_: Request) -> Response:
        """Return the samples of the last hour."""
        return JSONResponse(history.body(), headers=PRIVATE)

    async def users(_: Request) -> Response:
        """Return what each user who has requests or has used something today is doing; nothing without keys."""
        registry, requests = services.registry, services.admission.by_user()
        data: list[dict[str, Any]] = []
        for user in await registry.users.all_with_total_usage():
            waiting, running = requests.get(user.tenant, (0, 0))
            connections, plain = registry.by_user[user.tenant], described(user, services.clock())
            if waiting or running or connections or plain["requests_today"]:
                shown = {
                    name: plain[name] for name in ("name", "id", "requests_today", "tokens_today", "tokens_per_day")
                }
                data.append({**shown, "waiting": waiting, "running": running, "connections": connections})
        return JSONResponse({"object": "list", "data": data, "has_more": False}, headers=PRIVATE)

    return [
        Route("/monitor/history", with_errors(past), methods=["GET"]),
        Route("/monitor/users", with_errors(users), methods=["GET"]),
    ]
