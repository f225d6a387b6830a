"""The parts of ``eqreg restore``: which files, where they are, what is done already, and who restores them."""
