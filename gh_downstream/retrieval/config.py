"""What a training or an evaluation of image-text retrieval is configured by."""

from dataclasses import dataclass, field
from typing import Any

from gh_downstream.harmonization.checks import check_numbers, check_one_of
from gh_downstream.retrieval.augmentation import AugmentationConfig
from gh_downstream.retrieval.data import DataConfig
from gh_downstream.retrieval.encoders import LoRAConfig
from gh_downstream.retrieval.encoders.build import OPTIONS, encoder_config
from gh_downstream.retrieval.evaluation import METRICS, ZERO_SHOT_METRICS
from gh_downstream.retrieval.objectives import AlignmentTermConfig, TaskConfig
from gh_downstream.training import ExperimentConfig, check_best_metric


@dataclass(kw_only=True)
class RetrievalConfig(ExperimentConfig):
    """Fine-tuning of a dual encoder from one domain for another.

    Attributes:
        encoder: ``tiny``, ``towers``, ``openclip:MODEL,TAG``, ``openclip:local-dir:FOLDER``,
            ``openclip:hf-hub:ORG/NAME`` or ``hf:FOLDER or ID``; see
            :func:`~gh_downstream.retrieval.encoders.build_encoder`.
        init: ``pretrained`` stops where the weights are missing; ``random`` starts without any, which has to
            be said for ``tiny``.
        encoder_options: Arguments of the encoder, such as ``{width: 32}`` for ``tiny``; ``towers`` has them too.
        source: Pairs of images and captions.
        target: Images, captions or both of the other domain, never taken as pairs; null trains on the source alone.
        validation: Labelled data sets by name, evaluated while and after training: pairs by recall, folders of classes
            (``format: classes``) by zero-shot accuracy.
        max_skipped: Share of the images of a data set that may be missing or damaged, at least 0 and less than 1: they
            are named in the log, in training other images take their place, and an evaluation does without them and
            their captions. So is it for the captions that may be null, empty or unreadable. More of them stop the run.
        batch_size: Source images in each step, of all processes together, each with one of its captions; as many
            images, captions or both of the target.
        evaluation_batch_size: Images, or captions, that a process encodes at a time in an evaluation.
        task: The loss on the pairs.
        alignment: The losses beside the task by name: ``mmd``, ``coral`` or ``domain`` between the domains (``mmd`` and
            ``coral`` are the first choice), ``consistency`` and ``distillation``. A term of weight 0 is off; without
            any other, training is on the source alone.
        augmentation: Random changes of the training images of both domains; null for those of the encoder itself: a
            crop of 90 % of the area or more, and none of ``tiny``.
        source_share: Share of the source's images and captions that the gradient of ``mmd``, ``coral`` and ``domain``
            reaches, in each process; with 0 the target alone is aligned with the source. Below 1 it is another
            objective, and its gradients are cheaper to take apart, see
            :func:`~gh_downstream.adaptation.encode_source`.
        micro_batch: Images, or captions, of a process that are encoded at a time; the loss and its gradient are those
            of the whole batch, the memory that of so many. Null encodes all at once.
        checkpointing: Compute the activations of both towers' blocks again in the backward pass instead of keeping
            them, also within ``micro_batch``; the losses and gradients are the same.
        freeze: Names or wildcards of parameters of the encoder that stay as they are. Modules that are frozen as a
            whole are in evaluation mode: their running statistics stay too, and nothing in them is dropped.
        lora: Train low-rank adapters (with peft) in place of the encoder's own weights, which are frozen; the export
            has them merged. Null trains the weights.
        learning_rates: Factors of the learning rate by wildcards of parameters of the model; the first that fits
            counts.
    """

    encoder: str = "tiny"
    init: str = "pretrained"
    encoder_options: dict[str, Any] = field(default_factory=dict)
    source: DataConfig
    target: DataConfig | None = None
    validation: dict[str, DataConfig] = field(default_factory=dict)
    max_skipped: float = 0.01
    batch_size: int = 64
    evaluation_batch_size: int = 128
    task: TaskConfig = field(default_factory=TaskConfig)
    alignment: dict[str, AlignmentTermConfig] = field(default_factory=dict)
    augmentation: AugmentationConfig | None = None
    source_share: float = 1.0
    micro_batch: int | None = None
    checkpointing: bool = False
    freeze: list[str] = field(default_factory=list)
    lora: LoRAConfig | None = None
    learning_rates: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_of("init", self.init, ("pretrained", "random"))
        check_numbers(
            self,
            "",
            max_skipped=">= 0, < 1",
            evaluation_batch_size=">= 1",
            source_share=">= 0, <= 1",
            micro_batch=">= 1",
            learning_rates=">= 0",
        )
        if self.batch_size < 2:
            raise ValueError(
                f"batch_size must be at least 2, as other captions are the negatives; got {self.batch_size}"
            )
        if self.encoder in OPTIONS:
            try:
                encoder_config(self.encoder, self.encoder_options)
            except ValueError as error:
                raise ValueError(f"encoder_options: {error}") from None
        if "distillation" in self.terms and self.training.init_from is not None:
            raise ValueError(
                "distillation keeps what the encoder starts from, which training.init_from would replace: export "
                "that checkpoint and name it as encoder"
            )
        if self.lora is not None and self.freeze:
            raise ValueError(
                "lora freezes the encoder's own parameters already: leave freeze out, and say in lora.train which of "
                "them train beside the adapters"
            )
        if self.lora is not None and self.training.init_from is not None:
            raise ValueError(
                "lora adapts what the encoder starts from, and training.init_from would miss the adapted weights: "
                "export that checkpoint and name it as encoder"
            )
        if self.harmonization.weighting != "none" and not self.terms and not self.harmonization.tasks:
            raise ValueError(
                "harmonization needs a second loss: give alignment of a weight above 0, or harmonization.tasks of the "
                "losses of the task, or harmonization.weighting=none"
            )
        for key, used in (("source", self.source), ("target", self.target)):
            if used is not None and used.format == "classes":
                raise ValueError(f"{key}: format=classes is for validation; images alone are format=folder")
        known = [
            f"{'-' if metric.endswith('rank') else ''}{name}/{metric}"
            for name, data in self.validation.items()
            for metric in (ZERO_SHOT_METRICS if data.format == "classes" else METRICS)
        ]
        check_best_metric(self.training, known)

    @property
    def terms(self) -> dict[str, AlignmentTermConfig]:
        """The terms of the alignment that are not off."""
        return {name: term for name, term in self.alignment.items() if term.weight}
