"""What is compared at each layer: its field, its grid, its layout and its weight."""
