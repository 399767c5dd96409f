"""Sockets around the protocol: WebSocket and HTTP."""
