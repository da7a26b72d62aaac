"""Evaluation of samples against data, as in `evaluate.py`."""
