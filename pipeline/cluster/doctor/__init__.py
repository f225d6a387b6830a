"""Checks whether a cluster can be used for training."""
