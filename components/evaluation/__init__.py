"""How good a restored image is: metrics, intervals, tiled restoration and what a network has to beat.

Pictures are in `figures`, which is not imported here: only those who draw need matplotlib.
"""

from components.evaluation.classical import ClassicalBaseline, choose_classical
from components.evaluation.metrics import as_saved, luma, psnr, quality, ssim
from components.evaluation.restoration import restore
from components.evaluation.statistics import Interval, clustered_interval

__all__ = [
    "ClassicalBaseline",
    "Interval",
    "as_saved",
    "choose_classical",
    "clustered_interval",
    "luma",
    "psnr",
    "quality",
    "restore",
    "ssim",
]
