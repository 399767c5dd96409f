"""The middleware that a request passes before it reaches a route, from the outermost to the innermost."""

from __future__ import annotations

from typing import Any

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from gateway.auth.registry import UserRegistry
from gateway.config.settings import LOOPBACK, Settings
from gateway.observability.metrics import Metrics
from gateway.protocol.hints import HEADER
from gateway.transport.authentication import Authentication
from gateway.transport.proxies import Proxies
from gateway.transport.request_context import RequestContext
from gateway.transport.trusted_hosts import TrustedHosts


def middleware(settings: Settings, registry: UserRegistry, metrics: Metrics) -> list[Middleware]:
    """Return the gateway's middleware, outermost first."""
    hosts = [*LOOPBACK, settings.host, *settings.allowed_hosts]
    origins = settings.allowed_origins
    return [
        Middleware(RequestContext, refused=metrics.refused),
        Middleware(Proxies, trusted=settings.trusted_proxies),
        Middleware(TrustedHosts, hosts=hosts, origins=origins),
        *([Middleware(CORSMiddleware, **_cors(origins))] if origins else []),
        Middleware(
            Authentication,
            registry=registry,
            per_user=settings.connections_per_user,
            per_address=settings.connections_per_address,
        ),
    ]


def _cors(origins: list[str]) -> dict[str, Any]:
    return {
        "allow_origins": origins,
        "allow_methods": ["GET", "POST", "DELETE"],
        "allow_headers": ["*"],
        "expose_headers": ["x-request-id", "retry-after", HEADER],
    }
