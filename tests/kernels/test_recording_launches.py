"""What a recording allocates and starts on a GPU, by stand-ins for Triton's compiled kernels."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from triton.runtime.errors import OutOfResources

from mambakit.kernels import recording
from mambakit.kernels.recording import Recordings
from mambakit.kernels.soundness import MiscompiledError, is_spoilt, watch
from mambakit.kernels.tape import Tape
from mambakit.kernels.tuning import first_that_fits


class Compiled:
    """Stands for what Triton returns from a launch on a GPU; notes what it is started with."""

    function, packed_metadata = "function", "metadata"

    def __init__(self) -> None:
        self.runs: list[tuple[Any, ...]] = []

    def run(self, *args: Any) -> None:
        self.runs.append(args)


class Kernel:
    arg_names = ("out", "x", "part", "size", "work", "SIZE", "SCALE")

    def __init__(self, needs: int = 0) -> None:
        self.compiled, self.needs = Compiled(), needs

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Compiled]:
        def start(*args: Any, **named: Any) -> Compiled:
            if named.get("num_warps", 0) < self.needs:
                raise OutOfResources(2, 1, "warps")
            return self.compiled

        return start


def launch_parts(
    kernel: Kernel, tape: Tape, x: Tensor, num_warps: int, size: int = 7
) -> tuple[Tensor | None, ...]:
    unused, work, out = (tape.empty((n,), torch.float32, x.device) for n in (3, 5, size))
    tape.launch(kernel, (4,), out, x, work[2:], 9, None, SCALE=0.5, SIZE=8, num_warps=num_warps)
    tape.launch(kernel, (2, 3), unused, x, out[1:], 9, work, 8, 0.25, num_warps=num_warps)
    return out, None


@pytest.mark.parametrize("size", [6, 7], ids=["like an argument", "unlike"])
def test_what_compiled_kernels_get(size: int) -> None:
    kernel = Kernel()
    recordings = Recordings(lambda tape, tensors, _: launch_parts(kernel, tape, tensors[0], 4, size))
    assert recordings.find((torch.zeros(6),), ()) is None
    recordings.run((torch.zeros(6),), ())
    assert recordings.find((torch.zeros(6),), ()) is None
    recordings.run((torch.zeros(6),), ())
    x = torch.ones(6)
    out, nothing = recordings.run((x,), ())
    assert nothing is None
    assert out is not None
    assert out.shape == (size,)
    first, second = kernel.compiled.runs
    assert first[:9] == (4, 1, 1, 0, "function", "metadata", None, None, None)
    assert second[:9] == (2, 3, 1, 0, "function", "metadata", None, None, None)
    work, unused = second[9 + 4], second[9]
    assert first[9:] == (out.data_ptr(), x.data_ptr(), work + 8, 9, None, 8, 0.5)
    assert second[9:] == (unused, x.data_ptr(), out.data_ptr() + 4, 9, work, 8, 0.25)
    assert abs(work - unused) >= 20
    assert (work - unused) % 512 == 0


def test_an_attempt_that_does_not_fit_leaves_nothing() -> None:
    kernel = Kernel(needs=8)

    def launcher(tape: Tape, tensors: tuple[Any, ...], _: Any) -> tuple[Tensor | None, ...]:
        def attempt(num_warps: int) -> tuple[Tensor | None, ...]:
            tape.restart()
            return launch_parts(kernel, tape, tensors[0], num_warps)

        return first_that_fits("test_recording", (4, 8), attempt)

    recordings = Recordings(launcher)
    for _ in range(3):
        recordings.run((torch.zeros(6),), ())
    assert len(kernel.compiled.runs) == 2


SPOILT = """
	mul.wide.u32 	%rd75, %r2, 268435456;
	cvt.u64.u32 	%rd76, %r7;
	shl.b64 	%rd77, %rd76, 33;
	or.b64 	%rd78, %rd75, %rd77;
	mov.b64 	{_, %r23}, %rd78;
