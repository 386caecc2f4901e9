"""The images that queries found, drawn side by side."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

try:
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont
except ImportError as error:
    raise ImportError("contact sheets need pillow and matplotlib: pip install 'gh_downstream[retrieval]'") from error

from gh_downstream.data.images import open_image

if TYPE_CHECKING:
    from gh_downstream.retrieval.search import Hit

_INK, _FAINT, _BORDER, _RIGHT = "#222222", "#777777", "#cccccc", "#009e73"
_PAPER, _CELL = "#ffffff", "#f0f0f0"


def contact_sheet(
    queries: Sequence[str],
    hits: Sequence[Sequence[Hit]],
    answers: Sequence[Collection[str]] | None = None,
    *,
    columns: int = 5,
    size: int = 192,
) -> Image.Image:
    """Draw the images that each query found, with their ranks and similarities, under the text of the query.

    Args:
        queries: The texts; characters that DejaVu Sans lacks, such as Chinese ones, show as boxes.
        hits: For each query what :meth:`~gh_downstream.retrieval.search.SearchIndex.search` found, best first.
        answers: For each query the names of the images that are right, which get a green frame; None if not known.
        columns: Images side by side; further ones of a query go into further lines.
        size: Side in pixels of the square that an image is enlarged or reduced to fit.

    Returns:
        One RGB image.

    Raises:
        ValueError: There is no query, or not one list of hits, and of answers, for each; or an image is not readable.
        FileNotFoundError: The file of an image is gone.
    """
    known = [()] * len(hits) if answers is None else answers
    if not len(queries) == len(hits) == len(known) > 0:
        counts = f"{len(queries)} queries, {len(hits)} lists of hits, {len(known)} of answers"
        raise ValueError(f"a sheet needs a list of hits, and one of answers if any, for each query, got {counts}")
    columns = max(1, min(columns, max(map(len, hits))))
    blocks = [_block(*row, columns, size) for row in zip(queries, hits, known, strict=True)]
    top = margin = size // 12
    height = sum(block.height + margin for block in blocks) + margin
    sheet = Image.new("RGB", (blocks[0].width + 2 * margin, height), _PAPER)
    for block in blocks:
        sheet.paste(block, (margin, top))
        top += block.height + margin
    return sheet


def _block(query: str, hits: Sequence[Hit], right: Collection[str], columns: int, size: int) -> Image.Image:
    """A query and what it found."""
    title, label = _font(max(12, size // 10)), _font(max(10, size // 13))
    gap, frame = max(8, size // 16), max(2, size // 48)
    width = columns * (size + gap) - gap
    lines = _wrapped(query, title, width)
    line_height, label_height = round(1.25 * title.size), round(1.25 * label.size)
    top, cell_height = len(lines) * line_height + gap, size + frame + label_height + gap
    canvas = Image.new("RGB", (width + 2 * frame, top + -(-len(hits) // columns) * cell_height - gap), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for number, line in enumerate(lines):
        draw.text((frame, number * line_height), line, fill=_INK, font=title)
    for index, hit in enumerate(hits):
        x, y = frame + index % columns * (size + gap), top + index // columns * cell_height
        border, color, ink = (frame, _RIGHT, _RIGHT) if str(hit.image) in right else (1, _BORDER, _FAINT)
        outside = (x - border, y - border, x + size + border - 1, y + size + border - 1)
        draw.rectangle(outside, fill=_CELL, outline=color, width=border)
        image = open_image(hit.image)
        width, height = (max(1, round(side * size / max(image.size))) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
        canvas.paste(image, (x + (size - width) // 2, y + (size - height) // 2))
        draw.text((x, y + size + frame), f"{index + 1}   {hit.similarity:.3f}", fill=ink, font=label)
    return canvas


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Lines of as many letters as fit in a width."""
    letters = max(1, min(len(text), width // round(font.getlength("i"))))
    while max(map(font.getlength, lines := textwrap.wrap(text, letters)), default=0) > width and letters > 1:
        letters -= 1
    return lines


def _font(size: int) -> ImageFont.FreeTypeFont:
    # Pillow's own font has no letters beyond ASCII.
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)
