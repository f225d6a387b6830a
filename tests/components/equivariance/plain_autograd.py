"""The penalty written out with plain autograd: what the regulariser must give in every context.

The network's layers are looked at with ordinary hooks that hand on a clone, so that nothing overwrites what was seen;
the residual, its size and the mean over calls and layers are written out, and autograd does the rest.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from components.equivariance import PairedBatch, field_residual, pair_scale, relative_mse

Task = Callable[[Tensor, Tensor], Tensor]


def mean_square_error(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().mean()


def layer_outputs(network: nn.Module, run: Callable[[], Tensor]) -> tuple[Tensor, dict[str, list[Tensor]]]:
    """The output of a run, and the outputs of all convolutions and linear layers in order of their first call."""
    seen: dict[str, list[Tensor]] = {}

    def look(name: str) -> Callable[..., Tensor]:
        def hook(module: nn.Module, arguments: object, output: Tensor) -> Tensor:
            seen.setdefault(name, []).append(output)
            return output.clone()

        return hook

    layers = {n: m for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)}
    handles = [module.register_forward_hook(look(name)) for name, module in layers.items()]
    try:
        return run(), seen
    finally:
        for handle in handles:
            handle.remove()


def penalty_of(outputs: dict[str, list[Tensor]], batch: PairedBatch, last: str | None = None) -> Tensor:
    """``mean_l mean_calls size(f' - rho(n) f)``, every layer regular but the last, which is trivial; ``(B, C, H, W)``.

    Left out are hidden layers whose channels do not divide by 4.
    """
    last = last or list(outputs)[-1]
    pairs, layers = batch.num_pairs, []
    for name, calls in outputs.items():
        if calls[0].shape[1] % 4 and name != last:
            continue
        sizes = []
        for maps in calls:
            originals, transformed = maps[:pairs], maps[pairs : 2 * pairs]
            residual = field_residual(originals, transformed, batch.element, "trivial" if name == last else "regular")
            sizes.append(relative_mse(residual, pair_scale(originals, transformed).detach()))
        layers.append(torch.stack(sizes).mean())
    return torch.stack(layers).mean()


def plain_step(
    network: nn.Module, batch: PairedBatch, weight: float = 0.7, task: Task = mean_square_error
) -> tuple[Tensor, dict[str, Tensor]]:
    """The penalty and the gradients of all parameters of ``task + weight * penalty``, of a copy of the network."""
    twin = copy.deepcopy(network)
    output, outputs = layer_outputs(twin, lambda: twin(batch.inputs))
    penalty = penalty_of(outputs, batch)
    (task(output, batch.targets) + weight * penalty).backward()
    return penalty.detach(), gradients_of(twin)


def gradients_of(network: nn.Module) -> dict[str, Tensor]:
    """Of all parameters that have one."""
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
