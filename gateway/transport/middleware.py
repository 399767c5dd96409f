"""The middleware that a request passes before it reaches a route, from the outermost to the innermost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute

from gateway.auth.registry import UserRegistry
from gateway.config.setting_types import LOOPBACK, is_loopback
from gateway.config.settings import Settings
from gateway.observability.metrics import Metrics
from gateway.protocol.hints import HEADER
from gateway.transport.authentication import Authentication
from gateway.transport.origins import Origins
from gateway.transport.paths import Options, Paths
from gateway.transport.proxies import Proxies
from gateway.transport.request_context import RequestContext
from gateway.transport.trusted_hosts import TrustedHosts


def middleware(
    settings: Settings, registry: UserRegistry, metrics: Metrics, routes: Sequence[BaseRoute]
) -> list[Middleware]:
    """Return the gateway's middleware, outermost first, for an app with `routes`."""
    hosts = [*LOOPBACK, settings.host, *settings.allowed_hosts]
    origins = settings.allowed_origins
    return [
        Middleware(RequestContext, refused=metrics.refused),
        Middleware(Paths, routes=routes, root_path=settings.root_path),
        Middleware(Proxies, trusted=settings.trusted_proxies),
        Middleware(TrustedHosts, hosts=hosts, origins=origins, exposed=not is_loopback(settings.host)),
        *([Middleware(CORSMiddleware, **_cors(origins))] if origins else []),
        Middleware(Options, routes=routes),
        Middleware(
            Authentication,
            registry=registry,
            per_user=settings.connections_per_user,
            per_address=settings.connections_per_address,
        ),
    ]


def _cors(origins: list[str]) -> dict[str, Any]:
    return {
        "allow_origin_regex": Origins(origins).pattern,
        "allow_methods": ["GET", "HEAD", "POST", "DELETE"],
        "allow_headers": ["*"],
        "allow_private_network": True,
        "expose_headers": ["x-request-id", "retry-after", HEADER],
    }
