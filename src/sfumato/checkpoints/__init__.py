"""Weights in files: strict, hardened against damage and malice, never unpickled."""
