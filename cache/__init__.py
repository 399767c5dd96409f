"""What outlives an engine: the room for KV blocks and the stores that keep them."""

from cache.database import Database
from cache.errors import KeyMismatchError, StoreError, StoreFullError
from cache.keys import KeyRing
from cache.store import Store, check_url, open_store, shown

__all__ = [
    "Database",
    "KeyMismatchError",
    "KeyRing",
    "Store",
    "StoreError",
    "StoreFullError",
    "check_url",
    "open_store",
    "shown",
]
