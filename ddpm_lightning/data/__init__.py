"""Datasets, streams and loaders."""
