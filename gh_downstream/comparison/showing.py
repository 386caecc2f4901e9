"""Tables and pictures of a workload for the report of its runs."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence

from gh_downstream.comparison.results import FinishedRun, Group
from gh_downstream.comparison.runs import SOURCE_ONLY
from gh_downstream.reporting import Cell, ResultStore, Spread, Table
from gh_downstream.reporting.html import Picture
from gh_downstream.reporting.results import R
from gh_downstream.training.config import joined_hash

QUERIES, TOP = 4, 6
"""Example captions in the report of retrieval, and images shown for each."""


def detection_content(group: Group) -> list[Table | Picture]:
    """Average precision on the foggy streets by class, and detections of the first seed on three of them."""
    from gh_downstream.detection.data import load_cityscapes
    from gh_downstream.detection.drawing import comparison_grid
    from gh_downstream.detection.evaluation import RESULTS, ap_table

    read, joined = _read(group, RESULTS)
    results = {name: [next(iter(of_run.values())) for of_run in runs] for name, runs in read.items()}
    table = ap_table(results, config_hash=joined, title="Average precision on foggy streets")
    assert group.preset.data is not None
    dataset = load_cityscapes(group.datasets / group.preset.data.folder, "val", 0.02)
    chosen = [dataset.records[k * len(dataset) // 3]["image_id"] for k in range(3)]
    detections = {}
    for row in group.rows:
        (path,) = (row.first.folder / "detections").glob("*.json")
        detections[row.name] = json.loads(path.read_text())
    grid = comparison_grid(dataset, detections, chosen, score_threshold=0.5)
    caption = "Detections with a score of at least 0.5 on the same foggy streets, first seed; ground truth first."
    return [table, Picture(grid, caption)]


def retrieval_content(group: Group) -> list[Table | Picture]:
    """Recall on both domains, in short and in full, and what example captions find."""
    from gh_downstream.retrieval.evaluation import RESULTS, recall_table

    read, joined = _read(group, RESULTS)
    recalls = {
        name: [{domain: result.metrics for domain, result in of_run.items()} for of_run in runs]
        for name, runs in read.items()
    }
    full = []
    for domain in ("target", "source"):
        results = {name: [of_run[domain] for of_run in runs] for name, runs in read.items()}
        full.append(recall_table(results, config_hash=joined, title=f"Recall on the {domain}"))
    shown = {row.name: row.first for row in (group.rows[0], group.rows[-1])}
    return [recall_summary(recalls), *(_example_queries(name, run) for name, run in shown.items()), *full]


def _read(group: Group, store: ResultStore[R]) -> tuple[dict[str, list[dict[str, R]]], str]:
    """The results of all runs by row, and the hash of all their configurations."""
    read = {row.name: [store.read(run.folder) for run in row.runs.values()] for row in group.rows}
    joined = joined_hash(configuration for runs in read.values() for _, configuration in runs)
    return {name: [results for results, _ in runs] for name, runs in read.items()}, joined


def recall_summary(recalls: Mapping[str, Sequence[Mapping[str, Mapping[str, float]]]]) -> Table:
    """Return recall at 1 of every row, from the metrics of its runs by domain, and what became of source-only's."""
    from gh_downstream.retrieval.evaluation import DIRECTIONS

    columns = [(domain, f"{direction}_R@1") for domain in ("source", "target") for direction in DIRECTIONS]
    means = {
        (name, domain): statistics.fmean(run[domain][f"{direction}_R@1"] for run in runs for direction in DIRECTIONS)
        for name, runs in recalls.items()
        for domain in ("source", "target")
    }
    before = {domain: means.get((SOURCE_ONLY, domain), math.nan) for domain in ("source", "target")}
    rows: list[list[Cell]] = []
    for name, runs in recalls.items():
        values = [[run[domain][metric] for run in runs] for domain, metric in columns]
        cells: list[Cell] = [Spread.of(of_column) if len(runs) > 1 else of_column[0] for of_column in values]
        times = means[name, "target"] / (before["target"] or math.nan)
        rows.append([name, len(runs), *cells, times, before["source"] - means[name, "source"]])
    return Table(
        "Recall at 1 on both domains",
        ["model", "runs", "source i2t", "source t2i", "target i2t", "target t2i", "target ×", "source lost"],
        rows,
        [
            "R@1 in percent, i2t: image to text, t2i: text to image; target ×: mean of both directions on the target "
            "over that of source-only; source lost: points of it lost on the source",
            "± is the sample standard deviation over runs with different seeds",
        ],
    )


def _example_queries(name: str, run: FinishedRun) -> Picture:
    """The top images of a few captions of the target."""
    from gh_downstream.retrieval.config import RetrievalConfig
    from gh_downstream.retrieval.data import load_dataset
    from gh_downstream.retrieval.drawing import contact_sheet
    from gh_downstream.retrieval.engine import load_encoder
    from gh_downstream.retrieval.search import SearchIndex, encode_texts
    from gh_downstream.training import load_config

    config = load_config(RetrievalConfig, run.folder / "config.yaml")
    encoder = load_encoder(config, run.folder / "last.pt")
    target = load_dataset(config.validation["target"])
    chosen = [k * len(target.texts) // QUERIES for k in range(QUERIES)]
    captions = [target.texts[k] for k in chosen]
    answers = [[str(target.images[target.image_of_text[k]])] for k in chosen]
    hits = SearchIndex.build(encoder, target.images).search(encode_texts(encoder, captions), TOP)
    sheet = contact_sheet(captions, hits, answers, columns=TOP, size=112)
    return Picture(sheet, f"{name}, first seed: the first {TOP} images of the target for captions of it.")
