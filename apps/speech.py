"""Speech: name, recognise and clean what is heard.

mambakit speech train --data fsdd --task classify --output runs/digits
mambakit speech classify --model runs/digits --input recordings/ --output labels.csv
mambakit speech evaluate --model runs/digits --json
mambakit speech train --data connected-digits --task recognize --output runs/asr
mambakit speech train --data sentences.txt --task language --output runs/language
mambakit speech transcribe --model runs/asr --input call.wav --output call.srt
mambakit speech stream --model runs/asr --input - < audio.pcm
mambakit speech align --model runs/asr --input x.wav --text "three one four" --output x.TextGrid
mambakit speech train --task enhance --output runs/enhance
mambakit speech enhance --model runs/enhance --input noisy.wav --output clean.wav --plot before-after.png
mambakit speech train --task separate --data fsdd --output runs/separate
mambakit speech separate --model runs/separate --input mix.wav --output apart
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec

from mambakit.apps.speech_align import align
from mambakit.apps.speech_classify import classify
from mambakit.apps.speech_enhance import enhance
from mambakit.apps.speech_probe import probe
from mambakit.apps.speech_separate import separate
from mambakit.apps.speech_stream import stream
from mambakit.apps.speech_train import evaluator, trainer
from mambakit.apps.speech_transcribe import transcribe
from mambakit.core.cli import run_app
from mambakit.core.errors import UserError

VERBS: dict[str, Callable[..., object]] = {
    "classify": classify,
    "transcribe": transcribe,
    "stream": stream,
    "align": align,
    "enhance": enhance,
    "separate": separate,
    "probe": probe,
}
_NEEDED = ("torchaudio", "soundfile")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``mambakit speech ...``; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing and words and not {"-h", "--help"} & set(words):
        print(
            f"error: mambakit speech needs {' and '.join(missing)}; install it with "
            "pip install 'mambakit[speech]'",
            file=sys.stderr,
        )
        return 1
    try:
        verbs = {"train": trainer(words), "evaluate": evaluator(words), **VERBS}
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    description, _, examples = (__doc__ or "").partition("\n\n")
    return run_app("mambakit speech", verbs, words, description, examples)


if __name__ == "__main__":
    sys.exit(main())
