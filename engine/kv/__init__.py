"""The KV of one engine. The engine's other modules use `KVCache`, and `CachedSequence` as the type of its sequences."""
