"""Classical baselines: restoration methods without training, for each task.

The methods are pure functions, in one module per kind of degradation. `METHODS` maps names to methods. A task names its
candidates, which are methods with settings. `choose_classical` chooses the best of a list on validation pairs.
"""

from components.evaluation.classical.baseline import METHODS, ClassicalBaseline
from components.evaluation.classical.candidates import CANDIDATES, super_resolution_candidates
from components.evaluation.classical.choice import CandidateScore, choose_classical, saved_psnr
from components.evaluation.classical.denoising import noise_levels

__all__ = [
    "CANDIDATES",
    "METHODS",
    "CandidateScore",
    "ClassicalBaseline",
    "choose_classical",
    "noise_levels",
    "saved_psnr",
    "super_resolution_candidates",
]
