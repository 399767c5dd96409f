"""From a fresh clone to a running command: what the machine lacks, the virtual environment, the progress of both."""
