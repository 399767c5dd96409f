"""What outlives an engine: the room for KV blocks and the stores that keep them."""
