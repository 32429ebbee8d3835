"""Reports: one file, nothing from outside, everything escaped."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

from mambakit.core.training import Report

matplotlib.use("Agg")
NASTY = "<script>alert('x')</script> & \"quotes\""


class Page(HTMLParser):
    """The tags and the text of a page; fails on a tag that is not closed."""

    VOID = ("meta", "img", "!doctype")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def sample() -> Report:
    from matplotlib import pyplot as plt

    report = Report(f"Forecast {NASTY}")
    report.add_metrics({"MSE": 0.43219, "windows": 2785, NASTY: NASTY})
    report.add_heading(NASTY)
    report.add_text(f"two\nlines {NASTY}")
    report.add_code(f"mambakit {NASTY}")
    report.add_table([{"model": NASTY, "mse": 0.5, NASTY: None}, {"model": "b", "mse": float("nan")}], NASTY)
    figure, axes = plt.subplots()
    axes.plot([1, 2, 3])
    report.add_figure(figure, NASTY)
    plt.close(figure)
    return report


def test_opens_offline_and_escapes_everything(tmp_path: Path) -> None:
    path = sample().write(tmp_path / "new/folder/report.html")
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    names = [tag for tag, _ in page.tags]
    assert "script" not in names
    assert "link" not in names
    for _, attributes in page.tags:
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert not re.search(r"https?://|@import|url\(", text)
    # once each: title twice, metric name and value, heading, text, code, cell, column, caption twice
    assert page.text.count(NASTY) == 11
    assert dict(page.tags)["img"]["alt"] == NASTY


def test_picture_is_inside() -> None:
    (source,) = (attributes["src"] for tag, attributes in Page(sample().render()).tags if tag == "img")
    assert source is not None
    assert base64.b64decode(source.removeprefix("data:image/png;base64,")).startswith(b"\x89PNG\r\n")


def test_numbers_line_up_and_read_well() -> None:
    report = Report("t")
    report.add_table(
        [{"model": "a", "mse": 0.43219, "n": 12345}, {"model": "b", "mse": None, "n": np.int64(7000)}]
    )
    text = report.render()
    assert '<td class="number">0.4322</td>' in text
    assert '<td class="number">&ndash;</td>' in text
    assert '<td class="number">12,345</td>' in text
    assert '<td class="number">7,000</td>' in text
    assert "<td>a</td>" in text


def test_takes_a_data_frame_and_its_named_index() -> None:
    frame = pd.DataFrame({"mse": [0.5, 0.25]}, index=pd.Index(["h96", "h192"], name="horizon"))
    report = Report("t")
    report.add_table(frame)
    text = Page(report.render()).text
    for cell in ("horizon", "mse", "h192", "0.25"):
        assert cell in text
    report = Report("t")
    report.add_table(frame.reset_index(drop=True))
    assert "index" not in Page(report.render()).text
