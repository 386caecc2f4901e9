"""Domain-adaptive detectors on Detectron2; harmonization comes from :mod:`gh_downstream.integrations.detectron2`.

=================  ==============================================================================================
``config``         :func:`add_adaptation_config`: what domain adaptation adds to a config
``adaptation``     :class:`DomainAdaptation`: what makes a detector domain-adaptive
``rcnn``           :class:`DomainAdaptiveRCNN`
``dense``          :class:`DomainAdaptiveRetinaNet`, :class:`DomainAdaptiveFCOS`
``timm_backbone``  networks of timm as backbone
``vgg``            VGG16 as backbone and box head
``data``           registered data sets, and batches of source and target images
``teacher``        :class:`MeanTeacher`: pseudo-labels on the target, for the strong views of ``detection.augmentation``
``evaluation``     :class:`APEvaluator`: average precision, class by class
``trainer``        :class:`DomainAdaptiveTrainer`: all of it, as ``gh_downstream.cli.train_net`` runs it
``metrics``        what a training logged
``command_line``   the arguments of Detectron2's command line, and its processes
``benchmark``      its step in every way to harmonize it
=================  ==============================================================================================

Import what comes after ``vgg`` from its module, which needs ``pip install 'gh_downstream[detection]'``; the rest needs
torch and Detectron2 alone.
"""

import gh_downstream.integrations.detectron2  # noqa: F401  # says what to install where there is no Detectron2
from gh_downstream.detection.detectron2.adaptation import DomainAdaptation
from gh_downstream.detection.detectron2.config import add_adaptation_config
from gh_downstream.detection.detectron2.dense import DomainAdaptiveFCOS, DomainAdaptiveRetinaNet
from gh_downstream.detection.detectron2.rcnn import DomainAdaptiveRCNN
from gh_downstream.detection.detectron2.timm_backbone import TimmBackbone
from gh_downstream.detection.detectron2.vgg import VGG16, VGG16BoxHead

__all__ = [
    "VGG16",
    "DomainAdaptation",
    "DomainAdaptiveFCOS",
    "DomainAdaptiveRCNN",
    "DomainAdaptiveRetinaNet",
    "TimmBackbone",
    "VGG16BoxHead",
    "add_adaptation_config",
]
