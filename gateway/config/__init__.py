"""The gateway's settings, and what this machine offers: memory, processors, a service manager."""
