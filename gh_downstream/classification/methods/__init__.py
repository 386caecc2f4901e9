"""The methods, one file each: which losses they have, which side each is on, what is shared, and how they alternate.

Each is a class over :class:`Method`, which takes a backbone, the number of classes and its options, a dataclass.
``docs/classification.md`` says where they differ from the published GH code, and why. Any weighting of
:mod:`gh_downstream.harmonization` goes with each of them.
"""

from dataclasses import dataclass, field
from typing import Any

from gh_downstream.classification.backbones import Backbone
from gh_downstream.classification.methods.base import AdversarialOptions, Method, SourceOnly
from gh_downstream.classification.methods.cdan import CDAN, CDANOptions
from gh_downstream.classification.methods.dann import DANN
from gh_downstream.classification.methods.dwl import DWL, DWLOptions
from gh_downstream.classification.methods.gvb import GVB, GVBOptions
from gh_downstream.classification.methods.mcd import MCD, MCDOptions
from gh_downstream.classification.methods.ssrt import SSRT, SSRTOptions

METHODS: dict[str, type[Method]] = {
    "source_only": SourceOnly,
    "dann": DANN,
    "cdan": CDAN,
    "mcd": MCD,
    "gvb": GVB,
    "dwl": DWL,
    "ssrt": SSRT,
}
"""The methods by the name that a configuration gives them."""


@dataclass(kw_only=True)
class MethodOptions:
    """The options of each method by its name; those of the method that is trained count.

    Attributes:
        dann: Options of DANN.
        cdan: Options of CDAN.
        mcd: Options of MCD.
        gvb: Options of GVB.
        dwl: Options of DWL.
        ssrt: Options of SSRT.
    """

    dann: AdversarialOptions = field(default_factory=AdversarialOptions)
    cdan: CDANOptions = field(default_factory=CDANOptions)
    mcd: MCDOptions = field(default_factory=MCDOptions)
    gvb: GVBOptions = field(default_factory=GVBOptions)
    dwl: DWLOptions = field(default_factory=DWLOptions)
    ssrt: SSRTOptions = field(default_factory=SSRTOptions)


def build_method(method: str, backbone: Backbone, num_classes: int, options: Any = None) -> Method:
    """Build a method by its name in :data:`METHODS`.

    Args:
        method: The name.
        backbone: From images to features.
        num_classes: Number of classes.
        options: What the method's ``Options`` makes; None for its defaults.

    Raises:
        ValueError: The backbone or an option does not fit the method.
    """
    kind = METHODS[method]
    if options is None and kind.Options is not None:
        options = kind.Options()
    return kind(backbone, num_classes, options)


__all__ = ["METHODS", "Method", "MethodOptions", "build_method"]
