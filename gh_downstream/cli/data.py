"""Draw small data sets, check Cityscapes, make fog, convert annotations, and cache features."""

from pathlib import Path
from typing import Annotated

import typer

NewRoot = Annotated[
    Path,
    typer.Argument(metavar="ROOT", help="folder to write to: new, empty, or an earlier tree of the same arguments"),
]
Seed = Annotated[int, typer.Option(help="the same seed gives the same files")]


def make_streets(
    root: NewRoot,
    train: Annotated[int, typer.Option(help="number of training images")] = 400,
    val: Annotated[int, typer.Option(help="number of validation images")] = 80,
    seed: Seed = 0,
    height: Annotated[int, typer.Option(help="height of the images in pixels")] = 128,
    width: Annotated[int, typer.Option(help="width of the images in pixels")] = 256,
) -> None:
    """Write Mini-Cityscapes: drawn streets, clear and foggy, in the layout of Cityscapes.

    \b
    Example: gh-downstream data make streets datasets/mini_cityscapes
    """
    from gh_downstream.detection.data.mini_cityscapes import make_mini_cityscapes

    make_mini_cityscapes(root, train, val, seed, height, width)


def make_scenes(
    root: NewRoot,
    train: Annotated[int, typer.Option(help="number of source training images")] = 6000,
    target: Annotated[int, typer.Option(help="number of target training images")] = 3000,
    val: Annotated[int, typer.Option(help="number of validation images of each domain")] = 500,
    test: Annotated[int, typer.Option(help="number of test images of each domain")] = 500,
    seed: Seed = 0,
    size: Annotated[int, typer.Option(help="side of the images in pixels")] = 64,
) -> None:
    """Write mini-scenes: captioned drawings of coloured shapes, in a clear and a tinted domain.

    \b
    Example: gh-downstream data make scenes datasets/mini_scenes
    """
    from gh_downstream.retrieval.data.mini_scenes import make_mini_scenes

    make_mini_scenes(root, train, target, val, test, seed, size)


def check(
    root: Annotated[
        Path, typer.Argument(metavar="ROOT", help="folder that holds leftImg8bit, leftImg8bit_foggy and gtFine")
    ],
    read: Annotated[bool, typer.Option("--read", help="open every file too, and find those that were cut off")] = False,
) -> None:
    """Check that a tree of Cityscapes and Foggy Cityscapes is complete; exit with 1 if not.

    \b
    Example: gh-downstream data check datasets/cityscapes
    """
    from gh_downstream.detection.data.check import check_cityscapes, check_table

    parts = check_cityscapes(root, read)
    check_table(root, parts).show()
    if not all(part.whole for part in parts if part.required):
        raise typer.Exit(1)


def fog(
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="folder that holds leftImg8bit, disparity and camera")],
    split: Annotated[list[str] | None, typer.Option(help="may be repeated; train and val by default")] = None,
    beta: Annotated[
        list[float] | None,
        typer.Option(help="density of the fog in 1/m; may be repeated; 0.005, 0.01 and 0.02 by default"),
    ] = None,
    airlight: Annotated[
        tuple[float, float, float] | None,
        typer.Option(metavar="R G B", help="colour of the fog, 0 to 255; estimated from each image by default"),
    ] = None,
) -> None:
    """Write leftImg8bit_foggy next to leftImg8bit, from the disparity and camera files of Cityscapes.

    Results on Foggy Cityscapes are compared on the published images, whose depth was refined: take those where you can.

    \b
    Example: gh-downstream data fog datasets/cityscapes --split val --beta 0.02
    """
    from gh_downstream.detection.data.fog import FOG_DENSITIES, make_foggy_split

    for name in split or ("train", "val"):
        make_foggy_split(root, name, beta or FOG_DENSITIES, airlight)


def voc(
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="folder of the images")],
    annotations: Annotated[
        Path, typer.Argument(metavar="ANNOTATIONS", help="folder of the XML files, which are named like the images")
    ],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="JSON file to write")],
    only: Annotated[str, typer.Option(help="pattern of the images to take, by their names without ending")] = "*",
) -> None:
    """Write annotations in the format of Pascal VOC as a JSON file in COCO's.

    \b
    Example: gh-downstream data voc carla/images/train carla/labels/train carla/town01.json --only "Town01_*"
    """
    from gh_downstream.detection.data.voc import convert_voc

    convert_voc(images, annotations, output, only)


def features(
    config: Annotated[str | None, typer.Option(help="YAML file, or a name of configs list; classification")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="what to change, or the whole configuration", show_default=False),
    ] = None,
) -> None:
    """Compute the features of a frozen backbone once, so that its trainings take seconds.

    They go into the folder that the configuration names as features. What is there already, and still true, is kept.

    \b
    Example: gh-downstream data features --config classification/office-caltech
    """
    from gh_downstream.classification.config import ClassificationConfig
    from gh_downstream.classification.features import cache_features
    from gh_downstream.training import load_config
    from gh_downstream.training.configs import find_config

    cache_features(load_config(ClassificationConfig, find_config(config) if config else None, overrides or []))
