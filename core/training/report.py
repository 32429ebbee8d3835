"""Reports: one HTML file with pictures inside, that opens anywhere, offline."""

from __future__ import annotations

import base64
import html
import io
import numbers
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mambakit.core.training.run_folder import write_atomically

_MOST_LEFT_OUT = 50
_STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; color: #1d2733; background: #f5f6f8; margin: 0; }
main { max-width: 60rem; margin: 2rem auto; padding: 1.5rem 2.5rem 2.5rem; background: #fff;
       border: 1px solid #dfe3e8; border-radius: 8px; }
h1 { font-size: 1.7rem; margin: .5rem 0 1.2rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .8rem; padding-top: .8rem; border-top: 1px solid #e6e9ed; }
p { white-space: pre-line; }
.metrics { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1rem 0; }
.metrics div { min-width: 7rem; padding: .6rem 1rem; background: #f0f4fa; border-radius: 6px; }
.metrics b { display: block; font-size: 1.3rem; font-variant-numeric: tabular-nums; }
.metrics span { color: #5a6675; font-size: .85rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-size: .92rem; }
caption { caption-side: bottom; text-align: left; color: #5a6675; padding-top: .4rem; }
th, td { padding: .35rem .9rem .35rem 0; text-align: left; border-bottom: 1px solid #e6e9ed; }
th { border-bottom: 2px solid #b9c2cd; }
th.number, td.number { text-align: right; padding-left: .9rem; font-variant-numeric: tabular-nums; }
figure { margin: 1.2rem 0; }
img { max-width: 100%; height: auto; }
figcaption { color: #5a6675; font-size: .9rem; }
pre { background: #f5f6f8; padding: .8rem 1rem; border-radius: 6px; overflow-x: auto; font-size: .85rem; }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{parts}
</main>
</body>
</html>
"""


class Report:
    """Collects text, numbers, tables and figures, and writes them as one HTML file.

    Everything given is text, never markup: it is escaped.

    Args:
        title: The heading, and the browser tab's name.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self._parts: list[str] = []

    def add_heading(self, text: str) -> None:
        """Begins a section."""
        self._parts.append(f"<h2>{html.escape(text)}</h2>")

    def add_text(self, text: str) -> None:
        """Adds a paragraph; line breaks are kept."""
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def add_code(self, text: str) -> None:
        """Adds text in a typewriter face, such as a command or a config."""
        self._parts.append(f"<pre>{html.escape(text)}</pre>")

    def add_metrics(self, metrics: Mapping[str, object]) -> None:
        """Adds a row of headline numbers."""
        cells = "".join(
            f"<div><b>{_shown(value)}</b><span>{html.escape(name)}</span></div>"
            for name, value in metrics.items()
        )
        self._parts.append(f'<div class="metrics">{cells}</div>')

    def add_table(self, rows: Any, caption: str = "") -> None:
        """Adds a table.

        Args:
            rows: A sequence of mappings (a column for each key, as they first appear) or a pandas
                DataFrame (its columns; the index too if it has a name).
            caption: A line below it.
        """
        records = _records(rows)
        columns = list(dict.fromkeys(key for row in records for key in row))
        numeric = {column for column in columns if all(_is_number(row.get(column)) for row in records)}

        def cell(tag: str, column: str, content: str) -> str:
            mark = ' class="number"' if column in numeric else ""
            return f"<{tag}{mark}>{content}</{tag}>"

        head = "".join(cell("th", column, html.escape(str(column))) for column in columns)
        body = "\n".join(
            "<tr>" + "".join(cell("td", column, _shown(row.get(column))) for column in columns) + "</tr>"
            for row in records
        )
        below = f"<caption>{html.escape(caption)}</caption>" if caption else ""
        table = f"<table>{below}<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"
        self._parts.append(f'<div class="scroll">{table}</div>')

    def add_left_out(self, left_out: Sequence[tuple[str, str]], of: str) -> None:
        """Adds how many can't be used, and which and why of the first fifty; nothing where there are none.

        Args:
            left_out: Name and reason of each.
            of: What they are, in the plural.
        """
        if left_out:
            self.add_text(f"{len(left_out)} {of} can't be used and are left out.")
            shown = left_out[:_MOST_LEFT_OUT]
            self.add_table([{"which": which, "why": why} for which, why in shown])

    def add_figure(self, figure: Any, caption: str = "") -> None:
        """Adds a picture inside the file.

        Args:
            figure: A matplotlib figure, which stays open, or the path of a PNG: a run folder's is drawn once.
            caption: Stands below it.
        """
        if isinstance(figure, Path):
            png = figure.read_bytes()
        else:
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=130, bbox_inches="tight")
            png = buffer.getvalue()
        encoded = base64.b64encode(png).decode("ascii")
        escaped = html.escape(caption, quote=True)
        below = f"<figcaption>{escaped}</figcaption>" if caption else ""
        picture = f'<img alt="{escaped}" src="data:image/png;base64,{encoded}">'
        self._parts.append(f"<figure>{picture}{below}</figure>")

    def render(self) -> str:
        """The HTML text."""
        return _PAGE.format(title=html.escape(self.title), style=_STYLE, parts="\n".join(self._parts))

    def write(self, path: Path | str) -> Path:
        """Writes the file, folders included, and returns its path."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, self.render())
        return path


def _records(rows: Any) -> Sequence[Mapping[str, object]]:
    if hasattr(rows, "to_dict") and hasattr(rows, "index"):  # a DataFrame, without importing pandas
        named = any(name is not None for name in rows.index.names)
        frame = rows.reset_index() if named else rows
        return list(frame.to_dict(orient="records"))
    return list(rows)


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, numbers.Real) and not isinstance(value, bool))


def _shown(value: object) -> str:
    if value is None:
        return "&ndash;"
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, numbers.Integral):
        return f"{int(value):,}"
    if isinstance(value, numbers.Real):
        return f"{float(value):.4g}"
    return html.escape(str(value))
