"""Which request runs next, and in which engine."""
