"""What a robot's control loop does, while it does it: on the terminal, in Perfetto, in Rerun."""
