"""The images that queries found, drawn side by side."""

from __future__ import annotations

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
        hits: For each query what it found, best first, as :meth:`~gh_downstream.retrieval.search.SearchIndex.search`
            returns it.
        answers: For each query the names of the images that are right, which get a green frame; None where it is not
            known.
        columns: Images side by side; further ones of a query go into further lines.
        size: Side in pixels of the square that an image is enlarged or reduced to fit.

    Returns:
        One RGB image.

    Raises:
        ValueError: There is no query, or not one list of hits, and of answers, for each; or an image is not readable.
        FileNotFoundError: The file of an image is gone.
    """
    if not queries or len(hits) != len(queries) or (answers is not None and len(answers) != len(queries)):
        counts = f"{len(queries)} queries, {len(hits)} lists of hits"
        raise ValueError(
            f"a sheet needs hits for each of at least one query, got {counts}"
            + ("" if answers is None else f", {len(answers)} of answers")
        )
    columns = max(1, min(columns, max(map(len, hits))))
    known = answers or [()] * len(queries)
    blocks = [_block(*row, columns, size) for row in zip(queries, hits, known, strict=True)]
    margin = size // 12
    height = sum(block.height + margin for block in blocks) + margin
    sheet = Image.new("RGB", (blocks[0].width + 2 * margin, height), _PAPER)
    top = margin
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
    top = len(lines) * _line_height(title) + gap
    cell_height = size + frame + _line_height(label) + gap
    canvas = Image.new("RGB", (width + 2 * frame, top + -(-len(hits) // columns) * cell_height - gap), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for number, line in enumerate(lines):
        draw.text((frame, number * _line_height(title)), line, fill=_INK, font=title)
    for index, hit in enumerate(hits):
        x, y = frame + index % columns * (size + gap), top + index // columns * cell_height
        is_right = str(hit.image) in right
        border = frame if is_right else 1
        outside = (x - border, y - border, x + size + border - 1, y + size + border - 1)
        draw.rectangle(outside, fill=_RIGHT if is_right else _BORDER)
        canvas.paste(_fitted(open_image(hit.image), size), (x, y))
        text = f"{index + 1}   {hit.similarity:.3f}"
        draw.text((x, y + size + frame), text, fill=_RIGHT if is_right else _FAINT, font=label)
    return canvas


def _fitted(image: Image.Image, size: int) -> Image.Image:
    """The whole image in the middle of a square."""
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    square = Image.new("RGB", (size, size), _CELL)
    square.paste(image.resize((width, height), Image.Resampling.LANCZOS), ((size - width) // 2, (size - height) // 2))
    return square


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Lines of a text that fit in a width, broken in words where these do not fit alone."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        lines.append("")
        for letter in word:
            if font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def _font(size: int) -> ImageFont.FreeTypeFont:
    # Pillow's own font has no letters beyond ASCII.
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def _line_height(font: ImageFont.FreeTypeFont) -> int:
    return round(1.25 * font.size)
