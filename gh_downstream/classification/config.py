"""What a training or an evaluation of image classification is configured by."""

from dataclasses import dataclass, field

from gh_downstream.classification.data import DataConfig
from gh_downstream.classification.evaluation import METRICS
from gh_downstream.classification.methods import METHODS, MethodOptions
from gh_downstream.harmonization.checks import check_numbers, check_one_of
from gh_downstream.training import ExperimentConfig, check_best_metric


@dataclass(kw_only=True)
class ClassificationConfig(ExperimentConfig):
    """Training of an image classifier on one domain for another.

    Attributes:
        method: ``source_only``, ``dann``, ``cdan``, ``mcd``, ``gvb``, ``dwl`` or ``ssrt``.
        method_options: Options of each method by its name, such as ``{cdan: {entropy: false}}``; those of ``method``
            count.
        trade_offs: Where the ramp of a gradient reversal and the trade-off of a method count, ``after`` the weighing or
            ``before``, within the gradients that are measured. With the weightings ``none`` and ``sum``, for which it
            is all the same, with ``scope=all``, the published recipe, and with a ``harmonization.shared`` of your own
            they count before.
        backbone: ``digits``, ``resnet18``, ``resnet50``, ``resnet101``, ``vit-digits`` or a ViT of timm; see
            :func:`~gh_downstream.classification.backbones.build_backbone`.
        weights: Weights that the backbone starts from: a file or a name; null for random ones.
        bottleneck: Features after the backbone's bottleneck; null for no bottleneck.
        transform: ``digits``, ``photos`` or ``photos-inception``: what is done to an image before the backbone.
        source: Labelled images.
        target: Images of the other domain, whose labels are thrown away; null for source-only.
        validation: Labelled data sets by name, evaluated while and after training.
        batch_size: Source images in each step, of all processes together, and as many of the target.
        learning_rates: Factors of the learning rate by wildcards of parameters of the model; the first that fits
            counts. The published methods train ``backbone.trunk.*`` with 0.1 where it is pretrained.
    """

    method: str = "source_only"
    method_options: MethodOptions = field(default_factory=MethodOptions)
    trade_offs: str = "after"
    backbone: str = "digits"
    weights: str | None = None
    bottleneck: int | None = None
    transform: str = "digits"
    source: DataConfig
    target: DataConfig | None = None
    validation: dict[str, DataConfig] = field(default_factory=dict)
    batch_size: int = 32
    learning_rates: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_of("method", self.method, METHODS)
        check_one_of("trade_offs", self.trade_offs, ("after", "before"))
        check_numbers(self, batch_size=">= 1", bottleneck=">= 1", learning_rates="> 0")
        if METHODS[self.method].needs_target and self.target is None:
            raise ValueError(f"method {self.method} needs images of the target: give target")
        if self.method == "source_only" and self.harmonization.weighting != "none":
            raise ValueError("source_only has one loss and nothing to harmonize: set harmonization.weighting=none")
        if self.harmonization.weighting != "none" and self.harmonization.measure == "features":
            raise ValueError("classification harmonizes at the parameters: leave harmonization.measure=parameters")
        check_best_metric(self.training, [f"{name}/{metric}" for name in self.validation for metric in METRICS])
