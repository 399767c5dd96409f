"""Tests of installation, containers, systemd, load balancers and Grafana."""
