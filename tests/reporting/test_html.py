from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from gh_downstream.reporting import Spread, Table
from gh_downstream.reporting.html import Picture, Section, write_report

VOID = {"meta", "img", "br", "link", "hr"}


class Page(HTMLParser):
    """Elements with their attributes and text; fails on a tag that is closed out of order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.text.setdefault(self.open[-1], []).append(data.strip())

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def make_figure(width: float) -> Figure:
    figure = Figure(figsize=(width, 2))
    figure.add_subplot().plot([0, 1], [0, 1])
    return figure


@pytest.fixture
def page(tmp_path: Path) -> Page:
    table = Table(
        "AP on fog",
        ["model", "car", "mAP50"],
        [["adapted & GH", 12.34, Spread.of([1.0, 2.0, 3.0])], ["<i>oracle</i>", float("nan"), 50.0]],
        header=["80 images"],
        notes=["one machine"],
    )
    pictures = [
        Picture(make_figure(8), 'angles "over" 90°'),
        Picture(make_figure(3), "one panel"),
        Picture(Image.new("RGB", (40, 20), (200, 30, 30)), "street"),
    ]
    sections = [
        Section("Result", ["5 < 6 & <script>alert(1)</script>", table]),
        Section("Pictures <b>", pictures),
    ]
    write_report(tmp_path / "new" / "report.html", "Demo <1>", sections)
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["report.html"]
    return Page((tmp_path / "new" / "report.html").read_text(encoding="utf-8"))


def test_everything_is_there_in_order_and_escaped(page: Page) -> None:
    assert page.text["h1"] == page.text["title"] == ["Demo <1>"]
    assert page.text["h2"] == ["Result", "Pictures <b>"]
    assert page.text["p"] == ["5 < 6 & <script>alert(1)</script>"]
    assert page.text["th"] == ["model", "car", "mAP50", "adapted & GH", "<i>oracle</i>"]
    assert page.text["td"] == ["12.3", "2.0", "–", "50.0"]
    assert page.text["span"] == ["± 1.0"]
    assert page.text["li"] == ["80 images", "one machine"]
    assert page.text["figcaption"] == ['angles "over" 90°', "one panel", "street"]


def test_the_file_needs_nothing_else(page: Page) -> None:
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "audio", "video", "a"}
    for _, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"url\(|@import|https?:", " ".join(page.text["style"]))
    for attributes in page.attributes("img"):
        assert str(attributes["src"]).startswith("data:image/png;base64,")
        assert attributes["alt"]


def test_pictures_are_whole(page: Page) -> None:
    pictures = []
    for attributes in page.attributes("img"):
        png = base64.b64decode(str(attributes["src"]).partition(",")[2], validate=True)
        pictures.append(Image.open(io.BytesIO(png)))
    figure, panel, street = pictures
    assert (figure.size, panel.size) == ((1280, 320), (480, 320))
    assert street.size == (40, 20)
    assert street.convert("RGB").getpixel((5, 5)) == (200, 30, 30)
    assert [attributes["width"] for attributes in page.attributes("img")] == ["880", "330", "40"]


def test_an_old_report_survives_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, "old", [])
    before = path.read_text()
    with pytest.raises(AttributeError):
        write_report(path, "new", [Section("broken", [Picture(None, "no image")])])  # type: ignore[arg-type]
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


def test_wide_figures_are_as_wide_as_the_text_and_the_colours_those_of_the_reader(page: Page) -> None:
    figure, panel, street = page.attributes("img")
    assert figure["class"] == "wide"
    assert not {"class"} & (panel.keys() | street.keys())  # which would be blown up
    style = " ".join(page.text["style"])
    assert "prefers-color-scheme: dark" in style
    root, _, rest = style.partition("body {")
    assert re.search("#[0-9a-f]{3}", root)
    assert not re.search("#[0-9a-f]{3}", rest)  # all of them are among the first, for both schemes
