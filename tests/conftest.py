"""Where there is no GPU, Triton's kernels run in its interpreter.

Triton reads the variable as it meets the first kernel, so it is set before any test module is imported.
"""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
