"""Metrics, logs, and counts of active conversations."""
