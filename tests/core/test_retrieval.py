"""Neighbours of hidden states against a plain search, and what is saved of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mambakit.core.errors import DataError, UsageError
from mambakit.core.retrieval import Mix, Neighbours, grid
from mambakit.core.retrieval.neighbours import mixed_log_probabilities, weights_of

pytest.importorskip("faiss")


def store(n: int = 300, d: int = 6, mix: Mix | None = None) -> tuple[Neighbours, torch.Tensor]:
    torch.manual_seed(0)
    keys = torch.randn(n, d)
    return Neighbours(keys, torch.arange(n) % 7, mix), keys


def test_the_mixture_is_that_of_the_paper() -> None:
    mix = Mix(k=5, temperature=0.7, share=0.3)
    found, keys = store(mix=mix)
    queries, scores = torch.randn(4, 6), torch.randn(4, 7)
    weights, place = found.weights(queries)
    actual = mixed_log_probabilities(scores, weights, found.values[place], mix.share).exp()
    for row, query in enumerate(queries):
        d = (keys - query).double().square().sum(1) / found.scale
        nearest = d.argsort()[:5]
        w = torch.exp(-d[nearest] / 0.7) / torch.exp(-d[nearest] / 0.7).sum()
        wanted = 0.7 * scores[row].double().softmax(0)
        for place_, weight in zip(nearest, w, strict=True):
            wanted[int(place_) % 7] += 0.3 * weight
        torch.testing.assert_close(actual[row].double(), wanted, atol=1e-5, rtol=0)
    assert torch.allclose(actual.sum(1), torch.ones(4))


def test_the_scale_is_the_mean_distance_to_sixteen_others() -> None:
    found, keys = store(200)
    distance = torch.cdist(keys, keys).square()
    wanted = distance.sort(1).values[:, 1:17].mean()
    assert found.scale == pytest.approx(float(wanted), rel=1e-4)
    larger = Neighbours(10 * keys, found.values)
    torch.testing.assert_close(
        larger.search(10 * keys[:3] + 1, 4)[0], found.search(keys[:3] + 0.1, 4)[0], rtol=1e-3, atol=1e-4
    )


def test_cells_find_most_of_what_all_keys_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    exact, keys = store(2000)
    monkeypatch.setattr("mambakit.core.retrieval.neighbours._EXACT", 100)
    cells = Neighbours(keys, exact.values)
    queries = torch.randn(50, 6)
    wanted, found = exact.search(queries, 8)[1], cells.search(queries, 8)[1]
    hits = torch.stack([torch.isin(a, b).float().mean() for a, b in zip(wanted, found, strict=True)]).mean()
    assert hits > 0.9


def test_fewer_keys_than_neighbours_are_all_there_are() -> None:
    found, _ = store(3, mix=Mix(k=16))
    distance, place = found.search(torch.zeros(2, 6))
    assert distance.shape == place.shape == (2, 3)
    assert torch.allclose(weights_of(distance, found.mix).sum(1), torch.ones(2))
    assert {mix.k for mix in grid(3)} == {3}
    assert next(iter(grid(3))).share == 0


def test_a_saved_store_is_of_the_weights_it_was_made_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, keys = store(mix=Mix(4, 2.0, 0.25))
    model = nn.Linear(2, 2)
    found.save(tmp_path / "neighbours", model)
    again = Neighbours.load(tmp_path / "neighbours", model)
    assert again is not None
    assert (again.mix, again.scale, len(again)) == (found.mix, found.scale, len(found))
    for one, other in zip(again.search(keys[:9] + 0.1), found.search(keys[:9] + 0.1), strict=True):
        assert torch.equal(one, other)
    assert Neighbours.load(tmp_path / "none", model) is None
    assert Neighbours.load(tmp_path / "neighbours", nn.Linear(2, 2)) is None
    assert "is of other weights, and not used" in capsys.readouterr().err
    (tmp_path / "neighbours" / "index.faiss").write_bytes(b"no")
    with pytest.raises(DataError, match="holds no neighbours that can be read"):
        Neighbours.load(tmp_path / "neighbours", model)


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(ValueError, match=r"expected \(n, d\) and \(n, ...\)"):
        Neighbours(torch.zeros(3, 2), torch.zeros(2))
    with pytest.raises(UsageError, match="share"):
        Mix(share=1.5)
