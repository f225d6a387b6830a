"""What params.yaml chooses by name: name -> place of the class, one line for each.

A line decides no result by itself: the module at the place of the chosen name does. To add a member, write its class
and its line here.
"""

from __future__ import annotations

from components.registry import Registry

NETWORKS: Registry = {
    "acdnet": "components.networks.unrolled.acdnet:ACDNetForm",
    "derainnet": "components.networks.convolutional.derainnet:DerainNetForm",
    "dncnn": "components.networks.convolutional.dncnn:DnCNN",
    "fbpconvnet": "components.networks.unets.fbpconvnet:FBPConvNetForm",
    "ffdnet": "components.networks.convolutional.ffdnet:FFDNetForm",
    "mprnet": "components.networks.unets.mprnet:MPRNetForm",
    "nafnet": "components.networks.unets.nafnet:NAFNetForm",
    "prenet": "components.networks.unrolled.prenet:PReNetForm",
    "redcnn": "components.networks.convolutional.redcnn:REDCNNForm",
    "resnet": "components.networks.convolutional.resnet:ResNet",
    "unet": "components.networks.unets.unet:ResidualUNet",
}

TASKS: Registry = {
    "denoise": "components.tasks.denoise:Denoise",
    "derain": "components.tasks.derain:Derain",
    "deblur": "components.tasks.deblur:Deblur",
    "super_resolution": "components.tasks.super_resolution:SuperResolution",
    "inpaint": "components.tasks.inpaint:Inpaint",
    "jpeg": "components.tasks.jpeg:JpegArtifacts",
    "ct_mar": "components.tasks.ct_mar:MetalArtifactReduction",
    "classify": "components.tasks.classify:Classify",
}

LOSSES: Registry = {
    "l1": "components.training.losses:L1",
    "mse": "components.training.losses:MeanSquaredError",
    "charbonnier": "components.training.losses:Charbonnier",
    "cross_entropy": "components.training.losses:CrossEntropy",
}

SCHEDULES: Registry = {
    "cosine": "components.training.schedules:Cosine",
    "constant": "components.training.schedules:Constant",
    "multi_step": "components.training.schedules:MultiStep",
}

OPTIMIZERS: Registry = {
    "adamw": "components.training.optimizers:AdamW",
    "adam": "components.training.optimizers:Adam",
    "sgd": "components.training.optimizers:SGD",
}
