"""Everything that can go wrong in this room."""


class StoreError(Exception):
    """The store did not take or give what was asked for: away, slow, broken, or not what it should be."""


class StoreFullError(StoreError):
    """The store can be read but takes nothing more for now: disk or memory full, or read-only."""


class KeyMismatchError(StoreError):
    """What lies there was sealed under a key that this house does not have."""


class StoreDeniedError(StoreFullError):
    """The store's user may not run a command."""


class StoreReadOnlyError(StoreError):
    """The store is a replica: it can be read and takes no writes, as after a failover."""


class UnsupportedStoreError(StoreError):
    """What answers can never be used: a Redis Cluster."""
