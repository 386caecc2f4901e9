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
        backbone: ``digits``, ``resnet18``, ``resnet50``, ``resnet101``, ``vit-digits`` or a network of timm; see
            :func:`~gh_downstream.classification.backbones.build_backbone`.
        weights: Weights that the backbone starts from: a file, ``pip:NAME`` or a name; null for random ones.
        features: Folder of what the frozen backbone makes of the images, as ``gh-downstream data features`` writes it;
            what is trained begins with the bottleneck. Null trains the backbone on the images.
        bottleneck: Features after the backbone's bottleneck, a linear layer; null for no bottleneck.
        bottleneck_norm: Whether batch normalization and ReLU follow that layer.
        bottleneck_dropout: Probability of dropping a feature of the bottleneck.
        separate_domains: Whether source and target pass the network one after the other, so that batch normalization
            takes the statistics of each domain alone; otherwise they pass as one batch, and it sees both.
        source_share: Share of the source images, rounded up, that the gradient of the alignment reaches in each
            process, of ``dann``, ``cdan`` and ``gvb`` with ``separate_domains``. Below 1 it is another objective, see
            :func:`~gh_downstream.adaptation.encode_source`; with 0 the target alone is aligned with the source.
        transform: ``digits``, ``photos`` or ``photos-inception``: what is done to an image before the backbone.
        crop: What is cut out of a photo of 256 by 256 in training: ``random``, 224 by 224 at a random place;
            ``resized``, 8 to 100 % of it at a random place and aspect, resized to that; or ``center``.
        source: Labelled images.
        target: Images of the other domain, whose labels are thrown away; null for source-only.
        validation: Labelled data sets by name, evaluated while and after training.
        batch_size: Source images in each step, of all processes together, and as many of the target.
        evaluation_batch_size: Images that a process classifies at a time in an evaluation.
        learning_rates: Factors of the learning rate by wildcards of parameters of the model; the first that fits
            counts. The published methods train ``backbone.trunk.*`` with 0.1 where it is pretrained.
    """

    method: str = "source_only"
    method_options: MethodOptions = field(default_factory=MethodOptions)
    trade_offs: str = "after"
    backbone: str = "digits"
    weights: str | None = None
    features: str | None = None
    bottleneck: int | None = None
    bottleneck_norm: bool = True
    bottleneck_dropout: float = 0.0
    separate_domains: bool = False
    source_share: float = 1.0
    transform: str = "digits"
    crop: str = "random"
    source: DataConfig
    target: DataConfig | None = None
    validation: dict[str, DataConfig] = field(default_factory=dict)
    batch_size: int = 32
    evaluation_batch_size: int = 256
    learning_rates: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_of("method", self.method, METHODS)
        check_one_of("trade_offs", self.trade_offs, ("after", "before"))
        check_numbers(self, ">= 1", bottleneck_dropout=">= 0, < 1", source_share=">= 0, <= 1", learning_rates="> 0")
        if self.features is not None and self.method == "ssrt":
            raise ValueError("ssrt works within a vision transformer: leave features=null")
        if self.features is not None and self.bottleneck is None and self.method not in ("source_only", "gvb"):
            raise ValueError(f"the backbone of features is frozen: {self.method} harmonizes the bottleneck, set one")
        if self.method == "ssrt" and self.separate_domains:
            raise ValueError("ssrt passes both domains and what it refines as one batch: leave separate_domains=false")
        if self.source_share < 1 and not (self.separate_domains and METHODS[self.method].takes_share):
            raise ValueError(
                f"source_share={self.source_share}: only dann, cdan and gvb with separate_domains=true can leave "
                "images out of the alignment: set it to 1"
            )
        if METHODS[self.method].needs_target and self.target is None:
            raise ValueError(f"method {self.method} needs images of the target: give target")
        if self.method == "source_only" and self.harmonization.weighting != "none":
            raise ValueError("source_only has one loss and nothing to harmonize: set harmonization.weighting=none")
        if self.harmonization.weighting != "none" and self.harmonization.measure == "features":
            raise ValueError("classification harmonizes at the parameters: leave harmonization.measure=parameters")
        check_best_metric(self.training, [f"{name}/{metric}" for name in self.validation for metric in METRICS])
