"""What outlives an engine: the room for KV blocks and the stores that keep them."""

from cache.blocks import BLOCK, Block, Chain
from cache.config import CacheConfig
from cache.database import Database
from cache.errors import KeyMismatchError, StoreError, StoreFullError
from cache.guarded import Guarded, Operation
from cache.keys import KeyRing
from cache.prefixes import PrefixCache, Stored
from cache.store import Store, check_url, open_store, shown

__all__ = [
    "BLOCK",
    "Block",
    "CacheConfig",
    "Chain",
    "Database",
    "Guarded",
    "KeyMismatchError",
    "KeyRing",
    "Operation",
    "PrefixCache",
    "Store",
    "StoreError",
    "StoreFullError",
    "Stored",
    "check_url",
    "open_store",
    "shown",
]
