"""Faults under load: what a conversation loses when engines, gateways, stores, disks, clocks and clients fail.

`python -m benchmarks.faults` runs them and prints one row for each; see `__main__.py`.
"""
