"""Distances between sets of images, and feature extractors."""
