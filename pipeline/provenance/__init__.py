"""The provenance of results: commit, code, data and params."""
