"""Metrics, logs and counts of what goes on."""
