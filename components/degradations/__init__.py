"""Clean image -> degraded image, one kind a file.

A degradation is called with a ``(C, H, W)`` float32 numpy image in [0, 1] and a numpy generator, from which it takes
every draw. One that looks beyond a pixel has an attribute ``margin``: its clean image is larger by so many pixels on
every side than what it gives, so that a crop is degraded as the inside of its image is. It may change channels or size,
as it says. Which one a task uses is said in ``components.tasks``.
"""
