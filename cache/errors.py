"""The errors of the package `cache`."""


class StoreError(Exception):
    """An operation of a store failed: the store is unavailable, slow, broken, or not a store."""


class StoreFullError(StoreError):
    """The store can be read but accepts no writes for now: disk or memory is full, or the file is read-only."""


class KeyMismatchError(StoreError):
    """The stored data was sealed under a key that is not in the key ring."""


class StoreDeniedError(StoreFullError):
    """The Redis user has no permission to run a command."""


class StoreReadOnlyError(StoreError):
    """The store is a replica, as after a failover: it can be read but accepts no writes."""


class UnsupportedStoreError(StoreError):
    """The server can never be used: it is a Redis Cluster."""
