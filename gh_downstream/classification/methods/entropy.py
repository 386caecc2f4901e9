"""Entropy conditioning: images that the classifier is sure of count more in the alignment."""

from torch import Tensor
from torch.nn.functional import softplus

from gh_downstream.adaptation import scale_gradient
from gh_downstream.harmonization.distributed import all_reduce_mean


def entropy(logits: Tensor) -> Tensor:
    r"""Return the entropy :math:`H = -\sum_k p_k \log p_k` of each image, ``[N]``, from logits ``[N, K]``."""
    log_probabilities = logits.log_softmax(dim=1)
    return -(log_probabilities.exp() * log_probabilities).sum(dim=1)


def certainty(logits: Tensor, strength: float) -> Tensor:
    r"""Return :math:`e^{-H}` of each image, ``[N]``, in (0, 1], which images are weighed by (entropy conditioning).

    The logits are ``[N, K]``. As the weights are part of what the classifier confuses the discriminator by, their
    gradient is reversed too, with a strength.
    """
    return (-scale_gradient(entropy(logits), -strength)).exp()


def weighted_domain_loss(
    source_logits: Tensor, target_logits: Tensor, source_weights: Tensor, target_weights: Tensor
) -> Tensor:
    r"""Binary cross-entropy of a discriminator with weights of the images, which are averaged within each domain.

    .. math::
        L = \tfrac{1}{2} \Big( \frac{\sum_S w \log(1 + e^{-z})}{\sum_S \bar w}
                             + \frac{\sum_T w \log(1 + e^{z})}{\sum_T \bar w} \Big)

    The sums :math:`\sum \bar w` pass no gradient, as in the code of CDAN. In several processes they are means over the
    ranks, so that the mean of the losses is that of the joined batch. Logits :math:`z`, log-odds of source, and weights
    :math:`w` are ``[N]`` of the source and ``[M]`` of the target.
    """
    totals = [source_weights.detach().sum(), target_weights.detach().sum()]
    all_reduce_mean(totals)
    of_source = (source_weights * softplus(-source_logits)).sum() / totals[0]
    of_target = (target_weights * softplus(target_logits)).sum() / totals[1]
    return 0.5 * (of_source + of_target)
