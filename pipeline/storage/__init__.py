"""Persistent storage: artifact stores, checkpoints, staged packs and databases."""
