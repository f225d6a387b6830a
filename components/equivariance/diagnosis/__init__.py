"""How equivariant a network is, what prevents equivariance, and what helps."""
