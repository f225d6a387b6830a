"""Bounds that a champion must keep, beside the score: ``register.largest_...`` of params.yaml."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.config.schema import Params

if TYPE_CHECKING:
    from torch import nn


def broken_gate(params: Params, network: nn.Module) -> str | None:
    """The first bound that a network exceeds, as a reason in one line; None if it keeps all of them.

    The equivariance error is measured on the validation images. The cost is counted, so it is the same on all machines.

    Args:
        params: checked params.
        network: in evaluation mode.
    """
    bounds = params.register_
    if (most := bounds.largest_multiply_adds_per_pixel) is not None:
        from components.evaluation.model_cost import count_multiply_adds

        if (cost := count_multiply_adds(network)) > most:
            return f"{cost:.0f} multiply-adds a pixel, register.largest_multiply_adds_per_pixel is {most:g}"
    if (largest := bounds.largest_equivariance_error) is not None:
        from pipeline.stages.comparison import Validation

        error = Validation(params).equivariance_error(network)
        if not error <= largest:
            return f"equivariance error {error:.4f} on validation, register.largest_equivariance_error is {largest:g}"
    return None


__all__ = ["broken_gate"]
