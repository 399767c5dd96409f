"""The boards of Grafana, made by code: `make board` writes `dashboards/` anew."""
