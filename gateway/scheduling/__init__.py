"""Scheduling: which request runs next, and on which engine."""
