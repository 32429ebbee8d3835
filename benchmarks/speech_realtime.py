"""Streams on one core: how much of real time they take, how late a chunk is, what an hour of audio holds.

    python benchmarks/speech_realtime.py --minutes 60
    python benchmarks/speech_realtime.py --minutes 60 --tasks recognize text
    python benchmarks/speech_realtime.py --minutes 1 --limit

The preset recogniser that streams, beside the same network with causal attention (keys and values kept) and
an MLP in the place of the Mamba layers; and the presets of enhancement and separation that stream. Weights
are random, which costs as much as trained ones; ``--model`` names a trained one for the stream of text. A
stream of connected digits is fed for ``--minutes``, and chunks of 20, 100 and 320 ms are timed for 10 s of
audio at 0, 1, 10 and 60 minutes. What attention has kept at 10 and 60 minutes is its first minute repeated:
what it says changes no time. Times are the process's CPU time on one thread, so
that other work on the machine doesn't count. The memory of the recogniser, ended lines of text included, is
that of the whole process after a minute and at the end. Rows go into results/speech-realtime.json; runs with
``--limit`` or less than 60 minutes write none.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from processes import run_all

CHUNKS_MS = (20, 100, 320)
MEASURED_S = 10.0
MINUTE_FRAMES = 1500  # of the preset: 25 a second
FILLED_S = 4.0  # a chunk between the places where it is timed
OURS, ATTENTION = "mambakit", "attention"
NETWORKS = ("recognize", "enhance", "separate")
TEXT = "text"


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Feeds one stream and times it at its places."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.no_grad():
        return {**job, **(text_stream(job) if job["task"] == TEXT else network_stream(job))}


def network_stream(job: dict[str, Any]) -> dict[str, Any]:
    """Share of real time, and latency, of a network by minute and chunk; bytes of its state by minute."""
    rate_hz, start, step = network_of(job["task"], job["who"])
    sound, state, at_s, minutes = Sound(rate_hz), start(), 0.0, {}
    for minute in job["minutes"]:
        if job["who"] == ATTENTION and minute > 1:
            state, at_s = filled(state, minute), 60.0 * minute
        while at_s < 60 * minute:
            _, state = step(sound.take(FILLED_S), state)
            at_s += FILLED_S
        row: dict[str, Any] = {"state_bytes": bytes_of(state)}
        for chunk_ms in CHUNKS_MS:
            seconds, here = [], state  # a state is not changed by a step: every size begins at this place
            for _ in range(max(3, round(1000 * job["measured_s"] / chunk_ms))):
                chunk = sound.take(chunk_ms / 1000)
                began = time.process_time()
                _, here = step(chunk, here)
                seconds.append(time.process_time() - began)
            seconds = seconds[len(seconds) // 10 :]  # the first compile and fill caches
            row[f"{chunk_ms}"] = {
                "rtf": statistics.mean(seconds) * 1000 / chunk_ms,
                "latency_ms": 1000 * sorted(seconds)[int(0.99 * len(seconds))],
            }
        minutes[minute] = row
    return {"at": minutes}


def filled(state: Any, minutes: int) -> Any:
    """A state of attention with so many minutes of keys and values: those of its first minute, repeated."""
    from mambakit.core.state import State

    def grown(name: str, tensor: Any) -> Any:
        if name not in ("key", "value", "valid"):
            return tensor
        a_minute = tensor[:, :MINUTE_FRAMES]
        return a_minute.repeat(1, minutes, *[1] * (tensor.dim() - 2))

    def walk(tree: dict[str, Any]) -> dict[str, Any]:
        return {
            name: walk(value) if isinstance(value, dict) else grown(name, value)
            for name, value in tree.items()
        }

    return State.from_dict(walk(state.to_dict()))


def text_stream(job: dict[str, Any]) -> dict[str, Any]:
    """Memory of the process after a minute and at the end, of what ``mambakit speech stream`` does."""
    from mambakit.domains.speech.recognize.model import Recognizer
    from mambakit.domains.speech.recognize.streaming import StreamingRecognizer

    model = Recognizer.from_pretrained(job["model"]).eval() if job["model"] else recognizer(OURS)
    stream, sound, lines = StreamingRecognizer(model), Sound(model.rate_hz), 0
    first, began, last = 0, time.process_time(), max(job["minutes"])
    for i in range(round(60 * last / 0.1)):
        lines += sum(event.kind == "completed" for event in stream.feed(sound.take(0.1)[0]))
        if i == 599:
            first = resident_bytes()
    return {
        "rtf": (time.process_time() - began) / (60 * last),
        "memory_first": first,
        "memory_last": resident_bytes(),
        "lines": lines,
    }


def network_of(task: str, who: str) -> tuple[int, Callable[[], Any], Callable[[Any, Any], Any]]:
    """Rate, beginning and step of a stream of batch 1."""
    from mambakit.domains.speech.enhance.config import PRESET_ENHANCE
    from mambakit.domains.speech.enhance.model import Enhancer
    from mambakit.domains.speech.separate.config import PRESET_SEPARATE
    from mambakit.domains.speech.separate.model import Separator

    if task == "recognize":
        model = recognizer(who)
        return model.rate_hz, lambda: model.init_state(1), model.step
    config: Any = dataclasses.replace(PRESET_ENHANCE if task == "enhance" else PRESET_SEPARATE, causal=True)
    net: Any = (Enhancer if task == "enhance" else Separator)(config).eval()
    return config.rate_hz, net.init_state, net.step


def recognizer(who: str) -> Any:
    """The preset with random weights, and pieces of the digits' words as symbols."""
    from mambakit.domains.speech.encoder import transformer_like
    from mambakit.domains.speech.made import WORDS
    from mambakit.domains.speech.recognize.config import PRESET_MODEL, RecognizerConfig
    from mambakit.domains.speech.recognize.model import Recognizer
    from mambakit.domains.speech.recognize.units import fit_tokenizer

    shape = PRESET_MODEL
    if who == ATTENTION:
        shape = dataclasses.replace(shape, encoder=transformer_like(shape.encoder))
    tokenizer = fit_tokenizer(shape.units, WORDS)
    model = Recognizer(RecognizerConfig(tokenizer.n_ids, "", shape)).eval()
    model.tokenizer = tokenizer
    return model


