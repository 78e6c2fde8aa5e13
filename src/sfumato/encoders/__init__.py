"""Encoders: what turns text and pictures into states that conditions are made of."""
