"""Without the speech extra none of these can run; torchaudio is only looked for, as it may not import."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore_glob = (
    [] if all(find_spec(name) for name in ("torchaudio", "soundfile", "espeakng_loader")) else ["test_*.py"]
)
