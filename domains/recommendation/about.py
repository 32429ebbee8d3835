"""What a recommender's card says of it."""

from __future__ import annotations

from mambakit.core.trust.about import About

RECOMMENDER = About(
    task="next-item recommendation",
    use=(
        "Lists of items for a user, from the order and the times of what the user had before, in a catalogue "
        "that the model was trained on or whose new items are described by the same features."
    ),
    limits=(
        "It learns what was clicked, bought or rated, not what was liked or good for anyone, and repeats the "
        "popularity that it saw: `mambakit recommendation evaluate --slices` says whom it serves less.",
        "Items without events and features are never shown. Users without history get much the same list.",
        "Figures are of one moment's data: tastes and catalogues move on.",
        "The folder holds the names of all items and how often each was had; it is not anonymous.",
    ),
    commands=("mambakit recommendation recommend --model FOLDER --input histories.csv --k 10",),
)
