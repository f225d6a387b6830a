"""Registered models: their versions, the history of champions, and model cards."""
