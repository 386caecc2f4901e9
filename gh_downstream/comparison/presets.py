"""What can be compared and shown by name: an engine, a configuration, data that are made, and how the report tells it.

Nothing of a workload is imported before it is used.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gh_downstream.comparison.engines import Engine, engine_of, find_engine
from gh_downstream.training.configs import find_config


@dataclass(frozen=True)
class GeneratedData:
    """Data that a preset makes for itself, in a folder in that of all data.

    Attributes:
        maker: Makes them in such a folder, and leaves what is there already; as ``MODULE:NAME``.
        paths: Keys of the configuration that name them, with the file or folder in their folder.
    """

    folder: str
    maker: str
    paths: Mapping[str, str]

    def make(self, folder: Path) -> None:
        """Make what is missing of them in a folder."""
        pkgutil.resolve_name(self.maker)(folder)

    def overrides(self, datasets: Path) -> tuple[str, ...]:
        """Return what names the data in a configuration."""
        return tuple(f"{k}={os.path.normpath(datasets / self.folder / path)}" for k, path in self.paths.items())


@dataclass(frozen=True)
class Variant:
    """A run beside those with weightings: what it changes of the configuration, or another one in its place."""

    overrides: tuple[str, ...] = ()
    config: str | None = None


@dataclass(frozen=True)
class Preset:
    """Trainings that belong together.

    Attributes:
        name: Names it in tables and folders.
        engine_name: One of :data:`~gh_downstream.comparison.engines.ENGINES`.
        config: Name of the configuration, see :func:`~gh_downstream.training.configs.find_config`.
        metric: Metric of the evaluation that is compared; more of it is better.
        overrides: What every run changes of the configuration, but for the burn-in.
        methods: Methods that are compared by default, where the engine has any.
        of_method: What the runs of a method change of the configuration.
        source_only: The run without a target and without harmonization.
        oracle: The run with the labels of the target, of the demo alone.
        burn_in: What all runs of a seed go on from.
        data: Data that are made where they are missing; None where the configuration says all.
        adapted: Word for the run with the plain sum, such as ``adapted``; empty to call it by its weighting.
        seeds: Number of seeds where none is given.
        group: Name of the presets that it is one of; empty where it stands alone.
        report_content: Makes tables and pictures of the workload for the report, as ``MODULE:NAME``; a function of a
            :class:`~gh_downstream.comparison.results.Group`.
        paragraphs: What the report says of it first.
        small: Overrides of every run of the smaller size, beside one seed.
        small_burn_in: Those of its burn-in.
    """

    name: str
    engine_name: str
    config: str
    metric: str
    overrides: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    of_method: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    source_only: Variant | None = None
    oracle: Variant | None = None
    burn_in: Variant | None = None
    data: GeneratedData | None = field(default=None, hash=False)
    adapted: str = ""
    seeds: int = 3
    group: str = ""
    report_content: str | None = None
    paragraphs: tuple[str, ...] = ()
    small: tuple[str, ...] = field(default=(), repr=False)
    small_burn_in: tuple[str, ...] = field(default=(), repr=False)

    @property
    def engine(self) -> Engine:
        """What trains it."""
        return find_engine(self.engine_name)

    def in_small(self) -> Preset:
        """Return the same with fewer steps and one seed."""
        burn_in = self.burn_in
        if burn_in is not None:
            burn_in = dataclasses.replace(burn_in, overrides=(*burn_in.overrides, *self.small_burn_in))
        return dataclasses.replace(self, overrides=(*self.overrides, *self.small), burn_in=burn_in, seeds=1)


def find_preset(name: str) -> Preset:
    """Return a preset by its name; a ``ValueError`` lists those that there are."""
    if name not in PRESETS:
        known = ", ".join(dict.fromkeys(preset.group or preset.name for preset in PRESETS.values()))
        raise ValueError(f"no task {name!r}: there are {known}, and --config FILE takes any configuration")
    return PRESETS[name]


def find_presets(name: str) -> list[Preset]:
    """Return the presets of a task: the one of that name, or all of a group such as ``office-caltech``.

    Raises:
        ValueError: There is no such task; the message lists them.
    """
    if members := [preset for preset in PRESETS.values() if preset.group == name]:
        return members
    return [find_preset(name)]


def preset_of_config(path: str | Path, engine: str | None = None, metric: str | None = None) -> Preset:
    """Return the preset of a configuration of the user's, by its file or name.

    Args:
        path: As :func:`~gh_downstream.training.configs.find_config` takes it.
        engine: Name of the engine; by default the one that its keys are of.
        metric: Metric of its evaluation; by default the usual one of the engine.

    Raises:
        ValueError: There is no such engine.
        FileNotFoundError: There is no such configuration.
    """
    file = find_config(path).resolve()
    trains = engine_of(file) if engine is None else find_engine(engine)
    return Preset(file.stem, trains.name, str(file), metric or trains.metric)


_CAVEAT = (
    "This shows that the machinery works: the data, the adaptation, the harmonization, the report. It is not evidence "
    "that GH helps, or that it does not: the images are drawn, the trainings are short, and single runs differ by "
    "several points from seed to seed."
)
_STREETS = (
    "Detectors, each a slim Faster R-CNN of {}, go on from one burn-in on clear streets: on clear streets alone "
    "(source-only), with domain alignment to unlabelled foggy streets and the plain sum of the losses (adapted), the "
    "same with the gradients harmonized by GH and by exact GH++, and with the labels of the foggy streets (oracle). "
    "The streets are drawn by this package, in the layout of Cityscapes and Foggy Cityscapes."
)
_SCENES = (
    "Dual encoders (small transformers, from random weights) learn from captioned drawings on white, the source, and "
    "have to find drawings on coloured backgrounds, the target, by their captions and the other way round: from the "
    "pairs of the source alone (source-only), with unlabelled images of the target and a discrepancy (MMD) between the "
    "image features of the domains, added as a plain sum (aligned), and the same harmonized by GH and by exact GH++. "
    "The drawings are made by this package; training and test share no scene. The gradient of the alignment is far "
    "shorter here than that of the task; where the two conflict, GH and GH++ weigh it up in the ratio of their "
    "lengths, so that a larger fixed weight of the alignment is what to compare them with."
)
_DIGITS = Preset(
    "digits",
    "classification",
    "classification/digits",
    "target/accuracy",
    methods=("cdan",),
    of_method={"ssrt": ("backbone=vit-digits", "optimizer.name=adamw", "optimizer.lr=0.001")},
    source_only=Variant(("method=source_only",)),
)
_REAL_DIGITS = dataclasses.replace(_DIGITS, of_method={"mcd": ("training.steps=120",)})
_OFFICE_CALTECH = Preset(
    "office-caltech",
    "classification",
    "classification/office-caltech",
    "target/accuracy",
    methods=("dann",),
    source_only=Variant(("method=source_only",)),
    group="office-caltech",
)


def _of_office_caltech(source: str, target: str) -> Preset:
    domains = {"source": source, "target": target}.items()
    return dataclasses.replace(
        _OFFICE_CALTECH,
        name=f"{_OFFICE_CALTECH.name}-{source}-{target}",
        overrides=(
            *(f"{side}.path=datasets/office_caltech/{domain}" for side, domain in domains),
            *(f"{side}.benchmark=office-caltech/{domain}" for side, domain in domains),
        ),
    )


_MINI_CITYSCAPES = GeneratedData(
    "mini_cityscapes",
    "gh_downstream.detection.data.mini_cityscapes:make_mini_cityscapes",
    {"source.root": "", "target.root": "", "validation.foggy.root": ""},
)
_ON_SOURCE = ("target=null", "alignment=null")
_DETECTION = Preset(
    "detection",
    "native",
    "detection/native/mini",
    "foggy/ap50",
    source_only=Variant(_ON_SOURCE),
    oracle=Variant((*_ON_SOURCE, "source.fog_density=0.02", "source.cities=[corwen,dunholm]")),
    burn_in=Variant(_ON_SOURCE, "detection/native/mini-burn-in"),
    data=_MINI_CITYSCAPES,
    adapted="adapted",
    seeds=1,
    report_content="gh_downstream.comparison.showing:detection_content",
    paragraphs=(_STREETS.format("torchvision (a ResNet of four blocks with a feature pyramid)"), _CAVEAT),
    small=("training.steps=150", "optimizer.milestones=[100]", "training.evaluate_every=150"),
    small_burn_in=("training.steps=500", "optimizer.milestones=[420]", "training.evaluate_every=500"),
)
_RETRIEVAL = Preset(
    "retrieval",
    "retrieval",
    "retrieval/mini",
    "target/image_to_text_R@1",
    source_only=Variant(("alignment.mmd.weight=0",)),
    data=GeneratedData(
        "mini_scenes",
        "gh_downstream.retrieval.data:make_mini_scenes",
        {
            "source.path": "source/train.csv",
            "target.path": "target/train.jsonl",
            "validation.source.path": "source/test.csv",
            "validation.target.path": "target/test.jsonl",
        },
    ),
    adapted="aligned",
    report_content="gh_downstream.comparison.showing:retrieval_content",
    paragraphs=(_SCENES, _CAVEAT),
    small=("training.steps=120", "optimizer.warmup_steps=30", "training.evaluate_every=60"),
)
_DETECTION_DETECTRON2 = dataclasses.replace(
    _DETECTION,
    name="detection-detectron2",
    engine_name="detectron2",
    config="detection/mini/da",
    metric="bbox/AP50",
    source_only=Variant(config="detection/mini/source-only"),
    oracle=Variant(config="detection/mini/oracle"),
    burn_in=Variant(config="detection/mini/burn-in"),
    # Detectron2's catalog finds the streets by the name of their folder.
    data=dataclasses.replace(_MINI_CITYSCAPES, paths={"DETECTRON2_DATASETS": ".."}),
    paragraphs=(
        _STREETS.format("Detectron2 (a ResNet-50 with a feature pyramid, at an eighth of the usual width)"),
        _CAVEAT,
    ),
    small=("SOLVER.MAX_ITER=150", "SOLVER.STEPS=(100,)", "TEST.EVAL_PERIOD=150"),
    small_burn_in=("SOLVER.MAX_ITER=500", "SOLVER.STEPS=(420,)", "TEST.EVAL_PERIOD=500"),
)
PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for preset in (
        _DIGITS,
        *(
            dataclasses.replace(_REAL_DIGITS, name=n, config=f"classification/{n}")
            for n in ("mnist-usps", "usps-mnist")
        ),
        *(_of_office_caltech(*pair) for pair in itertools.permutations(("amazon", "webcam", "dslr"), 2)),
        _RETRIEVAL,
        _DETECTION,
        _DETECTION_DETECTRON2,
    )
}
"""The presets by their names; :func:`preset_of_config` makes one of any configuration."""
