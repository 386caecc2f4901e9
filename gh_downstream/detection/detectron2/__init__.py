"""The Detectron2 plugin: domain-adaptive detectors, and gradient harmonization in a training that exists.

==============  ==============================================================================================
``settings``    :class:`HarmonizationSettings`: every setting, as a key of ``cfg.GH`` and as an argument
``config``      :func:`add_gh_config` and :func:`add_adaptation_config`: the nodes of a config
``losses``      which entry of a loss dictionary belongs to which task
``step``        the step of ``SimpleTrainer`` and ``AMPTrainer`` with harmonized gradients
``hook``        :class:`GradientHarmonizationHook` and :func:`install_gradient_harmonization`: into a trainer
``model``       :class:`DomainAdaptiveRCNN`, :class:`DomainAdaptiveRetinaNet`, :class:`DomainAdaptiveFCOS`
``vgg``         VGG16 as backbone and box head
``data``        registered data sets, and batches of source and target images
``teacher``     :class:`MeanTeacher`: pseudo-labels on the target, for the strong views of ``augmentation``
``evaluation``  :class:`APEvaluator`: average precision, class by class
``trainer``     :class:`DomainAdaptiveTrainer`: all of it, as ``tools/train_net.py`` runs it
``benchmark``   ways to make a step, to be compared
``demo``        the runs of ``make demo``
==============  ==============================================================================================

Import what comes after ``vgg`` from its module, which needs ``pip install 'gh_downstream[detection]'``; the rest needs
torch and Detectron2 alone.
"""

_INSTALL = (
    "gh_downstream.detection.detectron2 needs a current Detectron2 ({problem}): "
    "pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2'"
)

try:
    from detectron2.engine import SimpleTrainer
except ImportError as error:
    raise ImportError(_INSTALL.format(problem=error)) from error
if "async_write_metrics" not in SimpleTrainer.__init__.__code__.co_varnames:  # The last release, 0.6 of 2021, has not.
    raise ImportError(_INSTALL.format(problem="the installed one is too old"))

from gh_downstream.detection.detectron2.config import (  # noqa: E402  # after the message above
    add_adaptation_config,
    add_gh_config,
)
from gh_downstream.detection.detectron2.hook import (  # noqa: E402
    GradientHarmonizationHook,
    install_gradient_harmonization,
)
from gh_downstream.detection.detectron2.model import (  # noqa: E402
    DomainAdaptation,
    DomainAdaptiveFCOS,
    DomainAdaptiveRCNN,
    DomainAdaptiveRetinaNet,
)
from gh_downstream.detection.detectron2.settings import HarmonizationSettings  # noqa: E402
from gh_downstream.detection.detectron2.vgg import VGG16, VGG16BoxHead  # noqa: E402

__all__ = [
    "VGG16",
    "DomainAdaptation",
    "DomainAdaptiveFCOS",
    "DomainAdaptiveRCNN",
    "DomainAdaptiveRetinaNet",
    "GradientHarmonizationHook",
    "HarmonizationSettings",
    "VGG16BoxHead",
    "add_adaptation_config",
    "add_gh_config",
    "install_gradient_harmonization",
]
