"""Readers of untrusted files (images, CT slices, arrays, labelled images); an invalid file is rejected by name."""
