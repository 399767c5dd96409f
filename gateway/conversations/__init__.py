"""What was said: stored turns, unstored ones, and how a prompt is built from them."""
