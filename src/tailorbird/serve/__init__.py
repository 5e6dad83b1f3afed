"""Policies behind a socket: limits, sessions, batches."""
