"""Conversations: stored turns, turns with `store: false`, and the prompts built from them."""
