"""The methods, one file each: which losses they have, which side each is on, what is shared, and how they alternate.

Each is a class over :class:`Method`, which takes a backbone and the number of classes, and its options as keyword
arguments. ``docs/classification.md`` says where they differ from the published GH code, and why. Any weighting of
:mod:`gh_downstream.harmonization` goes with each of them.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from gh_downstream.classification.backbones import Backbone
from gh_downstream.classification.methods.base import Method, SourceOnly
from gh_downstream.classification.methods.cdan import CDAN
from gh_downstream.classification.methods.dann import DANN
from gh_downstream.classification.methods.dwl import DWL
from gh_downstream.classification.methods.gvb import GVB
from gh_downstream.classification.methods.mcd import MCD
from gh_downstream.classification.methods.ssrt import SSRT

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


def check_options(method: str, options: Mapping[str, Any]) -> None:
    """Check the name of a method and the names of its options.

    Raises:
        ValueError: There is no such method, or it has no such option; the message lists what there is.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; there are {', '.join(METHODS)}")
    parameters = inspect.signature(METHODS[method]).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    for name in options:
        if name not in known:
            there = f"its options are {', '.join(known)}" if known else "it has none"
            raise ValueError(f"method_options: {method} has no option {name!r}; {there}")


def build_method(method: str, backbone: Backbone, num_classes: int, options: Mapping[str, Any]) -> Method:
    """Build a method by its name in :data:`METHODS`.

    Raises:
        ValueError: As :func:`check_options`, or the backbone does not fit the method.
    """
    check_options(method, options)
    return METHODS[method](backbone, num_classes, **options)


__all__ = ["METHODS", "Method", "build_method", "check_options"]
