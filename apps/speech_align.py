"""When known words are said: what `mambakit speech align` does."""

from __future__ import annotations

import sys
from pathlib import Path

from mambakit.apps.shared import check_suffix
from mambakit.apps.speech_transcribe import load_recognizer
from mambakit.core.cli import print_json


def align(
    *,
    model: Path,
    input: Path,
    text: str,
    output: Path | None = None,
    plot: Path | None = None,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Finds when each word of a known text is said, by the likeliest CTC path that says it.

    Args:
        model: Folder of a saved recogniser.
        input: The recording.
        text: What is said in it.
        output: A name that ends in .TextGrid, .json, .srt, .vtt or .txt; standard output by default.
        plot: PNG, PDF or SVG with the words over the sound.
        device: auto, cpu, cuda or mps.
        json: Print JSON for machines.

    Examples:
        mambakit speech align --model runs/asr --input x.wav --text "three one four" --output x.TextGrid
        mambakit speech align --model runs/asr --input x.wav --text "three one four" --plot x.png
    """
    from mambakit.domains.speech.audio import read_audio
    from mambakit.domains.speech.recognize import decoding, formats

    if output is not None:
        formats.check_format(output)
    check_suffix("plot", plot, (".png", ".pdf", ".svg"))
    recognizer = load_recognizer(model, device)
    audio = read_audio(input)
    found = decoding.align(recognizer, audio, text)
    if output is not None:
        formats.write_transcript(found, output)
        print(f"alignment: {output}", file=sys.stderr)
    if plot is not None:
        from mambakit.domains.speech.recognize.plots import alignment_figure

        figure = alignment_figure(recognizer, audio, found, decoding.heard(recognizer, audio))
        plot.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(plot, dpi=130)
        print(f"picture: {plot}", file=sys.stderr)
    if json:
        print_json(formats.plain(found))
    elif output is None:
        for word in found.words:
            print(f"{word.start_s:8.3f} {word.end_s:8.3f}  {word.confidence:.3f}  {word.text}")
