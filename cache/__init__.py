"""What outlives an engine: the room for KV blocks and the stores that keep them."""

from cache.errors import KeyMismatchError, StoreError, StoreFullError
from cache.keys import KeyRing
from cache.sqlite import Database

__all__ = ["Database", "KeyMismatchError", "KeyRing", "StoreError", "StoreFullError"]
