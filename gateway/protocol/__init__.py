"""The Responses protocol without sockets: messages in, events out. It knows neither engine nor connection."""
