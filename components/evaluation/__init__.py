"""Evaluation of restored images: metrics, confidence intervals, figures and the classical baselines.

This package imports nothing here. Code that computes a metric therefore does not load figures, classical methods and
networks.
"""
