"""Users, their API keys, and the limits on what they may ask for."""
