"""Preparation of a request: its prompt and its limits. All validation that needs the gateway's state happens here."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from cache import StoreError
from gateway.auth.principal import Principal
from gateway.conversations.histories import Known
from gateway.conversations.prompt_builder import Context, Previous
from gateway.conversations.references import check_outputs, resolve
from gateway.conversations.turns import Turn
from gateway.conversations.unstored import Unstored
from gateway.errors import (
    InvalidRequestError,
    PreviousResponseNotFoundError,
    StoreUnavailableError,
)
from gateway.protocol.hints import Hints
from gateway.protocol.items import Item, input_item, messages
from gateway.protocol.requests import ResponseCreate
from gateway.responses.services import Services, new_id
from gateway.scheduling.placement import Demand, prefixes


async def prepare(
    services: Services, request: ResponseCreate, principal: Principal, unstored: Unstored
) -> tuple[Context, Demand]:
    """Validate a request; return its prompt and what it needs. Raises ApiError."""
    _check(services, request)
    previous = await _previous(services, request, principal, unstored)
    known = None if request.is_stored or request.is_ephemeral else _known(services, request, principal)
    references = await _references(services, request, previous, principal, unstored)
    services.dispatcher.expect()
    context = await services.prompt_builder.context(
        request, previous, known, now=int(services.clock()), user=principal.user, references=references
    )
    limit = min(
        request.max_output_tokens or services.settings.max_output_tokens, services.model.context - len(context.ids)
    )
    demand = Demand(
        len(context.ids),
        0 if request.encodes_only else limit,
        known=0 if request.is_reproducible else context.known,
        previous=request.previous_response_id or (known.response if known else None),
        stored=not (request.is_ephemeral or request.is_reproducible) and services.pool.stores,
        prefixes=() if request.is_reproducible else prefixes(context.ids, principal.tenant, context.public),
    )
    return context, demand


def with_ignored(request: ResponseCreate, paths: Sequence[str], *, strict: bool) -> ResponseCreate:
    """Return the request with more fields that have no effect. Raises UnsupportedParameterError if `strict`."""
    hints = Hints(strict=strict)
    for path in (*request.ignored, *paths):
        hints.add(path)
    return replace(request, ignored=hints.ignored)


async def count(services: Services, request: ResponseCreate, principal: Principal) -> int:
    """Return the number of tokens of the request's prompt, even if that is too long. Raises ApiError."""
    _check(services, request)
    unstored = Unstored(services.pool.forget)
    previous = await _previous(services, request, principal, unstored)
    references = await _references(services, request, previous, principal, unstored)
    return await services.prompt_builder.count(
        request, previous, now=int(services.clock()), user=principal.user, references=references
    )


def _known(services: Services, request: ResponseCreate, principal: Principal) -> Known | None:
    """Return the known token history of a conversation whose client sends all of it."""
    new = messages([input_item(item, new_id) for item in request.items])
    return services.histories.find(principal.tenant, request, new)


def _check(services: Services, request: ResponseCreate) -> None:
    """Check the request against the served model. Raises ModelNotFoundError or InvalidRequestError."""
    services.model.check_name(request.model)
    if any(not 0 <= token < services.model.tokens.size for token in request.logit_bias or {}):
        raise InvalidRequestError(
            f"logit_bias: token ids range from 0 to {services.model.tokens.size - 1}", param="logit_bias"
        )


async def _previous(
    services: Services, request: ResponseCreate, principal: Principal, unstored: Unstored
) -> Previous | None:
    previous = request.previous_response_id
    if previous is None:
        return None
    found = await _load(services, previous, principal, unstored)
    if found is None:
        raise PreviousResponseNotFoundError(
            f"there is no response {previous}; send the whole conversation instead", param="previous_response_id"
        )
    return found


async def _load(services: Services, response: str, principal: Principal, unstored: Unstored) -> Previous | None:
    try:
        return unstored.get(response) or await services.sessions.get(principal.tenant, response)
    except StoreError as error:
        raise StoreUnavailableError(f"the conversation cannot be read: {error}") from error


async def _references(
    services: Services, request: ResponseCreate, previous: Previous | None, principal: Principal, unstored: Unstored
) -> dict[str, Item]:
    """Return the items that the request refers to, by id. Raises ApiError."""

    async def load(response: str) -> Turn | None:
        found = await _load(services, response, principal, unstored)
        return None if found is None else found[0]

    turn = None if previous is None else previous[0]
    references = await resolve(request, turn, load)
    try:
        check_outputs(request, turn, references)
    except InvalidRequestError:
        # As at OpenAI: with `store: false`, a failed continuation ends the conversation.
        unstored.remove(request.previous_response_id or "")
        raise
    return references
