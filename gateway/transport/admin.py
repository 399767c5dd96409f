"""The admin API: users and their keys, usage, and the state of the engines. Every route needs an admin's key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec
import structlog
from msgspec import UNSET, Meta, UnsetType
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from gateway.auth.principal import ANONYMOUS, Limits, principal_of, shown
from gateway.auth.reports import by_day, described, periods, usage_csv
from gateway.auth.usage import DAYS
from gateway.auth.user import User
from gateway.auth.users import UserError
from gateway.errors import AdminKeyNeededError, InvalidRequestError, UserNotFoundError
from gateway.protocol.requests import convert
from gateway.responses.services import Services
from gateway.transport.account import PRIVATE, allowance
from gateway.transport.bodies import Handler, S, json_body, query, with_errors

ROOT: Final = "/v1/admin"
OWN_GRACE: Final = 60
"""Minimum seconds for which a replaced key works if it is the caller's: else this request would end without answer."""
Count = Annotated[int, Meta(ge=1, lt=1 << 31)]
Weight = Annotated[float, Meta(ge=0.01, le=100)]
Moment = Annotated[int, Meta(ge=0, lt=253_402_300_800)]
"""Seconds since the epoch, before the year 10000."""

log = structlog.get_logger("admin")


class UserCreate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /v1/admin/users`."""

    name: Annotated[str, Meta(min_length=1, max_length=64)]
    admin: bool = False
    expires_at: Moment | None = None
    tokens_per_day: Count | None = None
    tokens_per_minute: Count | None = None
    concurrency: Count | None = None
    weight: Weight = 1.0


class LimitsUpdate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /v1/admin/users/{id}`: null removes a limit, and what is absent stays."""

    tokens_per_day: Count | UnsetType | None = UNSET
    tokens_per_minute: Count | UnsetType | None = UNSET
    concurrency: Count | UnsetType | None = UNSET
    weight: Weight | UnsetType = UNSET


class KeyRotate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /v1/admin/users/{id}/rotate`."""

    grace_seconds: Annotated[int, Meta(ge=0, le=31_536_000)] = 0
    expires_at: Moment | None = None


class UsageReport(msgspec.Struct, frozen=True):
    """The query of `GET /v1/admin/usage`."""

    days: Annotated[int, Meta(ge=1, le=DAYS)] = 30


def routes(services: Services) -> list[BaseRoute]:
    """Return the routes for the app."""
    admin, one = AdminRoutes(services), f"{ROOT}/users/{{id}}"
    handlers: list[tuple[str, str, Handler]] = [
        ("GET", f"{ROOT}/users", admin.list),
        ("POST", f"{ROOT}/users", admin.create),
        ("POST", one, admin.limit),
        ("DELETE", one, admin.delete),
        ("POST", f"{one}/rotate", admin.rotate),
        ("POST", f"{one}/revoke", admin.revoke),
        ("GET", f"{ROOT}/usage", admin.usage),
        ("GET", f"{ROOT}/usage.csv", admin.download),
        ("GET", f"{ROOT}/engines", admin.engines),
    ]
    return [Route(path, with_errors(_for_admins(handler)), methods=[method]) for method, path, handler in handlers]


def _for_admins(handler: Handler) -> Handler:
    """Wrap `handler`: refuse callers without an admin's key. Keys are read from headers only, never from cookies."""

    async def handle(request: Request) -> Response:
        principal = principal_of(request)
        if not principal.admin:
            raise AdminKeyNeededError(has_keys=principal.tenant != ANONYMOUS)
        try:
            return await handler(request)
        except UserError as error:
            raise InvalidRequestError(str(error)) from error

    return handle


