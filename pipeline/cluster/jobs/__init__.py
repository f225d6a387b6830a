"""Runs stages as Ray jobs on a running cluster."""
