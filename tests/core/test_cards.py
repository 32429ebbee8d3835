"""Data cards: the shipped ones hold together, and broken ones are refused with the reason."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mambakit.core.data import card_names, load_card, read_card, render_card
from mambakit.core.data.cards import parse_card, schema
from mambakit.core.errors import DataError, UsageError

GOOD = """---
pretty_name: Tiny
license: mit
tags: [time-series]
homepage: https://example.org
mambakit:
  name: tiny
  domain: timeseries
  version: "1"
  files:
    - name: tiny.csv
      bytes: 10
      sha256: {sha}
      sources:
        - url: https://example.org/tiny.csv
  rows: 100
  columns: [y]
  units: {{y: m}}
  splits: {{train: [0, 80], test: [80, 100]}}
---
# tiny

A card.
""".format(sha="ab" * 32)


@pytest.mark.parametrize("name", card_names())
class TestShippedCards:
    def test_has_its_facts(self, name: str) -> None:
        card = load_card(name)
        assert card.name == name
        assert card.embedded or card.files or card.packs or card.made_from
        if card.classes:  # labelled series: a file a split, and validation is cut from training
            assert [file.split for file in card.files] == ["train", "test"] == list(card.splits)
            assert card.splits["train"][1] == card.splits["test"][0]
            return
        assert card.season_length or not card.frequency  # series of several steps have a season each
        if card.fractions:
            assert sum(card.fractions.values()) == pytest.approx(1)
        elif list(card.splits) == ["test"]:  # nothing to train on
            assert card.splits["test"] == (0, card.rows)
        elif not card.horizon:
            assert set(card.splits) == {"train", "validation", "test"}
            assert card.splits["train"][0] == 0
            assert card.splits["train"][1] == card.splits["validation"][0]
            assert card.splits["validation"][1] == card.splits["test"][0]

    def test_columns_are_named_once(self, name: str) -> None:
        card = load_card(name)
        parts = [*card.past, *card.future, *card.static]
        assert len(set(parts)) == len(parts)
        if card.layout == "long":
            assert card.target in card.columns
            assert set(parts) <= set(card.columns)
            assert card.time_column or card.time_parts

    def test_mirror_path_ends_as_the_url_does(self, name: str) -> None:
        for file in load_card(name).files:
            for source in file.sources:
                assert source.mirror is not None
                assert source.mirror.split("/")[0] == load_card(name).domain
                stored = source.mirror.rsplit("/", 1)[1]  # or the card's own name, where the URL's misleads
                assert stored in (source.url.rsplit("/", 1)[1], f"{file.name}.gz")
                assert re.search(r"/[0-9a-f]{40}/", source.url), (
                    "a URL without a commit may change its content"
                )

    def test_text_is_finished(self, name: str) -> None:
        text = load_card(name).text
        for section in ("## Columns", "## Splits", "## Known traps", "## Licence", "## Citation"):
            assert section in text
        assert "TODO" not in text

    def test_renders(self, name: str) -> None:
        card = load_card(name)
        text = render_card(card)
        assert card.title in text
        assert all(file.sha256 in text for file in card.files)

    def test_any_case_finds_it(self, name: str) -> None:
        assert load_card(name.upper()) == load_card(name.lower()) == load_card(name)


@pytest.mark.parametrize(
    ("name", "rows", "splits"),
    [
        ("ETTh1", 17420, [8640, 11520, 14400]),
        ("ETTm1", 69680, [34560, 46080, 57600]),
        ("Weather", 52696, [int(52696 * 0.7), 52696 - int(52696 * 0.2), 52696]),
        ("Exchange", 7588, [int(7588 * 0.7), 7588 - int(7588 * 0.2), 7588]),
        ("ILI", 966, [int(966 * 0.7), 966 - int(966 * 0.2), 966]),
        ("NP", 52416, [int(52416 * 0.7), 52416 - int(52416 * 0.2), 52416]),
        ("PM25", 43824, [int(43824 * 0.7), 43824 - int(43824 * 0.2), 43824]),
    ],
)
def test_splits_are_the_published_ones(name: str, rows: int, splits: list[int]) -> None:
    card = load_card(name)
    assert card.rows == rows
    assert [stop for _, stop in card.splits.values()] == splits


def test_unknown_name_lists_close_ones() -> None:
    with pytest.raises(UsageError, match=r"no data card called 'etth'; did you mean ETTh1"):
        load_card("etth")
    with pytest.raises(UsageError, match=r"known cards: .*co2, .*ETTh1"):
        load_card("???")


def test_reads_a_card_of_the_users_own(tmp_path: Path) -> None:
    path = tmp_path / "tiny.md"
    path.write_text(GOOD)
    card = read_card(path)
    assert card.files[0].sources[0].sha256 == "ab" * 32
    assert card.splits == {"train": (0, 80), "test": (80, 100)}


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("---\n", "", "starts with a YAML head"),
        ("pretty_name: Tiny\n", "", "'pretty_name' is a required property"),
        ("license: mit", "license: [", "not YAML"),
        ("sha256: a", "sha256: X", "files.0.sha256"),
        ("domain: timeseries", "domain: cooking", "mambakit.domain: 'cooking' is not one of"),
        ("  rows: 100\n", "  rows: 90\n", r"split test \[80, 100\]"),
        ("train: [0, 80]", "train: [80, 80]", "split train"),
        ("  rows: 100\n", "  rows: 100\n  colour: red\n", "colour"),
        ("      sources:\n        - url: https://example.org/tiny.csv\n", "      sources: []\n", "sources"),
        ("tiny.csv\n  rows", "tiny.csv\n          mirror: ../../etc/passwd\n  rows", "mirror"),
        ("tiny.csv\n  rows", "tiny.csv\n          compression: zip\n  rows", "required|depend"),
        ("  rows: 100\n", "  rows: 100\n  embedded: x.y\n", "files"),
        ("  splits: {train: [0, 80], test: [80, 100]}\n", "", "splits|anyOf|valid under any"),
        ("  rows: 100\n", "  rows: 100\n  roles: {other.csv: future}\n", "there is no file 'other.csv'"),
        ("  rows: 100\n", "  rows: 100\n  layout: tall\n", "layout"),
        ("  rows: 100\n", "  rows: 100\n  labels: {y: ranking}\n", "labels.y: 'ranking' is not one of"),
        (
            "  rows: 100\n",
            "  rows: 100\n  protocols: {old: {files: {train: a, validation: b, test: c}, "
            "rows: {train: 1, validation: 1, test: 1}}}\n",
            "protocols: old: there is no file 'a'",
        ),
        ("tiny.csv\n  rows", "tiny.csv\n          compression: tar\n  rows", "required|depend"),
    ],
)
def test_broken_card_names_the_place(old: str, new: str, reason: str) -> None:
    assert old in GOOD
    with pytest.raises(DataError, match=reason) as caught:
        parse_card(GOOD.replace(old, new, 1), source="tiny.md")
    assert str(caught.value).startswith("tiny.md: ")


def test_schema_is_a_schema() -> None:
    import jsonschema

    jsonschema.Draft202012Validator.check_schema(schema())