class Sound:
    """Connected digits without an end, taken ``(1, n)`` at a time."""

    def __init__(self, rate_hz: int) -> None:
        import torch

        from mambakit.domains.speech.cards import load_utterances

        found = load_utterances("connected-digits")
        self.samples = torch.cat([found.audio(i, rate_hz=rate_hz).samples for i in range(40)])
        self.rate_hz, self.at = rate_hz, 0

    def take(self, seconds: float) -> Any:
        n = round(seconds * self.rate_hz)
        if self.at + n > len(self.samples):
            self.at = 0
        self.at += n
        return self.samples[None, self.at - n : self.at]


def bytes_of(state: Any) -> int:
    """Of all tensors that a state holds."""
    import torch

    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    if hasattr(state, "tensors"):
        return sum(bytes_of(one) for _, one in state.tensors())
    return sum(bytes_of(one) for one in state)


def resident_bytes() -> int:
    """What the process holds now; Linux only."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def tell(one: dict[str, Any], seconds: float) -> None:
    """A line of a stream that ended."""
    print(json.dumps({**one, "seconds": round(seconds)}), file=sys.stderr, flush=True)


def rows_of(done: list[dict[str, Any]], command: str) -> list[dict[str, Any]]:
    """Result rows: values at the last minute, attention's at the first and the last one."""
    from rows import row

    of = {(one["task"], one["who"]): one for one in done}
    rows = []
    for task in NETWORKS:
        if (task, OURS) not in of:
            continue
        at = of[task, OURS]["at"]
        last, beside = max(at), of.get((task, ATTENTION), {}).get("at", {})

        shown = [minute for minute in beside if minute in (1, max(beside))]

        def peers(
            value: Callable[[dict[str, Any]], float], beside: Any = beside, shown: Any = shown
        ) -> dict[str, float | None]:
            return {f"attention, minute {minute}": round(value(beside[minute]), 4) for minute in shown}

        for size in CHUNKS_MS:
            for name, key, unit in (("rtf", "rtf", "s/s"), ("latency-p99", "latency_ms", "ms")):

                def value(found: dict[str, Any], size: int = size, key: str = key) -> float:
                    return float(found[f"{size}"][key])

                what = f"speech/realtime/{task}/{name}/{size}-ms"
                rows.append(row(what, round(value(at[last]), 4), unit, peers=peers(value), command=command))

        def kib(found: dict[str, Any]) -> float:
            return float(found["state_bytes"] / 1024)

        what = f"speech/realtime/{task}/state"
        rows.append(row(what, round(kib(at[last]), 1), "KiB", peers=peers(kib), command=command))
    if (TEXT, OURS) not in of:
        return rows
    whole = of[TEXT, OURS]
    grown = (whole["memory_last"] - whole["memory_first"]) / 2**20
    rows.append(row("speech/realtime/text/rtf", round(whole["rtf"], 4), "s/s", command=command))
    rows.append(row("speech/realtime/text/memory-growth", round(grown, 2), "MiB", command=command))
    return rows


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=int, default=60, help="of audio")
    parser.add_argument(
        "--tasks", nargs="+", default=[*NETWORKS, TEXT], choices=[*NETWORKS, TEXT], help="of which streams"
    )
    parser.add_argument("--limit", action="store_true", help="a second at every place, to try it out")
    parser.add_argument("--jobs", type=int, default=1, help="streams at once, each on a core")
    parser.add_argument("--model", type=Path, help="folder of a trained recogniser that streams")
    arguments = parser.parse_args()
    places = sorted({minute for minute in (0, 1, 10, arguments.minutes) if minute <= arguments.minutes})
    measured_s = 1.0 if arguments.limit else MEASURED_S

    from mambakit.domains.speech.cards import load_utterances

    load_utterances("connected-digits")
    jobs = [
        {
            "task": task,
            "who": who,
            "minutes": places,
            "measured_s": measured_s,
            "model": arguments.model and str(arguments.model),
        }
        for task, who in (
            ("recognize", OURS),
            ("recognize", ATTENTION),
            ("enhance", OURS),
            ("separate", OURS),
            (TEXT, OURS),
        )
        if task in arguments.tasks
    ]
    found = run_all(run_job, jobs, arguments.jobs, tell=tell)
    done = [one for one in found if "error" not in one]
    if len(done) == len(jobs):
        from rows import command_line

        made = rows_of(done, command_line())
        for one in made:
            print(one["what"], one["value"], one["unit"], one["peers"])
        if arguments.minutes >= 60 and not arguments.limit:
            from rows import write_rows

            print(f"{len(made)} rows written to {write_rows('speech-realtime', made)}")
    return 0 if len(done) == len(jobs) else 1


if __name__ == "__main__":
    sys.exit(main())
