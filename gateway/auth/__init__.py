"""Users, their API keys, rate limits, and penalties."""
