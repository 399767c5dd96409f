"""The engine room: child processes that compute tokens, and the handles by which the gateway keeps them.

What the room shows at its door stands in `__init__.pyi` and is loaded when it is first used, so that a child process
has in memory what computes tokens, and not what keeps child processes.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
