"""Figures during training."""
