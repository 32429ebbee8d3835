"""What the cards of models of molecules say of them."""

from __future__ import annotations

from mambakit.core.trust.about import About

PROPERTIES = About(
    task="prediction of molecular properties",
    use=(
        "Ranking and screening of small organic molecules like those of the training, by the properties that "
        "it was trained on; an interval, or a set of classes, comes with each value."
    ),
    limits=(
        "Where `nearest_train_similarity` is low, a molecule is unlike the training's, and neither the value "
        "nor the interval holds what it promises.",
        "It predicts a measurement, with that assay's faults; it does not take the place of one, nor of a "
        "judgement of safety.",
        "Conformers, salts' counter-ions, mixtures and metals are known as far as the notation says them.",
        "The folder holds the training molecules and their labels: whoever gets it gets them.",
    ),
    commands=("mambakit molecules predict --model FOLDER --input my.csv --output predicted.csv",),
)
LANGUAGE = About(
    task="generation of molecules",
    tag="text-generation",
    use=(
        "Drawing molecules like those of the training, as ideas for a chemist or as the start of a search "
        "towards an objective (`mambakit molecules optimize`)."
    ),
    limits=(
        "That a molecule is valid says nothing of whether it can be made, is stable, or is safe.",
        "What it draws is like its training data, their biases included, and can be one of those molecules.",
        "It is not to be used to look for substances that harm.",
    ),
    commands=("mambakit molecules generate --model FOLDER --n 100 --output new.smi",),
)
