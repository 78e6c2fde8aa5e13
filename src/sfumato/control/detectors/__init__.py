"""Detectors: what makes hints for controls. The folder is the registry."""
