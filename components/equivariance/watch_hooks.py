"""The hooks of a watched network, and the one call of it that is traced.

Hooks are objects that mean nothing anywhere else: a copy of the network, deep or pickled, made at any time, carries at
most a function without effect.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def without_effect(*arguments: object) -> None:
    """What a hook becomes in a copy."""


class Hook:
    """Calls ``act(*arguments)`` when its own module, and no copy or replica of it, is called."""

    def __init__(self, module: nn.Module, act: Callable[..., Tensor | None]) -> None:
        self.module = module
        self.act = act

    def __call__(self, module: nn.Module, *arguments: Any) -> Tensor | None:
        return self.act(*arguments) if module is self.module else None

    def __deepcopy__(self, memo: object) -> Callable[..., None]:
        return without_effect

    def __reduce__(self) -> str | tuple[Any, ...]:
        return (_hook_without_effect, ())


def _hook_without_effect() -> Callable[..., None]:
    return without_effect


class FirstCall:
    """Runs the next call of a network inside something of the watcher's, whatever ends it, and then takes itself away.

    In the place where `nn.Module.compile` keeps the compiled call, which copies of a module never share. The call runs
    as it is written, not compiled, also where the network was compiled.
    """

    def __init__(self, network: nn.Module, run: Callable[..., Any], is_wanted: Callable[[], bool]) -> None:
        self._network = network
        self._before = network._compiled_call_impl
        self._is_there = True

        @torch.compiler.disable
        def call(*arguments: Any, **keywords: Any) -> Any:
            if not is_wanted():
                return (self._before or network._call_impl)(*arguments, **keywords)
            self.remove()
            return run(*arguments, **keywords)

        network._compiled_call_impl = call

    def remove(self) -> None:
        """Let the network be called as before."""
        if not self._is_there:
            return
        self._is_there = False
        if self._before is None:
            self._network.__dict__.pop("_compiled_call_impl", None)
        else:
            self._network._compiled_call_impl = self._before
