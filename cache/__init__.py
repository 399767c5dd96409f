"""What outlives an engine: the room for KV blocks and the stores that keep them."""

from cache.archive import Archive, Progress
from cache.blocks import BLOCK, Block, Chain
from cache.config import Cache, CacheConfig
from cache.database import Database
from cache.errors import KeyMismatchError, StoreError, StoreFullError
from cache.guarded import Guarded, Operation
from cache.keys import KeyRing
from cache.ledger import Ledger
from cache.prefixes import PrefixCache, Stored
from cache.redis import RedisStore
from cache.store import Store, check_url, open_store, shown

__all__ = [
    "BLOCK",
    "Archive",
    "Block",
    "Cache",
    "CacheConfig",
    "Chain",
    "Database",
    "Guarded",
    "KeyMismatchError",
    "KeyRing",
    "Ledger",
    "Operation",
    "PrefixCache",
    "Progress",
    "RedisStore",
    "Store",
    "StoreError",
    "StoreFullError",
    "Stored",
    "check_url",
    "open_store",
    "shown",
]
