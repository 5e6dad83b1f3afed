"""Scheduling between a robot that must not wait and a policy that takes its time. No torch."""
