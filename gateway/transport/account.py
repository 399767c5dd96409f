"""What the caller may know about their own account: limits, allowance and usage."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from gateway.auth.principal import principal_of
from gateway.auth.reports import by_day, described
from gateway.auth.usage import DAYS
from gateway.auth.user import User
from gateway.errors import NoUsersError
from gateway.responses.services import Services
from gateway.transport.bodies import query, with_errors

ROOT: Final = "/v1/me"
PRIVATE: Final = {"Cache-Control": "no-store"}


class UsageQuery(msgspec.Struct, frozen=True):
    """The query of `GET /v1/me/usage`."""

    days: Annotated[int, Meta(ge=1, le=DAYS)] = 30


def routes(services: Services) -> list[BaseRoute]:
    """Return the routes for the app."""

    async def me(request: Request) -> Response:
        """Return the caller's account."""
        user, now = await _user(services, request), services.clock()
        [total] = await services.registry.users.usage.totals([user])
        stored = await services.sessions.stored_bytes(user.tenant)
        limits = principal_of(request).limits
        body: dict[str, Any] = {"object": "user", **described(total, now), "concurrency": limits.concurrency}
        body |= allowance(services, total)
        body["storage"] = {"bytes": stored.get(user.tenant, 0), "limit": services.settings.user_storage}
        return JSONResponse(body, headers=PRIVATE)

    async def usage(request: Request) -> Response:
        """Return the caller's usage by day."""
        user, params = await _user(services, request), query(request, UsageQuery)
        days = (await services.registry.users.usage.days(user.tenant)).get(user.tenant, {})
        data = by_day(days, services.clock(), params.days)
        return JSONResponse({"object": "list", "data": data, "has_more": False}, headers=PRIVATE)

    return [
        Route(ROOT, with_errors(me), methods=["GET"]),
        Route(f"{ROOT}/usage", with_errors(usage), methods=["GET"]),
    ]


def allowance(services: Services, user: User) -> dict[str, Any]:
    """Return what is left of the daily allowance, the tokens of today, and when the day ends.

    `user` has the usage at all gateways, stored at most a second ago; what counts against the allowance is more recent
    here, and less so at other gateways.
    """
    today = services.registry.today
    used = today.used(user.tenant)
    left = None if user.tokens_per_day is None else max(0, user.tokens_per_day - used)
    stored = described(user, services.clock())["tokens_today"]
    return {"tokens_today": max(used, stored), "tokens_left_today": left, "day_ends_at": today.resets_at}


async def _user(services: Services, request: Request) -> User:
    """Return the caller with all usage so far, which the registry does not read again after each request."""
    await services.registry.flush()
    user = await services.registry.users.find(principal_of(request).tenant)
    if user is None:
        raise NoUsersError
    return user
