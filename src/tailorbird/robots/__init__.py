"""Robots of other packages as the control loop sees one. No torch of ours."""
