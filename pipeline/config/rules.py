"""The rules of params.yaml that cross its sections: one function for each, listed in ``RULES``.

A rule returns a message if the params break it, and None otherwise. The message has the keys, the values and what to
use instead. What stays within one section is checked by the section itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from components.equivariance.groups import group_named
from components.members import LOSSES, NETWORKS
from components.networks import layer_choices, network_class, why_unfit
from components.registry import find, nearest, similar
from components.training.global_batch import count_pairs, worker_batch

if TYPE_CHECKING:
    from pipeline.config.schema import Params

ALL_CLEAN = ("none", "clean")
"""Values of ``preprocess.pairs`` that declare every image clean; "none" refuses names that look like pairs."""


def broken_rule(params: Params) -> str | None:
    """Returns the message of the first rule that the params break; None if they break none."""
    return next(filter(None, (rule(params) for rule in RULES)), None)


def _weight_needs_pairs(params: Params) -> str | None:
    """A weight above 0 needs pairs, unless the penalty needs none."""
    chosen = params.equivariance
    if chosen.weight > 0 and chosen.pairing == "none" and chosen.rule.needs_pairs:
        return (
            f"equivariance.weight: {chosen.weight} needs pairs, and equivariance.pairing is 'none': use replace or "
            "append, or weight 0, or penalty projection"
        )
    return None


def _fields_divide_channels(params: Params) -> str | None:
    """The order of the group divides the channels of the network, unless the penalty has no regular fields."""
    chosen = params.equivariance
    order = chosen.group_order
    if (chosen.pairing == "none" and not chosen.weight) or not chosen.rule.has_regular_fields:
        return None
    settings = params.network_settings
    for name, channels in settings.channels_for(params.colours).items():
        if channels % order:
            number = max(order, order * round(channels / order))
            fitting = number if hasattr(settings, name) else f"{name} = {number}"  # a sum of a setting and a number
            return (
                f"network.{name}: {channels} channels do not divide by {order}, which the regular field of penalty "
                f"'{chosen.penalty}' in {chosen.group} needs: use {fitting}, or equivariance.penalty: rotation"
            )
    return None


def _network_has_the_layers(params: Params) -> str | None:
    """``equivariance.layers`` is auto, a mapping, or a choice of layers that the network owns."""
    chosen, name = params.equivariance.layers, params.network_name
    known = ["auto", *layer_choices(network_class(name))]
    if not isinstance(chosen, str) or chosen in known:
        return None
    message = f"equivariance.layers: {chosen!r}: use {', '.join(known)} or a mapping"
    if owners := [other for other in NETWORKS if chosen in layer_choices(network_class(other))]:
        return f"{message} (network {name} has no choice {chosen}, as {' and '.join(owners)} have)"
    return message + (nearest(chosen, known) if similar(chosen, known) else "")


def _balance_has_a_gradient(params: Params) -> str | None:
    """``equivariance.balance`` needs pairs, a gradient at the outputs, no sweep, and a cap that is large enough."""
    chosen, tune = params.equivariance, params.tune
    if chosen.balance is None:
        return None
    balance = f"equivariance.balance: {chosen.balance}"
    if not chosen.rule.has_output_gradient:
        return (
            f"{balance} is a share of the gradient at the layers' outputs, where penalty '{chosen.penalty}' has none: "
            "use null, or penalty regular, rotation or paper"
        )
    if chosen.pairing == "none":
        return f"{balance} needs pairs: use pairing replace or null"
    cap = chosen.max_gradient_ratio
    if cap is not None and chosen.balance / (1 - chosen.balance) > cap:
        return (
            f"{balance} cannot be reached under equivariance.max_gradient_ratio {cap}: use a balance of "
            f"{cap / (1 + cap):.2g} or less, or another ratio"
        )
    if tune.trials:
        return f"{balance} replaces the weight that the sweep searches: use tune.trials: 0, or balance null"
    return None


def _penalty_allows_its_settings(params: Params) -> str | None:
    """``sample_fields`` is null unless the penalty uses it, and a penalty of kernels has a group on the grid."""
    chosen = params.equivariance
    if chosen.sample_fields is not None and not chosen.rule.samples_fields:
        return (
            f"equivariance.sample_fields: {chosen.sample_fields} has no effect under penalty '{chosen.penalty}': use "
            "null, or penalty regular"
        )
    if chosen.rule.needs_exact_group and not group_named(chosen.group).is_on_grid:
        return (
            f"equivariance.group: {chosen.group} cannot turn kernels exactly, which penalty '{chosen.penalty}' needs: "
            "use C2, C4 or D4"
        )
    return None


def _network_fits_task(params: Params) -> str | None:
    """The task gives the images that the network needs, and the network with its settings what the task wants."""
    task, name = params.build_task(), params.network_name

    def why(other: str) -> str | None:
        return why_unfit(network_class(other), task.can_give, task.scale, task.is_classification)

    if (reason := why(name)) is None:
        try:
            params.network_settings.check_scale(task.scale)
        except ValueError as error:
            return f"network.{error}"
        return None
    others = [other for other in NETWORKS if why(other) is None]
    because = f" ({name} {reason})" if reason else ""
    return f"network.name: {name} does not fit task {params.task}{because}: use auto or {', '.join(others)}"


def _loss_fits_task(params: Params) -> str | None:
    """The loss is one of classes if the task is a classification, and only then."""
    is_classification = params.build_task().is_classification
    if params.loss.is_for_classes == is_classification:
        return None
    others = [name for name in LOSSES if find(LOSSES, "loss", name).is_for_classes == is_classification]
    return f"train.loss: {params.train.loss.name} does not fit task {params.task}: use auto or {', '.join(others)}"


def _data_fit_task(params: Params) -> str | None:
    """The task can use pairs of image files and grey images, if they are wanted."""
    task = params.build_task()
    if params.preprocess.pairs not in ALL_CLEAN and not task.takes_pairs:
        return f"preprocess.pairs: task {params.task} reads no pairs of image files: use none"
    given = task.for_network(network_class(params.network_name)).inputs
    if params.preprocess.pairs not in ALL_CLEAN and given != task.gives:
        return (
            f"preprocess.pairs: pairs of image files have no {' and '.join(given[len(task.gives) :])}, which network "
            f"{params.network_name} needs: use none, or another network"
        )
    if params.preprocess.colour == "grey" and not task.takes_grey:
        return f"preprocess.colour: grey: task {params.task} takes colour images: use rgb"
    return None


def _degradations_fit(params: Params) -> str | None:
    """``fetch.auxiliary`` is given if a degradation uses it, and all degradations of a task have the same scale."""
    section, task = params.task_params, params.build_task()
    others = section.out_of_distribution
    if reserved := others.keys() & {"train", "val", "test"}:
        return f"tasks.{params.task}.out_of_distribution.{min(reserved)}: the name of a part: use another"
    network = network_class(params.network_name)
    degradations = {"degradation": section.degradation}
    degradations |= {f"out_of_distribution.{key}": other for key, other in others.items()}
    for key, degradation in degradations.items():
        place = f"tasks.{params.task}.{key}"
        if degradation.needs_auxiliary and params.fetch.auxiliary is None:
            return f"{place}: auxiliary needs something to take: name a folder or file in fetch.auxiliary"
        scale = params.build_task(degradation).scale
        other = params.build_task(degradation)
        if missing := [name for name in task.for_network(network).inputs if name not in other.can_give]:
            return (
                f"{place}: has no {' and '.join(missing)}, which network {params.network_name} needs: take it away, or "
                "choose another network"
            )
        if scale != task.scale:
            return f"{place}: scale {scale}, but the network enlarges by {task.scale}: use {task.scale}"
    return None


def _sizes_fit(params: Params) -> str | None:
    """Crops and patches are large enough for the network and the metrics, and are multiples of the scale."""
    task, crop, patch = params.build_task(), params.preprocess.crop, params.train.patch_size
    if not task.trains_on_patches:
        return None
    scale = task.scale
    if scale > 1 and crop < 16 + 2 * scale:
        return (
            f"preprocess.crop: {crop} leaves too little to measure without the border: use "
            f"{scale * -(-(16 + 2 * scale) // scale)} or more"
        )
    if task.largest_patch is not None and patch > task.largest_patch:
        return (
            f"train.patch_size: {patch} is larger than a slice, tasks.{params.task}.degradation.size "
            f"{task.largest_patch}: use {task.largest_patch} or less"
        )
    smallest = params.network_settings.smallest_side
    for key, side in {"preprocess.crop": crop, "train.patch_size": patch}.items():
        if side % scale:
            return f"{key}: {side} does not divide by the scale {scale}: use {scale * -(-side // scale)}"
        if side // scale < smallest:
            return (
                f"{key}: {side}: network {params.network_name} with these settings needs {smallest * scale} pixels or "
                "more: use more, or a smaller network"
            )
    return None


def _patches_turn(params: Params) -> str | None:
    """The features of the network can turn exactly with a patch, if pairs are compared."""
    chosen, task, patch = params.equivariance, params.build_task(), params.train.patch_size
    if chosen.pairing == "none" or not chosen.rule.needs_pairs or not task.trains_on_patches:
        return None
    can_turn, scale = params.network_settings.can_turn, task.scale
    if can_turn(patch // scale):
        return None
    largest = task.largest_patch or 4 * patch
    sides = [side for side in range(scale, largest + 1, scale) if can_turn(side // scale)]
    close = [*[side for side in sides if side < patch][-1:], *[side for side in sides if side > patch][:1]]
    fitting = " or ".join(map(str, close)) or "another network"
    return (
        f"train.patch_size: {patch}: network {params.network_name} cannot turn inputs of {patch // scale} pixels "
        "exactly, because it would extend or pool them on one side, and the penalty would count that: use "
        f"{fitting}, or equivariance.weight: 0 and equivariance.pairing: none"
    )


def _batch_divides(params: Params) -> str | None:
    """The batch gives whole pairs, and something to each worker."""
    train, chosen = params.train, params.equivariance
    numbers = train.num_workers
    try:
        num_pairs = count_pairs(train.batch_size, chosen.pairing, chosen.pair_fraction)
        for number in () if numbers == "auto" else (numbers,) if isinstance(numbers, int) else numbers:
            share = worker_batch(train.batch_size, chosen.pairing, num_pairs, 0, number)
            share.micro_batches(train.micro_batch_size)
    except ValueError as error:
        return str(error)
    return None


def _steps_leave_something(params: Params) -> str | None:
    """``tune.grace_steps`` is less than ``tune.steps``."""
    tune = params.tune
    if tune.trials and tune.grace_steps >= tune.steps:
        return (
            f"tune.grace_steps: {tune.grace_steps} leaves nothing to stop early of tune.steps {tune.steps}: use less "
            f"than {tune.steps}"
        )
    return None


RULES: tuple[Callable[[Params], str | None], ...] = (
    _network_fits_task,
    _weight_needs_pairs,
    _fields_divide_channels,
    _network_has_the_layers,
    _balance_has_a_gradient,
    _penalty_allows_its_settings,
    _loss_fits_task,
    _data_fit_task,
    _degradations_fit,
    _sizes_fit,
    _patches_turn,
    _batch_divides,
    _steps_leave_something,
)
