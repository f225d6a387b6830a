"""Search spaces in tune_spaces/*.yaml: the distribution of each searched key, read and checked."""
