"""Settings, the machine's limits (memory, processors), service manager notification, and background tasks."""
