"""The Responses protocol without I/O: messages in, events out. It depends on neither engine nor connection."""
