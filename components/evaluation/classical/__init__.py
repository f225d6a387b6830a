"""Restoration without training, task by task: what a network has to beat.

The methods are pure functions, one file a task; `METHODS` names them, `CANDIDATES_BY_TASK` lists them with settings,
and `choose_classical` picks the best of a list on validation pairs.
"""

from components.evaluation.classical.baseline import METHODS, ClassicalBaseline
from components.evaluation.classical.candidates import CANDIDATES, CANDIDATES_BY_TASK, super_resolution_candidates
from components.evaluation.classical.choice import CandidateScore, choose_classical, saved_psnr
from components.evaluation.classical.denoising import noise_levels

__all__ = [
    "CANDIDATES",
    "CANDIDATES_BY_TASK",
    "METHODS",
    "CandidateScore",
    "ClassicalBaseline",
    "choose_classical",
    "noise_levels",
    "saved_psnr",
    "super_resolution_candidates",
]
