"""Gradient harmonization in a Detectron2 training that exists.

==============  ==============================================================================================
``config``      :func:`add_gh_config`: the node ``GH`` of a config
``step``        the step of ``SimpleTrainer`` and ``AMPTrainer`` with harmonized gradients
``hook``        :class:`GradientHarmonizationHook` and :func:`install_gradient_harmonization`: into a trainer;
                :func:`probe_gradients`: of some batches of a trainer, for a diagnosis
==============  ==============================================================================================

The settings are those of :class:`~gh_downstream.harmonization.HarmonizationConfig`. It needs torch and Detectron2
alone.
"""

_INSTALL = (
    "gh_downstream.integrations.detectron2 needs a current Detectron2 ({problem}): "
    "pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2'"
)

try:
    from detectron2.engine import SimpleTrainer
except ImportError as error:
    raise ImportError(_INSTALL.format(problem=error)) from error
if "async_write_metrics" not in SimpleTrainer.__init__.__code__.co_varnames:  # The last release, 0.6 of 2021, has not.
    raise ImportError(_INSTALL.format(problem="the installed one is too old"))

from gh_downstream.integrations.detectron2.config import add_gh_config, settings_of  # noqa: E402
from gh_downstream.integrations.detectron2.hook import (  # noqa: E402
    GradientHarmonizationHook,
    install_gradient_harmonization,
    probe_gradients,
)

__all__ = [
    "GradientHarmonizationHook",
    "add_gh_config",
    "install_gradient_harmonization",
    "probe_gradients",
    "settings_of",
]
