"""Measurements that print what they found and assert nothing."""
