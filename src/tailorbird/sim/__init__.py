"""Simulated robots: Meta-World behind gymnasium, its scripted experts, off-screen cameras. Extra `[sim]`."""
