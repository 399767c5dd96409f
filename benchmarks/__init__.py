"""Benchmarks, which print measurements and assert nothing."""
