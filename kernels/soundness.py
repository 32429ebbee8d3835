"""A look at what Triton compiled, for one mistake that LLVM makes: a kernel with it computes wrong numbers.

LLVM vectorises pairs of 32-bit numbers. Of a shift that only the upper one wants, the lower one's result is
left to chance, and NVPTX may compute it as ``mul.wide``, whose upper half is then or'ed into the number that
counts::

    mul.wide.u32 %rd1, %r1, 268435456;   // the lower one: 32 bits that nobody reads, and 32 that overflow
    shl.b64      %rd2, %rd3, 33;         // the upper one, at its place
    or.b64       %rd4, %rd1, %rd2;
    mov.b64      {_, %r2}, %rd4;

With Triton 3.6 half of a tile's lanes did not find its diagonal on an H200, or read where nothing is, which
ends the process's work on the GPU; Triton 3.7 is not known to do it. So a program is looked at before it is
launched.
"""

from __future__ import annotations

import re
from typing import Any

from mambakit.kernels.backend import BackendUnavailableError

_PRODUCT = re.compile(r"mul\.wide\.[us]32\s+(%rd\d+), %r\d+, \d+;")
_PLACED = re.compile(r"shl\.b64\s+(%rd\d+), %rd\d+, (\d+);")
_JOINED = re.compile(r"or\.b64\s+(%rd\d+), (%rd\d+), (%rd\d+);")
_TAKEN = re.compile(r"mov\.b64\s+\{[^,}]+, [^}]+\}, (%rd\d+);")
_sound: set[Any] = set()


class MiscompiledError(BackendUnavailableError):
    """Triton compiled a kernel wrongly."""


def watch() -> None:
    """Have Triton show every kernel of this package when it has compiled it, before it launches it."""
    try:
        from triton import knobs
    except ImportError:  # no Triton, or an old one: programs are looked at after their first launch
        return
    others = knobs.runtime.jit_post_compile_hook

    def look(**shown: Any) -> Any:
        function = shown["fn"]
        if function.module.startswith(__package__):
            kept = function.jit_function.device_caches[shown["compile"]["device"]][0]
            try:
                check(kept.get(shown["key"]))
            except MiscompiledError:
                del kept[shown["key"]]  # or the next call would launch it
                raise
        return others(**shown) if others else None

    knobs.runtime.jit_post_compile_hook = look


def check(compiled: Any) -> None:
    """Look at a kernel that is seen for the first time.

    Args:
        compiled: What a launch of Triton's gives: a compiled kernel; None under the interpreter.

    Raises:
        MiscompiledError: If it has the mistake. For other sizes of tiles there is another kernel.
    """
    if compiled is None or compiled in _sound:
        return
    if is_spoilt(getattr(compiled, "asm", {}).get("ptx", "")):
        import triton

        raise MiscompiledError(
            f"backend='triton': Triton {triton.__version__} compiles {compiled.metadata.name} wrongly for "
            "these sizes; use another version (3.7 is not known to), or backend='portable'"
        )
    _sound.add(compiled)


def is_spoilt(ptx: str) -> bool:
    """Whether a program has the mistake."""
    joined = {found: {first, second} for found, first, second in _JOINED.findall(ptx)}
    products = set(_PRODUCT.findall(ptx))
    placed = {found for found, bits in _PLACED.findall(ptx) if int(bits) >= 32}
    pairs = (joined.get(one, set()) for one in _TAKEN.findall(ptx))
    return any(pair & products and pair & placed for pair in pairs)
