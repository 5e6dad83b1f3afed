"""Learning: one loop, exact resume, checkpoints that are policies."""