class AdminRoutes:
    """The handlers of the routes. Users are addressed by the id that the log shows, so that no URL has a name."""

    def __init__(self, services: Services) -> None:
        """Manage the users of `services`."""
        self._services = services
        self._registry = services.registry
        self._users = services.registry.users

    async def list(self, _: Request) -> Response:
        """Return all users."""
        stored = await self._services.sessions.stored_bytes()
        data = [self._described(user, stored) for user in await self._users.all_with_total_usage()]
        return JSONResponse({"object": "list", "data": data, "has_more": False}, headers=PRIVATE)

    async def create(self, request: Request) -> Response:
        """Create a user and return the key, which cannot be displayed again."""
        body = await _body(request, UserCreate)
        self._check_expiry(body.expires_at)
        limits = Limits(body.concurrency, body.tokens_per_minute, body.weight, body.tokens_per_day)
        try:
            key = await self._users.add(body.name, admin=body.admin, expires_at=body.expires_at, limits=limits)
        except UserError as error:
            raise InvalidRequestError(f"name: {error}", param="name") from error
        user = next(user for user in await self._users.all() if user.name == body.name)
        await self._done(request, "user added", user, admin_key=body.admin)
        return await self._shown(user.tenant, key=key)

    async def limit(self, request: Request) -> Response:
        """Change the limits of a user."""
        user, body = await self._find(request), await _body(request, LimitsUpdate)
        given = {name: value for name, value in msgspec.structs.asdict(body).items() if value is not UNSET}
        if not given:
            raise InvalidRequestError('the body names no limit; for example: {"tokens_per_day": 100000}')
        await self._users.limit(user.name, given)
        await self._done(request, "limits changed", user, **given)
        return await self._shown(user.tenant)

    async def rotate(self, request: Request) -> Response:
        """Replace a user's key and return the new one."""
        user, body = await self._find(request), await _body(request, KeyRotate)
        self._check_expiry(body.expires_at)
        grace = body.grace_seconds
        if user.tenant == principal_of(request).tenant:
            grace = max(grace, OWN_GRACE)
        key = await self._users.rotate(user.name, grace=grace, expires_at=body.expires_at)
        await self._done(request, "key rotated", user, grace_seconds=grace)
        return await self._shown(user.tenant, key=key)

    async def revoke(self, request: Request) -> Response:
        """Revoke a user's key."""
        user = await self._find_other(request)
        await self._users.revoke(user.name)
        await self._done(request, "key revoked", user)
        return await self._shown(user.tenant)

    async def delete(self, request: Request) -> Response:
        """Revoke a user's key and have all data of the user erased, which gateways do within seconds."""
        user = await self._find_other(request)
        await self._users.erase(user.name)
        await self._done(request, "user deleted", user)
        return JSONResponse({"id": shown(user.tenant), "object": "user.deleted", "deleted": True})

    async def usage(self, request: Request) -> Response:
        """Return the usage of all users: sums by period, and by day."""
        params, now = query(request, UsageReport), self._services.clock()
        days = await self._users.usage.days()
        data = []
        for user in await self._users.all_with_total_usage():
            own = days.get(user.tenant, {})
            one = {"name": user.name, "id": shown(user.tenant), "requests": user.requests, "tokens": user.tokens}
            data.append({**one, "periods": periods(own, now), "days": by_day(own, now, params.days)})
        return JSONResponse({"object": "list", "data": data, "has_more": False}, headers=PRIVATE)

    async def download(self, _: Request) -> Response:
        """Return one line per user and day as CSV."""
        text = usage_csv(await self._users.all_with_total_usage(), await self._users.usage.days())
        headers = {**PRIVATE, "Content-Disposition": 'attachment; filename="samovar-usage.csv"'}
        return Response(text, media_type="text/csv; charset=utf-8", headers=headers)

    async def engines(self, _: Request) -> Response:
        """Return the served model and the state of each engine."""
        model, engines = self._services.model, self._services.pool.engines
        data = [{"name": engine.name, "state": engine.state.value, "loaded": engine.loaded} for engine in engines]
        served = {"id": model.entry.name, "context_length": model.context, "engines": data}
        return JSONResponse({"object": "list", "data": [served], "has_more": False}, headers=PRIVATE)

    async def _find(self, request: Request) -> User:
        """Return the user with the id in the path. Raises UserNotFoundError."""
        id_ = request.path_params["id"]
        gone = await self._users.erasures.tenants()
        found = [user for user in await self._users.all() if shown(user.tenant) == id_ and user.tenant not in gone]
        if len(found) != 1:
            raise UserNotFoundError(id_)
        return found[0]

    async def _find_other(self, request: Request) -> User:
        """Return the same, but refuse the caller, who would lose access to this API."""
        user = await self._find(request)
        if user.tenant == principal_of(request).tenant:
            raise InvalidRequestError(
                f"this is your own key; let another admin do it, or run `samovar keys revoke {user.name}`", param="id"
            )
        return user

    def _check_expiry(self, moment: int | None) -> None:
        if moment is not None and moment <= self._services.clock():
            raise InvalidRequestError("expires_at: it is in the past; give seconds since the epoch", param="expires_at")

    async def _done(self, request: Request, action: str, user: User, **details: Any) -> None:
        """Log an action, without any key, and apply it to this gateway at once."""
        log.info("admin", action=action, tenant=shown(user.tenant), by=principal_of(request).shown, **details)
        await self._registry.refresh()

    async def _shown(self, tenant: str, **more: Any) -> Response:
        stored = await self._services.sessions.stored_bytes(tenant)
        user = await self._users.find(tenant)
        if user is None:  # erased meanwhile
            raise UserNotFoundError(shown(tenant))
        [total] = await self._users.usage.totals([user])
        return JSONResponse({**self._described(total, stored), **more}, headers=PRIVATE)

    def _described(self, user: User, stored: Mapping[str, int]) -> dict[str, Any]:
        return {
            "object": "user",
            **described(user, self._services.clock()),
            **allowance(self._services, user),
            "connections": self._registry.by_user[user.tenant],
            "storage_bytes": stored.get(user.tenant, 0),
        }


async def _body(request: Request, shape: type[S]) -> S:
    """Return the body as `shape`. Raises ApiError, also for unknown fields: a misspelled limit must not be ignored."""
    return await json_body(request, lambda fields: convert(fields, shape))
