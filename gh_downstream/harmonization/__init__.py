"""The harmonization of gradients: measure the Gramian, weigh the tasks, combine the gradients.

=====================  ==============================================================================
``weightings``         weigh: a Gramian ``[m, m]`` in, the weights ``[m]`` of the tasks out
``gramian``            measure: inner products of the tasks' gradients, in float64
``harmonizer``         :class:`Harmonizer`: measure, weigh and combine in a loop that you own
``fork``               :func:`fork`: the same inside one ordinary ``loss.backward()``, at the features
``graph``              what the losses reach in the autograd graph, and what cannot be harmonized
``report``             :class:`Report`: cosine, angle, norms, weights, gain; :class:`Measurements`: for a log
``torchjd``            weightings of TorchJD here, and ours there
``length``             :class:`Rescaled`: a weighting with another length of the update
=====================  ==============================================================================
"""

from gh_downstream.harmonization.fork import fork
from gh_downstream.harmonization.gramian import gramian
from gh_downstream.harmonization.harmonizer import Harmonizer
from gh_downstream.harmonization.length import Rescaled
from gh_downstream.harmonization.report import Measurements, Report
from gh_downstream.harmonization.torchjd import as_torchjd
from gh_downstream.harmonization.weightings import (
    GH,
    GHPlusPlus,
    GHPlusPlusOfficial,
    Sum,
    Weighting,
    build_weighting,
)

__all__ = [
    "GH",
    "GHPlusPlus",
    "GHPlusPlusOfficial",
    "Harmonizer",
    "Measurements",
    "Report",
    "Rescaled",
    "Sum",
    "Weighting",
    "as_torchjd",
    "build_weighting",
    "fork",
    "gramian",
]
