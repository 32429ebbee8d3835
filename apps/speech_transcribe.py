"""Transcripts of recordings: what `mambakit speech transcribe` does."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mambakit.core.cli import print_json
from mambakit.core.errors import DataError, UsageError
from mambakit.domains.speech.recognize.decoding import PRESET_DECODE, DecodeConfig

if TYPE_CHECKING:
    from mambakit.domains.speech.recognize.model import Recognizer

Format = Literal["srt", "vtt", "txt", "json", "TextGrid"]


def transcribe(
    *,
    model: Path,
    input: Path,
    output: Path | None = None,
    format: Format | None = None,
    decode: DecodeConfig = PRESET_DECODE,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Writes what is said in recordings, with the times of words and a confidence.

    Words are said to begin at the first frame of their first symbol. CTC says symbols late rather than
    early, and a model that streams later than one that hears what follows.

    Args:
        model: Folder of a saved recogniser.
        input: An audio file (wav, flac, ogg, mp3; any rate and number of channels), or a folder of them.
        output: Of a file: a name that ends in .srt, .vtt, .txt, .json or .TextGrid; standard output by
            default. Of a folder: a folder, with a file for every recording.
        format: Of a folder's files, srt by default; and of standard output, where it is the text by default.
        decode: How texts are chosen: a beam, a language model, hotwords.
        device: auto, cpu, cuda or mps.
        json: Print JSON for machines.

    Examples:
        mambakit speech transcribe --model runs/asr --input call.wav --output call.srt
        mambakit speech transcribe --model runs/asr --input calls/ --output texts/ --format TextGrid
        mambakit speech transcribe --model runs/asr --input call.wav --decode.beam 16 --decode.hotwords oslo
    """
    from mambakit.domains.speech.audio import read_audio
    from mambakit.domains.speech.recognize import decoding, formats
    from mambakit.domains.speech.utterances import audio_files

    of_folder = input.is_dir()
    if output is not None and not of_folder:
        formats.check_format(output)
        if format is not None and output.suffix.lower() != f".{format.lower()}":
            raise UsageError(f"format: {format} is not what the name of the output says, {output}")
    if output is not None and of_folder and output.suffix.lower() in formats.FORMATS:
        raise UsageError(f"output: {input} is a folder, so that output must be one too, got {output}")
    if output is None and of_folder and format is not None:
        raise UsageError("format: of a folder it is that of files; give an output folder")
    files = audio_files(input)
    places = dict.fromkeys(files, output)
    if output is not None and of_folder:
        suffix = f".{format or 'srt'}"
        places = {path: output / path.relative_to(input).with_suffix(suffix) for path in files}
        if twice := [path for path, count in Counter(places.values()).items() if count > 1]:
            raise UsageError(
                f"output: {twice[0]} would be written twice, as two files in {input} differ by their suffix "
                "alone; rename one"
            )
    recognizer = load_recognizer(model, device)
    decoder = decoding.Decoder(recognizer, decode)
    said: list[dict[str, object]] = []
    bad: list[tuple[Path, str]] = []
    for path in files:
        try:
            transcript = decoding.transcribe(recognizer, read_audio(path), decoder)
        except DataError as error:
            bad.append((path, str(error)))
            said.append({"path": path, "error": str(error)})
            continue
        said.append({"path": path, **formats.plain(transcript)})
        if (place := places[path]) is not None:
            formats.write_transcript(transcript, place)
        elif not json and format is not None:  # of one file
            print(formats.FORMATS[f".{format.lower()}"](transcript), end="")
        elif not json:
            print(f"{path}\t{transcript.text}" if of_folder else transcript.text)
    done = f"{len(files) - len(bad)} of {len(files)} recordings transcribed"
    if bad:
        done += f", {len(bad)} have an error (the first, {_named(*bad[0])})"
    if len(bad) == len(files):
        raise DataError(_named(*bad[0]) if len(files) == 1 else f"{input}: {done}")
    print(done + (f": {output}" if output else ""), file=sys.stderr)
    if json:
        print_json({"recordings": len(files), "errors": len(bad), "transcripts": said})


def _named(path: Path, why: str) -> str:
    return why if why.startswith(str(path)) else f"{path}: {why}"


def load_recognizer(folder: Path, device: str) -> Recognizer:
    """A saved recogniser on a device."""
    from mambakit.core.training import resolve_device
    from mambakit.domains.speech.recognize.model import Recognizer

    return Recognizer.from_pretrained(folder).to(resolve_device(device)).eval()
