"""The penalty of a training step, and its gradient in the backward pass."""
