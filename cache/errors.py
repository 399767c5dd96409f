"""Everything that can go wrong in this room."""


class StoreError(Exception):
    """The disk did not take or give what was asked for: full, broken, or not a database."""
