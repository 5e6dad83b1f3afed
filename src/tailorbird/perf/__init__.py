"""What a machine has, and what things cost on it."""
