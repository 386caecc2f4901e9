"""A report in one HTML file that needs nothing but itself: no scripts, no fonts, no files beside it."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gh_downstream.files import write_atomically
from gh_downstream.reporting.plots import Figure, to_png
from gh_downstream.reporting.tables import Table

try:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from PIL import Image
except ImportError as error:
    raise ImportError("the report needs jinja2 and pillow: pip install 'gh_downstream[detection]'") from error


@dataclass(frozen=True)
class Picture:
    """A figure of matplotlib or an image of Pillow, with a caption: what it shows, and how to read it."""

    image: Figure | Image.Image
    caption: str

    @property
    def width(self) -> int:
        """Width on the page in CSS pixels, where the page is wide enough."""
        return round(110 * self.image.get_figwidth()) if isinstance(self.image, Figure) else self.image.width

    def to_png(self) -> bytes:
        """Return the picture as a PNG."""
        if isinstance(self.image, Figure):
            return to_png(self.image)
        buffer = io.BytesIO()
        self.image.save(buffer, format="PNG", optimize=True)
        return buffer.getvalue()

    def data_url(self) -> str:
        """Return the picture as a PNG in a ``data:`` URL."""
        return f"data:image/png;base64,{base64.b64encode(self.to_png()).decode()}"


@dataclass(frozen=True)
class Section:
    """One section of a report: paragraphs (strings of plain text), tables and pictures, in their order."""

    heading: str
    content: Sequence[str | Table | Picture]


def write_report(path: str | Path, title: str, sections: Sequence[Section]) -> None:
    """Write a report as one self-contained HTML file, atomically."""
    environment = Environment(
        loader=PackageLoader("gh_downstream.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["table"] = lambda block: isinstance(block, Table)
    environment.tests["picture"] = lambda block: isinstance(block, Picture)
    template = environment.get_template("report.html")
    write_atomically(path, template.render(title=title, sections=sections))
