"""Gradient Harmonization (GH and GH++) for training with two or more losses.

The paper is "Gradient Harmonization in Unsupervised Domain Adaptation" (Huang, Song and Zhang, TPAMI 2024,
arXiv 2408.00288). Importing this package needs nothing but torch; detection, retrieval and reporting live in
subpackages of their own.
"""

from gh_downstream.harmonization import GH, GHPlusPlus, GHPlusPlusOfficial, Harmonizer, Probe, Sum, as_torchjd, fork

__version__ = "0.1.0"

__all__ = ["GH", "GHPlusPlus", "GHPlusPlusOfficial", "Harmonizer", "Probe", "Sum", "__version__", "as_torchjd", "fork"]
