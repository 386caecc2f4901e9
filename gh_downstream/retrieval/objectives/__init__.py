"""Losses of image-text retrieval, on normalised features: the task on labelled pairs, and the terms of the alignment.

The losses see the global batch (:func:`gather_with_gradient`); what compares all with all can be shared by processes.
"""

from gh_downstream.retrieval.objectives.alignment import ALIGNMENTS, Alignment, SideFeatures
from gh_downstream.retrieval.objectives.config import AlignmentTermConfig, TaskConfig, TripletConfig
from gh_downstream.retrieval.objectives.gather import gather_with_gradient
from gh_downstream.retrieval.objectives.losses import (
    PositivePairs,
    contrastive_loss,
    positive_pairs,
    sigmoid_loss,
    triplet_loss,
)

__all__ = [
    "ALIGNMENTS",
    "Alignment",
    "AlignmentTermConfig",
    "PositivePairs",
    "SideFeatures",
    "TaskConfig",
    "TripletConfig",
    "contrastive_loss",
    "gather_with_gradient",
    "positive_pairs",
    "sigmoid_loss",
    "triplet_loss",
]
