"""Editing: changes of given pictures, each a few lines over a Canvas."""
