"""Fault injection under load: the losses when engines, gateways, stores, disks, clocks and clients fail.

`python -m benchmarks.faults` injects the faults and prints one row for each; see `__main__.py`.
"""
