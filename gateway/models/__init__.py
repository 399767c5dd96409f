"""Model files: where they come from, what they state, and what is served from them."""
