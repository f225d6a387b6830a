"""Degradations: clean image -> degraded image, one kind per module.

A degradation is called with a ``(C, H, W)`` float32 numpy image in [0, 1] and a numpy generator. All its random numbers
come from this generator. A degradation whose output pixel depends on a neighbourhood has an attribute ``margin``. Its
clean image is larger than its output by that many pixels on every side. A crop is therefore degraded in the same way as
the interior of its image. A degradation may change the channels or the size; its docstring then says so. The modules of
``components.tasks`` define which task uses which degradation.
"""
