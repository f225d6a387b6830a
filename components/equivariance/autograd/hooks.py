"""The hooks of a recorded network, and the one call of it that is traced.

A hook works only on the module that it was made for. In a copy of the network (deep or pickled, made at any time) it
becomes at most a function without effect.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..compat import call_of, set_call, uncompiled


def without_effect(*arguments: object) -> None:
    """Do nothing: this function replaces a hook in a copy."""


class Hook:
    """Calls ``act(*arguments)`` when its own module is called, but not when a copy or replica of the module is."""

    def __init__(self, module: nn.Module, act: Callable[..., Tensor | None]) -> None:
        self.module = module
        self.act = act

    def __call__(self, module: nn.Module, *arguments: Any) -> Tensor | None:
        """Call `act` if the module is the hook's own."""
        return self.act(*arguments) if module is self.module else None

    def __deepcopy__(self, memo: object) -> Callable[..., None]:
        return without_effect

    def __reduce__(self) -> str | tuple[Any, ...]:
        return (_hook_without_effect, ())


def _hook_without_effect() -> Callable[..., None]:
    return without_effect


class FirstCall:
    """Runs one call of a network through a function of the recorder: the next call for which `is_wanted` is true.

    It removes itself before that call, so an error in the call leaves nothing behind. Until then it is stored where
    `nn.Module.compile` keeps the compiled call; copies of a module never share this attribute. The call runs
    uncompiled, even if the network was compiled.
    """

    def __init__(self, network: nn.Module, run: Callable[..., Any], is_wanted: Callable[[], bool]) -> None:
        self._network = network
        self._before = call_of(network)
        self._is_there = True

        @torch.compiler.disable
        def call(*arguments: Any, **keywords: Any) -> Any:
            if not is_wanted():
                return (self._before or uncompiled(network))(*arguments, **keywords)
            self.remove()
            return run(*arguments, **keywords)

        set_call(network, call)

    def remove(self) -> None:
        """Restore the previous call of the network."""
        if not self._is_there:
            return
        self._is_there = False
        set_call(self._network, self._before)
