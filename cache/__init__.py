"""What outlives an engine: the room for KV blocks and the stores that keep them."""

from cache.errors import StoreError
from cache.sqlite import Database

__all__ = ["Database", "StoreError"]
