"""What outlives an engine: the room for KV blocks and the stores that keep them.

What the room shows at its door stands in `__init__.pyi` and is loaded when it is first used, so that an engine has in
memory what fetches blocks, and not what keeps conversations.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
