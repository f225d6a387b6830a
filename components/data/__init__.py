"""Data on disk: image files, packed images, and the sampler that draws training pairs from them."""
