"""What params.yaml chooses by name: name -> place of the class, one line for each.

A line decides no result by itself: the module at the place of the chosen name does. To add a member, write its class
and its line here.
"""

from __future__ import annotations

from components.registry import Registry

NETWORKS: Registry = {
    "acdnet": "components.networks.unrolled.acdnet:ACDNetForm",
    "c4_dncnn": "components.networks.group.dncnn:C4DnCNN",
    "c4_unet": "components.networks.group.unet:C4UNet",
    "d4_dncnn": "components.networks.group.dncnn:D4DnCNN",
    "d4_unet": "components.networks.group.unet:D4UNet",
    "derainnet": "components.networks.convolutional.derainnet:DerainNetForm",
    "dicdnet": "components.networks.unrolled.dicdnet:DICDNetForm",
    "dncnn": "components.networks.convolutional.dncnn:DnCNN",
    "drunet": "components.networks.unets.drunet:DRUNetForm",
    "fbpconvnet": "components.networks.unets.fbpconvnet:FBPConvNetForm",
    "ffdnet": "components.networks.convolutional.ffdnet:FFDNetForm",
    "mprnet": "components.networks.unets.mprnet:MPRNetForm",
    "nafnet": "components.networks.unets.nafnet:NAFNetForm",
    "oscnet": "components.networks.unrolled.oscnet:OSCNetForm",
    "prenet": "components.networks.unrolled.prenet:PReNetForm",
    "rcdnet": "components.networks.unrolled.rcdnet:RCDNetForm",
    "redcnn": "components.networks.convolutional.redcnn:REDCNNForm",
    "resnet": "components.networks.convolutional.resnet:ResNet",
    "restormer": "components.networks.transformers.restormer:RestormerForm",
    "swinir": "components.networks.transformers.swinir:SwinIRForm",
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
