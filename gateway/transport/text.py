"""Raw text over HTTP: completions, tokenization, and the answer to requests for embeddings."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gateway.auth.principal import principal_of
from gateway.errors import InvalidRequestError, UnsupportedParameterError
from gateway.protocol.requests import convert
from gateway.protocol.shapes import whole_numbers, with_numbers
from gateway.protocol.text import TextCompletion, Token, read_text
from gateway.responses.registry import Responses
from gateway.transport.bodies import json_body, with_errors
from gateway.transport.chat import complete

BATCH: Final = 4_096
"""Tokens that are converted in one go, in at most 20 ms. A body of 1 MiB has room for a million tokens, whose
conversion takes seconds, and the event loop serves all clients."""


class TokenizeCreate(msgspec.Struct, frozen=True):
    """The body of a request to tokenize, as llama-server's."""

    content: str
    add_special: bool = False
    """Whether BOS comes first, if the model requires one."""
    parse_special: bool = True
    """Whether names of control tokens in the text become these tokens."""
    with_pieces: bool = False
    """Whether to return each token's text with its id."""


class DetokenizeCreate(msgspec.Struct, frozen=True):
    """The body of a request to detokenize, as llama-server's."""

    tokens: list[Token]


class EmbeddingsCreate(msgspec.Struct, frozen=True):
    """The body of a request for embeddings, as OpenAI's."""

    input: str | list[Any]
    model: str | None = None


class TextRoutes:
    """The routes for raw text."""

    def __init__(self, responses: Responses) -> None:
        """Serve `responses`."""
        self._responses = responses
        self._services = responses.services

    @property
    def routes(self) -> list[BaseRoute]:
        """Return the routes for the app."""
        return [
            Route("/v1/completions", with_errors(self.complete), methods=["POST"]),
            Route("/v1/tokenize", with_errors(self.tokenize), methods=["POST"]),
            Route("/v1/detokenize", with_errors(self.detokenize), methods=["POST"]),
            Route("/v1/embeddings", with_errors(self.embed), methods=["POST"]),
        ]

    async def complete(self, request: Request) -> Response:
        """Continue a raw prompt; closing the request cancels it."""
        strict_fields = self._services.settings.strict_fields
        create, body = await json_body(request, partial(read_text, strict_fields=strict_fields))
        if isinstance(create.prompt, list):
            self._check_tokens(create.prompt, "prompt")
        usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        make = partial(TextCompletion, logprobs=body.logprobs is not None, usage=usage)
        return await complete(self._responses, request, create, make, stream=bool(body.stream))

    async def tokenize(self, request: Request) -> Response:
        """Return the tokens of a text."""
        body = await json_body(request, lambda fields: convert(with_numbers(fields, TokenizeCreate), TokenizeCreate))
        ids = await self._services.prompt_builder.tokenize(
            body.content, user=principal_of(request).user, special=body.parse_special, bos=body.add_special
        )
        if not body.with_pieces:
            return _json(msgspec.json.encode({"tokens": ids}))
        shown = self._services.model.tokens.shown
        pieces = await joined(ids, lambda token: _with_piece(token, shown(token)), b",")
        return _json(b'{"tokens":[%b]}' % pieces)

    async def detokenize(self, request: Request) -> Response:
        """Return the text of tokens; incomplete characters become U+FFFD."""
        body = await json_body(request, _detokenize_fields)
        self._check_tokens(body.tokens, "tokens")
        text = await joined(body.tokens, self._services.model.tokens.shown)
        return _json(msgspec.json.encode({"content": text.decode(errors="replace")}))

    async def embed(self, request: Request) -> Response:
        """Refuse: engines compute no embeddings."""
        await json_body(request, lambda fields: convert(fields, EmbeddingsCreate))
        name = self._services.model.entry.name
        raise UnsupportedParameterError(
            f"model: {name} is a chat model, and Samovar computes no embeddings; send these requests to another server",
            param="model",
        )

    def _check_tokens(self, tokens: Sequence[int], param: str) -> None:
        """Raise InvalidRequestError if an id is not in the vocabulary."""
        size = self._services.model.tokens.size
        if max(tokens, default=0) >= size:
            raise InvalidRequestError(f"{param}: token ids range from 0 to {size - 1}", param=param)


async def joined(tokens: Sequence[int], convert: Callable[[int], bytes], separator: bytes = b"") -> bytes:
    """Return what `convert` returns for each token, joined. Other tasks run between batches of tokens."""
    converted, parts = cache(convert), []
    for start in range(0, len(tokens), BATCH):
        parts.append(separator.join(map(converted, tokens[start : start + BATCH])))
        await asyncio.sleep(0)
    return separator.join(parts)


def _detokenize_fields(fields: dict[str, Any]) -> DetokenizeCreate:
    return convert({**fields, "tokens": whole_numbers(fields.get("tokens"))}, DetokenizeCreate)


def _with_piece(token: int, piece: bytes) -> bytes:
    """Return a token as JSON, with its text, or with its bytes if they are no whole characters."""
    try:
        return msgspec.json.encode({"id": token, "piece": piece.decode()})
    except UnicodeDecodeError:
        return msgspec.json.encode({"id": token, "piece": list(piece)})


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
