"""What top lists are like, beyond being right: how much of the catalogue, how popular, how alike.

A list is a row of items, best first; -1 where it is shorter than the others.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

Array = NDArray[np.float64]
Lists = NDArray[np.int64]

# Lists whose items' vectors are added up at once: the sums of long vectors are nearly dense
_BLOCK = 1024


def appearances(lists: Lists, n_items: int) -> NDArray[np.int64]:
    """How many lists each item is in, ``(n_items,)``."""
    return np.bincount(lists[lists >= 0], minlength=n_items).astype(np.int64)


def coverage(appearances: NDArray[np.int64]) -> float:
    """Share of the catalogue that is in at least one list (Herlocker et al. 2004, section 4.3).

    Args:
        appearances: Of every item of the catalogue, from ``appearances``.
    """
    return float((appearances > 0).mean()) if len(appearances) else float("nan")


def gini(appearances: NDArray[np.int64]) -> float:
    """How unevenly items are recommended: 0 all alike, towards 1 one item only; NaN without a list.

    ``sum_i (2 i - n - 1) x_i / (n sum x)`` over increasing ``x`` (Gini index; Adomavicius & Kwon 2012,
    section 3.2, have its complement).

    Args:
        appearances: Of every item of the catalogue, from ``appearances``.
    """
    total, n = int(appearances.sum()), len(appearances)
    if not total:
        return float("nan")
    weights = 2 * np.arange(1, n + 1) - n - 1
    return float((weights * np.sort(appearances).astype(np.float64)).sum() / (n * total))


def novelty(lists: Lists, n_users_of: NDArray[np.int64], n_users: int) -> Array:
    """Mean self-information of a list's items in bits, ``log2(n_users / users of the item)``, ``(n,)``.

    Zhou et al. 2010, equation 4. An item that nobody had counts as one that a single user had.

    Args:
        lists: ``(n, k)``.
        n_users_of: Users who had each item in training, ``(n_items,)``.
        n_users: Users in training.
    """
    return _means(lists, np.log2(max(n_users, 1) / np.maximum(n_users_of, 1)))


def popularity(lists: Lists, counts: NDArray[np.int64]) -> Array:
    """Mean number of training events of a list's items, ``(n,)``.

    Its mean over lists is the average recommendation popularity (Yin et al. 2012, section 5.1.3). Divided by
    the mean count of the targets it says whether lists are more popular than what users turned to (above 1).

    Args:
        lists: ``(n, k)``.
        counts: Training events of each item, ``(n_items,)``.
    """
    return _means(lists, counts.astype(np.float64))


def diversity(lists: Lists, vectors: sparse.csr_matrix) -> Array:
    """One minus the mean cosine similarity of a list's pairs, ``(n,)``; NaN for lists of fewer than two.

    Ziegler et al. 2005, section 3.3, as a distance and averaged. An item without a vector is like none.

    Args:
        lists: ``(n, k)``.
        vectors: What is known of each item, ``(n_items, n_features)``: see ``feature_vectors``; or who had
            it, ``(n_items, n_users)``.
    """
    squares = np.asarray(vectors.multiply(vectors).sum(1), dtype=np.float64).ravel()
    scale = np.divide(1.0, np.sqrt(squares), out=np.zeros_like(squares), where=squares > 0)
    unit = (sparse.diags(scale) @ vectors).tocsr()
    has_vector = (squares > 0).astype(np.float64)
    found = np.full(len(lists), np.nan)
    for start in range(0, len(lists), _BLOCK):
        part = lists[start : start + _BLOCK]
        there = part >= 0
        n = there.sum(1)
        row = np.repeat(np.arange(len(part)), n)
        items = part[there]
        chosen = sparse.csr_matrix((np.ones(len(items)), (row, items)), shape=(len(part), unit.shape[0]))
        # the pairs' sum is half of |sum of the vectors|^2 less each one's own square
        total = chosen @ unit
        both_ways = np.asarray(total.multiply(total).sum(1)).ravel() - chosen @ has_vector
        several = n > 1
        found[start : start + _BLOCK][several] = 1 - both_ways[several] / (n * (n - 1))[several]
    return found


def feature_vectors(features: pd.DataFrame) -> sparse.csr_matrix:
    """Items as the categories that they have, ``(n_items, n_categories)`` of 0 and 1.

    Columns of str are categories, several of them where ``|`` stands between; columns of bool, or of nothing
    but 0 and 1, are categories of their own. ``title`` and other numbers stay out.

    Args:
        features: A row an item.
    """
    tags = features.select_dtypes(np.int8)  # as features are read: thousands of columns, all 0 and 1
    parts = [sparse.csr_matrix(tags.to_numpy()).astype(np.float32)] if tags.shape[1] else []
    for name in features.columns.difference(tags.columns, sort=False):
        column = features[name]
        if name == "title":
            continue
        if not pd.api.types.is_numeric_dtype(column.dtype):
            words = column.astype("string").reset_index(drop=True).str.split("|").explode().dropna()
            words = words[words != ""]
            codes, categories = pd.factorize(words)
            shape = (len(features), len(categories))
            pairs = (words.index.to_numpy(), codes)
            found = sparse.coo_matrix((np.ones(len(codes), dtype=np.float32), pairs), shape=shape).tocsr()
            found.data[:] = 1.0  # a category named twice
            parts.append(found)
        elif column.dropna().isin([0, 1]).all():
            parts.append(sparse.csr_matrix(column.fillna(0).to_numpy(dtype=np.float32)[:, None]))
    if not parts:
        return sparse.csr_matrix((len(features), 0), dtype=np.float32)
    return sparse.hstack(parts, format="csr")


def _means(lists: Lists, values: Array) -> Array:
    """Of the values of a list's items, ``(n,)``; NaN for an empty list."""
    there = lists >= 0
    total = np.where(there, values[np.where(there, lists, 0)], 0.0).sum(1)
    n = there.sum(1)
    return np.divide(total, n, out=np.full(len(lists), np.nan), where=n > 0)
