"""Changes of conversations, for the connections of their users that have subscribed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from gateway.protocol.events import Event

MAX_PENDING: Final = 256
"""Maximum changed conversations that wait for one client. Beyond it, the client has to read the list again."""


class Subscribed(Event, frozen=True, kw_only=True, tag="conversation.subscribed"):
    """The connection receives changes from now on."""


class Updated(Event, frozen=True, kw_only=True, tag="conversation.updated"):
    """A conversation was created or changed."""

    conversation: dict[str, Any]


class Deleted(Event, frozen=True, kw_only=True, tag="conversation.deleted"):
    """A conversation was deleted."""

    conversation_id: str


class ListChanged(Event, frozen=True, kw_only=True, tag="conversation.list_changed"):
    """More conversations changed than the client was sent; it has to read the list again."""


class Subscription:
    """The changes that one connection has not been sent yet: each conversation at most once."""

    def __init__(self, tenant: str, wake: Callable[[], None]) -> None:
        """`wake` is called when there is something to send."""
        self.tenant = tenant
        self._wake = wake
        self._pending: dict[str, bool] = {}
        self._lagging = False

    def add(self, conversation: str, *, gone: bool) -> None:
        """Note a change."""
        if conversation not in self._pending and len(self._pending) >= MAX_PENDING:
            self._pending.clear()
            self._lagging = True
        if not self._lagging:
            self._pending[conversation] = gone
        self._wake()

    def take(self) -> tuple[str, bool] | ListChanged | None:
        """Return the id of the next changed conversation, and whether it is gone; None if there is no change."""
        if self._lagging:
            self._lagging = False
            return ListChanged()
        if not self._pending:
            return None
        conversation = next(iter(self._pending))
        return conversation, self._pending.pop(conversation)


class Feed:
    """All subscriptions of one gateway."""

    def __init__(self) -> None:
        """Start without subscriptions."""
        self._subscriptions: dict[str, set[Subscription]] = {}

    def subscribe(self, tenant: str, wake: Callable[[], None]) -> Subscription:
        """Return a new subscription to the conversations of `tenant`."""
        subscription = Subscription(tenant, wake)
        self._subscriptions.setdefault(tenant, set()).add(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """End a subscription."""
        others = self._subscriptions.get(subscription.tenant, set())
        others.discard(subscription)
        if not others:
            self._subscriptions.pop(subscription.tenant, None)

    def publish(self, tenant: str, conversation: str, *, gone: bool) -> None:
        """Tell the tenant's subscribers that a conversation was changed or deleted."""
        for subscription in self._subscriptions.get(tenant, ()):
            subscription.add(conversation, gone=gone)
