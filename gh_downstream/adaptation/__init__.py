"""Parts of unsupervised domain adaptation: gradient reversal, domain discriminators and discrepancies.

Nothing here knows of a workload, and nothing needs more than torch.
"""

from gh_downstream.adaptation.discrepancy import coral, mmd
from gh_downstream.adaptation.discriminators import (
    GlobalDiscriminator,
    ImageDiscriminator,
    InstanceDiscriminator,
    LocalDiscriminator,
    PooledImageDiscriminator,
    consistency_loss,
    domain_loss,
    focal_domain_loss,
    least_squares_domain_loss,
)
from gh_downstream.adaptation.reversal import GradientReversal, reversal_schedule, scale_gradient
from gh_downstream.adaptation.source import check_whole_source, encode_source, number_reached

__all__ = [
    "GlobalDiscriminator",
    "GradientReversal",
    "ImageDiscriminator",
    "InstanceDiscriminator",
    "LocalDiscriminator",
    "PooledImageDiscriminator",
    "check_whole_source",
    "consistency_loss",
    "coral",
    "domain_loss",
    "encode_source",
    "focal_domain_loss",
    "least_squares_domain_loss",
    "mmd",
    "number_reached",
    "reversal_schedule",
    "scale_gradient",
]
