"""Networks whose layers attend: over the pixels of a window, or over channels."""
