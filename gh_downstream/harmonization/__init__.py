"""The harmonization of gradients: measure the Gramian, weigh the tasks, combine the gradients.

=====================  ==============================================================================
``weightings``         weigh: a Gramian ``[m, m]`` in, the weights ``[m]`` of the tasks out
``gramian``            measure: inner products of the tasks' gradients, in float64
``harmonizer``         :class:`Harmonizer`: measure, weigh and combine in a loop that you own
``fork``               :func:`fork`: the same inside one ordinary ``loss.backward()``, at the features
``chunks``             :func:`in_chunks`: a module applied in the memory of a chunk, for all tasks at once
``graph``              what the losses reach in the autograd graph, and what cannot be harmonized
``report``             :class:`Report`: cosine, angle, norms, weights, gain; :class:`Measurements`: for a log
``probe``              :class:`Probe`: gradients of single batches by layer, for a diagnosis
``torchjd``            weightings of TorchJD here, and ours there
``scalarizations``     those of TorchJD that look at the losses
``length``             :class:`Rescaled`: a weighting with another length of the update
``words``              :func:`parse_weighting`: a weighting and its options as one word, ``gh++:adaptive``
``losses``             :func:`group_losses`: the losses of any trainer by task
``config``             :class:`HarmonizationConfig`: the settings of a harmonized training
``passes``             the backward passes of a step
``gradients``          one backward pass, and gradients combined in place
``published``          the three backward passes of the published code, to measure what they cost
``parameters``         which parameters are shared
``distributed``        the collectives
``sharding``           parameters that lie in slices on several ranks
``checks``             the checks that settings have in common
=====================  ==============================================================================
"""

from gh_downstream.harmonization.chunks import in_chunks
from gh_downstream.harmonization.config import HarmonizationConfig
from gh_downstream.harmonization.fork import fork
from gh_downstream.harmonization.gramian import gramian
from gh_downstream.harmonization.harmonizer import Harmonizer
from gh_downstream.harmonization.length import Rescaled
from gh_downstream.harmonization.losses import group_losses, named_losses
from gh_downstream.harmonization.probe import Probe
from gh_downstream.harmonization.report import Measurements, Report
from gh_downstream.harmonization.torchjd import as_torchjd
from gh_downstream.harmonization.weightings import (
    GH,
    GHPlusPlus,
    GHPlusPlusOfficial,
    Sum,
    Weighting,
)
from gh_downstream.harmonization.words import parse_weighting

__all__ = [
    "GH",
    "GHPlusPlus",
    "GHPlusPlusOfficial",
    "HarmonizationConfig",
    "Harmonizer",
    "Measurements",
    "Probe",
    "Report",
    "Rescaled",
    "Sum",
    "Weighting",
    "as_torchjd",
    "fork",
    "gramian",
    "group_losses",
    "in_chunks",
    "named_losses",
    "parse_weighting",
]
