"""Networks that are exactly equivariant by construction, out of group convolutions."""
