"""Hosts without padding: a forward pass over texts laid end to end, for many modules at once."""