"""


@pytest.mark.parametrize(
    ("ptx", "spoilt"),
    [
        (SPOILT, True),
        (SPOILT.replace("%rd75, %rd77;", "%rd77, %rd75;"), True),
        (SPOILT.replace("mul.wide.u32", "mul.lo.u32"), False),
        (SPOILT.replace(", 33;", ", 3;"), False),
        (SPOILT.replace("{_, %r23}, %rd78", "{_, %r23}, %rd79"), False),
        ("", False),
    ],
)
def test_a_number_that_overflows_into_another_is_seen(ptx: str, spoilt: bool) -> None:
    assert is_spoilt(ptx) == spoilt


def test_a_program_that_is_not_sound_gives_way_to_the_next() -> None:
    """Of the configs the first is compiled wrongly; where all are, it is said."""

    def launcher(tape: Tape, tensors: tuple[Any, ...], configs: Any) -> tuple[Tensor | None, ...]:
        def attempt(config: str) -> tuple[Tensor | None, ...]:
            tape.restart()
            return launch_parts(kernels[config], tape, tensors[0], 4)

        return first_that_fits(("test_soundness", configs), configs, attempt)

    kernels = {"spoilt": Kernel(), "sound": Kernel()}
    spoilt = kernels["spoilt"].compiled
    spoilt.asm, spoilt.metadata = {"ptx": SPOILT}, SimpleNamespace(name="walk_outputs")
    recordings = Recordings(launcher)
    for _ in range(3):
        recordings.run((torch.zeros(6),), ("spoilt", "sound"))
    assert len(kernels["sound"].compiled.runs) == 2
    with pytest.raises(MiscompiledError, match=r"compiles walk_outputs wrongly .* backend='portable'"):
        recordings.run((torch.zeros(6),), ("spoilt",))


def test_a_program_is_looked_at_before_it_is_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is spoilt is forgotten, so that no later call launches it; other packages' are theirs."""
    knobs = pytest.importorskip("triton.knobs")
    heard = []
    monkeypatch.setattr(knobs.runtime, "jit_post_compile_hook", lambda **shown: heard.append(shown["key"]))
    watch()
    kept = {"spoilt": Kernel().compiled, "sound": Kernel().compiled}
    kept["spoilt"].asm, kept["spoilt"].metadata = {"ptx": SPOILT}, SimpleNamespace(name="walk_outputs")
    function = SimpleNamespace(device_caches={0: (kept,)})

    def show(key: str, module: str) -> None:
        fn = SimpleNamespace(module=module, jit_function=function)
        knobs.runtime.jit_post_compile_hook(fn=fn, key=key, compile={"device": 0})

    show("sound", "mambakit.kernels.ssd.gpu_forward")
    show("spoilt", "another.package")
    assert heard == list(kept)[::-1]
    with pytest.raises(MiscompiledError, match="compiles walk_outputs wrongly"):
        show("spoilt", "mambakit.kernels.ssd.gpu_forward")
    assert list(kept) == ["sound"]


def test_a_copy_is_not_recorded() -> None:
    kernel = Kernel()
    launched = []

    def launcher(tape: Tape, tensors: tuple[Any, ...], _: Any) -> tuple[Tensor | None, ...]:
        launched.append(1)
        return launch_parts(kernel, tape, tensors[0].clone(), 4)

    recordings = Recordings(launcher)
    for _ in range(4):
        recordings.run((torch.zeros(6),), ())
    assert len(launched) == 4
    assert not kernel.compiled.runs


def test_a_profiler_hears_of_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel()
    recordings = Recordings(lambda tape, tensors, _: launch_parts(kernel, tape, tensors[0], 4))
    for _ in range(2):
        recordings.run((torch.zeros(6),), ())
    through = []
    monkeypatch.setattr(
        Compiled, "__getitem__", lambda self, grid: lambda *args: through.append(grid), raising=False
    )
    monkeypatch.setattr(recording.knobs.runtime, "launch_enter_hook", lambda metadata: None)
    recordings.run((torch.zeros(6),), ())
    assert through == [(4, 1, 1), (2, 3, 1)]
    assert not kernel.compiled.runs
