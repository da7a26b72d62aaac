"""Distances between two sets of images, and the features that they are computed from."""
