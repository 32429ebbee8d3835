"""The baseline of recognition: GRU layers in the place of the Mamba stack."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from mambakit.domains.speech.encoder import Encoder, EncoderConfig


class GruEncoder(Encoder):
    """The baseline: the same convolutions, then two layers of GRU that read both ways.

    Args:
        config: Of the encoder that it stands beside; its width gives about as many parameters.
    """

    _LAYERS = 2

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        wanted = sum(parameter.numel() for parameter in self.backbone.parameters())
        width = max(8, min(range(8, 512), key=lambda h: abs(self._size(config.d_model, h) - wanted)))
        del self.backbone
        self.gru = nn.GRU(
            config.d_model, width, self._LAYERS, batch_first=True, bidirectional=True, dropout=config.dropout
        )
        self.out = nn.Linear(2 * width, config.d_model)

    @property
    def causal(self) -> bool:
        """It reads both ways."""
        return False

    @staticmethod
    def _size(d_model: int, h: int) -> int:
        return 2 * (3 * h * (d_model + h + 2)) + 2 * (3 * h * (3 * h + 2)) + d_model * (2 * h + 1)

    def forward(self, frames: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """As ``Encoder.forward``."""
        x, _ = self._thinned(frames, self._before(len(frames), frames))
        lengths = self.lengths_of(lengths)
        if x.shape[1] == 0:
            return x, lengths
        packed = pack_padded_sequence(x, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False)
        y, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=x.shape[1])
        return self.out(y), lengths
