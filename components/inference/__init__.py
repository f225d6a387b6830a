"""Restoration of images of any size with a network; this package does not import other packages of the project."""
