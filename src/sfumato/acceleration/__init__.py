"""Accelerations: what makes a walk cheaper, one a file."""
