"""The engines: child processes that compute tokens with llama.cpp, and the pool through which the gateway uses them.

`__init__.pyi` lists the public names. Each is imported on first use, so that a child process loads the modules that
compute tokens, and not those that manage child processes.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
