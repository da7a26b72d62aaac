"""Figures of the model while it trains."""
