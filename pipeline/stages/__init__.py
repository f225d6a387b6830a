"""The six stages of dvc.yaml and their helper modules."""
