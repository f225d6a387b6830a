"""The commands of eqreg that are not stages."""
