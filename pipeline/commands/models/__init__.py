"""The commands ``eqreg models``; importing this imports none of them."""
