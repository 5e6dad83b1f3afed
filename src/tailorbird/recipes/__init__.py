"""Runs that are known to work, each with what to expect of it."""
