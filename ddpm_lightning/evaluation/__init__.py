"""Samples compared with data: what `evaluate.py` does, and what is kept of it."""
