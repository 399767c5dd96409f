"""The published document: whole, true, and nothing made from it brings the gateway down."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from schemathesis.specs.openapi.schemas import OpenApiSchema
from schemathesis.transport import SerializationContext
from schemathesis.transport.serialization import serialize_binary

from gateway.app import build
from gateway.config.settings import load
from gateway.transport.openapi import document
from gateway.transport.trusted_hosts import DOCUMENT_TYPES
from tests.support.running import Gateway

PAGES = {"/", "/page.json", "/usage", "/admin", "/monitor", "/monitor/metrics", "/monitor/history", "/monitor/users"}
"""Routes for people and the chat page, which the document leaves out."""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Gateway]:
    limits = {"messages_per_minute": 1_000_000, "context": 256}
    with Gateway(tmp_path_factory.mktemp("openapi"), model=tiny_model, **limits) as running:
        yield running


async def test_every_route_is_in_the_document_and_nothing_else(tmp_path: Path, tiny_model: Path) -> None:
    app, responses = build(load({"model": str(tiny_model), "state_dir": str(tmp_path)}))
    served = {
        (getattr(route, "path_format", ""), method.lower())
        for route in app.routes
        for method in getattr(route, "methods", None) or ()
        if method != "HEAD" and getattr(route, "path", "") not in PAGES
    }
    described = {(path, method) for path, item in document()["paths"].items() for method in item}
    responses.services.sessions.close()
    await responses.services.registry.close()
    assert served == described


def test_the_document_is_served_without_a_key(gateway: Gateway) -> None:
    assert gateway.get("/openapi.json").json() == document()


@schemathesis.serializer(*DOCUMENT_TYPES)
def serialize_document(_: SerializationContext, value: Any) -> bytes:
    """Send a document as the bytes that it is."""
    return serialize_binary(value)


CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
"""All but those that want the document to say what makes no sense together, such as no input and nothing to go on."""
OPERATIONS = [(path, method) for path, item in document()["paths"].items() for method in item]


@pytest.fixture(scope="module")
def schema(gateway: Gateway) -> OpenApiSchema:
    """The document as schemathesis reads it, which takes a second."""
    return schemathesis.openapi.from_url(f"{gateway.url}/openapi.json")


def cases(schema: OpenApiSchema, path: str, method: str, mode: GenerationMode) -> st.SearchStrategy[Any]:
    """Requests to one operation: as the document wants them, or as it does not."""
    return schema[path][method].as_strategy(generation_mode=mode)


quickly = settings(max_examples=10, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@pytest.mark.slow
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_responses_match_the_document(schema: OpenApiSchema, path: str, method: str) -> None:
    @quickly
    @given(cases(schema, path, method, GenerationMode.POSITIVE))
    def holds(case: Any) -> None:
        case.call_and_validate(timeout=30, checks=CHECKS)

    holds()


@pytest.mark.slow
@pytest.mark.parametrize(("path", "method"), [one for one in OPERATIONS if one[0].startswith("/v1/responses")])
def test_nothing_sent_makes_the_gateway_fail(schema: OpenApiSchema, path: str, method: str) -> None:
    @quickly
    @given(cases(schema, path, method, GenerationMode.NEGATIVE))
    def holds(case: Any) -> None:
        assert case.call(timeout=30).status_code < 500

    holds()


def test_every_operation_documents_wrong_methods_and_faults_of_the_gateway(gateway: Gateway) -> None:
    for path, item in document()["paths"].items():
        response = httpx.request("PATCH", gateway.url + path, timeout=10)
        assert response.status_code == 405
        for operation in item.values():
            assert {"405", "500"} <= operation["responses"].keys()
