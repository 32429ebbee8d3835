"""Stopgap."""
import torch.nn.functional as F
from mambakit.kernels.semantics import state_dtype
from mambakit.kernels.ssd.reference import ssd_core_reference
def ssd_fwd(x, log_decay, scale, B, C, D, z, initial_state, seq_idx, chunk_size):
    dtype = state_dtype(x)
    h0 = None if initial_state is None else initial_state.to(dtype)
    y, h = ssd_core_reference(x.to(dtype), log_decay, scale, B.to(dtype), C.to(dtype), h0, seq_idx)
    if D is not None:
        y = y + D.to(dtype) * x.to(dtype)
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return y.to(x.dtype), h
