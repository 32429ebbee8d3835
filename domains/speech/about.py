"""What the cards of models of speech say of them."""

from __future__ import annotations

from mambakit.core.trust.about import About

_VOICES = (
    "Voices, languages, rooms and microphones that the training has not are heard worse; who is heard "
    "worse is to be measured before use (`mambakit speech evaluate --data`)."
)
_CONSENT = "People are recorded with their consent, and are not identified by their voices with it."
CLASSIFIER = About(
    task="classification of short recordings",
    tag="audio-classification",
    use="Naming which of the labels of the training a short recording is, such as a keyword.",
    limits=("It names one of its labels, whatever it hears.", _VOICES, _CONSENT),
    commands=("mambakit speech classify --model FOLDER --input recordings/ --output labels.csv",),
)
RECOGNIZER = About(
    task="speech recognition",
    tag="automatic-speech-recognition",
    use="Writing down what is said, in the language and the manner of speaking of the training.",
    limits=(
        _VOICES,
        "Words that the training has not are spelt as they sound, or taken for others; names and numbers, on "
        "which much may hang, are to be checked by a person.",
        _CONSENT,
    ),
    commands=("mambakit speech transcribe --model FOLDER --input x.wav",),
)
TEXT = About(
    task="language modelling of characters",
    tag="text-generation",
    use="Weighing what a recogniser heard by how likely the text is, in the beam search of `transcribe`.",
    limits=("It knows the sentences of its training; it is too small to write or to answer.",),
    commands=(
        "mambakit speech transcribe --model runs/asr --input x.wav --decode.beam 16 --decode.lm FOLDER",
    ),
)
ENHANCER = About(
    task="speech enhancement",
    tag="audio-to-audio",
    use="Removing noise from recordings of speech, one channel, for people who listen to them.",
    limits=(
        "It can remove soft speech with the noise and leave what sounds like speech where there was none: "
        "its output is no evidence of what was said.",
        "Music, echo and speech of others are kept or spoilt, as the training had no such examples of noise.",
        _VOICES,
    ),
    commands=("mambakit speech enhance --model FOLDER --input noisy.wav --output clean.wav",),
)
SEPARATOR = About(
    task="speaker separation",
    tag="audio-to-audio",
    use="Taking two people who speak at once, in one channel, apart.",
    limits=(
        "It gives as many voices as it was trained for, whoever speaks; which is whose may change within a "
        "long recording.",
        "It is to make talk intelligible to those who took part, not to listen in on others.",
        _VOICES,
    ),
    commands=("mambakit speech separate --model FOLDER --input mix.wav --output apart/",),
)
