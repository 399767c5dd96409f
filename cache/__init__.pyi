from .address import check_url, parse_address, shown
from .archive import Archive
from .block_deletions import BlockDeletions
from .blocks import BLOCK, Block, Chain
from .cache import Cache
from .circuit_breaker import CircuitBreaker, Operation
from .config import CacheConfig
from .copies import Copies
from .database import Database
from .documents import DocumentGoneError, Documents, Edit
from .errors import (
    KeyMismatchError,
    StoreDeniedError,
    StoreError,
    StoreFullError,
    StoreReadOnlyError,
    UnsupportedStoreError,
)
from .keys import KeyRing
from .ledger import Ledger
from .locks import supports_locks
from .prefixes import PrefixCache, Stored
from .records import Progress
from .redis import RedisStore
from .snapshot import Snapshot
from .store import Store, open_store

__all__ = [
    "BLOCK",
    "Archive",
    "Block",
    "BlockDeletions",
    "Cache",
    "CacheConfig",
    "Chain",
    "CircuitBreaker",
    "Copies",
    "Database",
    "DocumentGoneError",
    "Documents",
    "Edit",
    "KeyMismatchError",
    "KeyRing",
    "Ledger",
    "Operation",
    "PrefixCache",
    "Progress",
    "RedisStore",
    "Snapshot",
    "Store",
    "StoreDeniedError",
    "StoreError",
    "StoreFullError",
    "StoreReadOnlyError",
    "Stored",
    "UnsupportedStoreError",
    "check_url",
    "open_store",
    "parse_address",
    "shown",
    "supports_locks",
]
