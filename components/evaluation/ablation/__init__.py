"""Comparison of control arms that were trained with the same seeds."""
