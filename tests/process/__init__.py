"""Tests that start real processes: engines, gateways, redis-servers, clients."""
