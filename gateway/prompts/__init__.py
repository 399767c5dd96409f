"""Rendering and tokenizing in worker processes, so that no text, template or schema blocks the event loop."""
