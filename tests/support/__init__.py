"""What tests of several tiers share: servers with a handle, a tiny model, page helpers, fixtures."""
