"""Conversations to learn from: published sets and the user's own, each row read where it lies."""
