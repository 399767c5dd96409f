"""The asyncio front: everything between a socket and the engine pool."""
