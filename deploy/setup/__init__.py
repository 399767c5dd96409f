"""Set-up from a fresh clone: missing Debian packages, the virtual environment, and the display of progress."""
