"""The newest official clients, installed apart from the gateway's packages, against a gateway at default settings."""
