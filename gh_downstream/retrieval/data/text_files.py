"""Text files of images and captions: CSV and TSV with a header, JSON lines, captions alone, Karpathy's JSON."""

import csv
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from gh_downstream.retrieval.data.config import DataConfig
from gh_downstream.retrieval.data.values import Pair, check_columns, chosen_splits, json_object, pairs, utf8

SEPARATORS = (",", "\t", ";", "|")


def read_csv(path: Path, config: DataConfig) -> Iterator[Pair]:
    """Read a table with a header line, fields that hold the separator or a line break in double quotes.

    Raises:
        ValueError: A column is missing, a row has more or fewer fields than the header, a field is empty, or the file
            is not UTF-8.
    """
    try:
        with utf8(path), path.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            file.seek(0)
            rows = csv.reader(file, delimiter=config.separator or _sniff(header, config.columns))
            names = next(rows, [])
            check_columns(names, config.columns, path)
            for row in filter(None, rows):
                where = f"{path}, line {rows.line_num}"
                if len(row) != len(names):
                    raise ValueError(
                        f"{where}: {len(row)} fields, the header has {len(names)}; "
                        "put fields that hold the separator in double quotes"
                    )
                # Of several columns of a name the first counts.
                yield from pairs(dict(zip(reversed(names), reversed(row), strict=True)), config, where)
    except csv.Error as error:
        raise ValueError(f"{path} is not a readable table ({error})") from error


def read_jsonl(path: Path, config: DataConfig) -> Iterator[Pair]:
    """Read a file with a JSON object on each line; a caption is a text or a list of texts.

    Raises:
        ValueError: A line is not a JSON object, lacks a key, or a value is neither a text nor a list of texts.
    """
    with utf8(path), path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                where = f"{path}, line {number}"
                row = json_object(line, where)
                check_columns(row, config.columns, where)
                yield from pairs(row, config, where)


def read_captions(path: Path, config: DataConfig) -> list[Pair]:
    """Read the lines of a text file that are not empty, or raise ``ValueError`` if it is not UTF-8."""
    with utf8(path):
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    return [(None, line.strip()) for line in lines if line.strip()]


def read_karpathy(path: Path, config: DataConfig) -> Iterator[Pair]:
    """Read splits of the JSON of COCO, Flickr30k and Flickr8k by Karpathy and Fei-Fei (CVPR 2015).

    ``train+restval`` is the usual training data of COCO. Images are in the folder that the JSON names, if it does.

    Raises:
        ValueError: The file is not such a JSON, or ``split`` is missing or not in it.
    """
    try:
        images = json.loads(path.read_text(encoding="utf-8"))["images"]
        counts = Counter(image["split"] for image in images)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a JSON of Karpathy's splits ({type(error).__name__}: {error}); "
            "for one JSON object a line give format=jsonl"
        ) from error
    chosen = chosen_splits(path, config.split, counts, "images")
    for number, image in enumerate(images):
        if image["split"] not in chosen:
            continue
        try:
            name = str(Path(image.get("filepath", ""), image["filename"]))
            captions = [sentence["raw"].strip() for sentence in image["sentences"]]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: images[{number}] has no filename and raw sentences ({error!r})") from error
        for caption in captions:
            yield config.located(name), caption


def _sniff(header: str, columns: Sequence[str]) -> str:
    """The separator under which the header has the columns, else the one that makes the most fields."""

    def fit(separator: str) -> tuple[bool, int]:
        names = next(csv.reader([header], delimiter=separator), [])
        return set(columns) <= set(names), len(names)

    return max(SEPARATORS, key=fit)
