"""Tests in one process, without a gateway or a network: fast enough to run after every change."""
