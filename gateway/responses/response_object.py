"""The response object of a request, as its first event shows it."""

from __future__ import annotations

from typing import Any

from gateway.conversations.continuation import InConversation
from gateway.conversations.prompt_builder import Context
from gateway.protocol.requests import ResponseCreate
from gateway.protocol.response_events import ResponseEvents
from gateway.responses.services import Services
from gateway.scheduling.fair_queue import Ticket


def response_events(
    services: Services, request: ResponseCreate, response_id: str, ticket: Ticket, context: Context
) -> ResponseEvents:
    """Return the builder of the events of a response to `request`, whose prompt is `context`."""
    sampling = services.model.sampling(request)
    extra: dict[str, Any] = {}
    if isinstance(request, InConversation):
        extra["conversation"] = {"id": request.conversation.id}
    if request.truncation == "auto":
        extra["samovar"] = {"prompt_turns": context.turns}
    return ResponseEvents(
        request,
        response_id=response_id,
        model=services.model.entry.name,
        clock=services.clock,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_output_tokens=ticket.demand.answer or services.settings.max_output_tokens,
        ignored=request.ignored,
        extra=extra,
    )
