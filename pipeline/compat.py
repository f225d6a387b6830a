"""Private parts of Ray and torch that eqreg uses, tested with Ray 2.60 and torch 2.13.

No other module of ``pipeline`` names any.

``from pipeline.compat import NAME`` returns a part; ``PARTS`` lists the names. A part is imported only when it is
requested, because the process of Ray Train's controller must not import torch. If the installed library lacks the part,
the command ends with an error that names the version that has it.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from pipeline.errors import UserError

_TRIED = {"ray": "Ray 2.60", "torch": "torch 2.13"}


@dataclass(frozen=True)
class Part:
    """A private part of a library.

    Attributes:
        module: the module that defines it.
        name: its name in the module; "" for the module itself.
        reason: what eqreg needs it for; the public interface does not offer this.
    """

    module: str
    name: str
    reason: str


_TRAIN = "ray.train.v2._internal"

PARTS = {
    "AuthenticationTokenLoader": Part("ray._raylet", "AuthenticationTokenLoader", "whether there is a token to send"),
    "ControllerCallback": Part(
        f"{_TRAIN}.execution.callback", "ControllerCallback", "to hear that workers are started"
    ),
    "DatasetsCallback": Part(f"{_TRAIN}.callbacks.datasets", "DatasetsCallback", "to start no process for data sets"),
    "DefaultFailurePolicy": Part(
        f"{_TRAIN}.execution.failure_handling", "DefaultFailurePolicy", "not to try again where a disk is full"
    ),
    "ENABLE_PREEMPTION_WATCHER": Part(
        f"{_TRAIN}.constants", "ENABLE_PREEMPTION_WATCHER_ENV_VAR", "to start no process that watches for lost nodes"
    ),
    "ENV_VARS_TO_PROPAGATE": Part(f"{_TRAIN}.constants", "ENV_VARS_TO_PROPAGATE", "to hand RAY_ADDRESS to trials"),
    "FailureDecision": Part(f"{_TRAIN}.execution.failure_handling", "FailureDecision", "as DefaultFailurePolicy"),
    "FixedScalingPolicy": Part(f"{_TRAIN}.execution.scaling_policy", "FixedScalingPolicy", "to ask for no nodes"),
    "GcsClient": Part("ray._raylet", "GcsClient", "where a cluster's dashboard is, without joining the cluster"),
    "PlacementGroupCleanerCallback": Part(
        f"{_TRAIN}.callbacks.placement_group_callback", "PlacementGroupCleanerCallback", "to start no cleaner"
    ),
    "TrainingFramework": Part(f"{_TRAIN}.util", "TrainingFramework", "a backend has to name its framework"),
    "WorkerGroupCallback": Part(f"{_TRAIN}.execution.callback", "WorkerGroupCallback", "workers need no data sets"),
    "aoti_compile_and_package": Part(
        "torch._inductor", "aoti_compile_and_package", "AOTInductor has no other interface; torch documents this one"
    ),
    "aoti_load_package": Part("torch._inductor", "aoti_load_package", "as aoti_compile_and_package"),
    "bootstrap_address": Part("ray._private.services", "canonicalize_bootstrap_address", "the Ray of this machine"),
    "constants": Part(
        "ray._private.ray_constants", "", "to listen on the loopback address alone; where a dashboard is"
    ),
    "enable_token": Part(
        "ray._private.authentication.authentication_token_setup",
        "maybe_enable_token_auth_if_token_available",
        "to send the token without ray.init",
    ),
    "set_rank_variables": Part(
        "ray.train.torch.config", "_set_torch_distributed_env_vars", "what Ray's own backend does, and libraries read"
    ),
    "shut_down_torch": Part("ray.train.torch.config", "_shutdown_torch", "what Ray's own backend does"),
    "state": Part("ray._private.state", "state", "whether an autoscaler may add nodes"),
    "temporary_folder": Part("ray._common.utils", "get_default_ray_temp_dir", "where the sockets will lie"),
}
"""Name in this module -> the part."""


def __getattr__(name: str) -> Any:
    """Imports and returns a part.

    Raises:
        AttributeError: ``PARTS`` does not list the name.
        UserError: the installed Ray does not have it.
    """
    if (part := PARTS.get(name)) is None:
        raise AttributeError(name)
    try:
        module = importlib.import_module(part.module)
        return getattr(module, part.name) if part.name else module
    except (ImportError, AttributeError) as error:
        library = part.module.partition(".")[0]
        tried = _TRIED[library]
        installed = importlib.import_module(library).__version__
        raise UserError(
            f"{tried.split()[0]} {installed} has no {part.module}.{part.name}, which {tried} has: "
            "install the versions of constraints.txt"
        ) from error


def cause_of(error: BaseException) -> BaseException:
    """The original error, if Ray has wrapped it with its traceback; otherwise the error itself."""
    return getattr(error, "_base_exc", error)
