"""Demonstrations: recorded, written and read as LeRobot datasets, fed to training in an exact order."""
