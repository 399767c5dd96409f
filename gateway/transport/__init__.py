"""The network side of the protocol: WebSocket, HTTP, server-sent events and middleware."""
