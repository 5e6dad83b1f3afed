"""Weights and settings as files: our own layout, and other projects' names for the same tensors."""
