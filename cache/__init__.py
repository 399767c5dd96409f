"""Storage that outlives an engine process: KV blocks, conversations, and the stores that hold them.

`__init__.pyi` lists the public names. Each is imported on first use, so that an engine process loads only the code that
fetches blocks, and not the code that stores conversations.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
