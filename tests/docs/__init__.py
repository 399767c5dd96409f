"""Tests that run what README.md and docs/ show, and compare them with the code."""
