"""The sources of a data set's files, and the download from them."""
