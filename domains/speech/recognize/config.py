"""What a recogniser is made of, and the preset."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from mambakit.core.backbone_config import BackboneConfig
from mambakit.core.config_checks import check_least, check_shares
from mambakit.core.errors import UsageError
from mambakit.core.training import TrainConfig
from mambakit.domains.speech.augment import AugmentConfig
from mambakit.domains.speech.blocks import block_sizes, check_block
from mambakit.domains.speech.encoder import EncoderConfig
from mambakit.domains.speech.frontend import FrontEndConfig, StripesConfig, check_bands
from mambakit.domains.speech.recognize.tokenizer import Units

Network = Literal["mamba", "bigru"]
Head = Literal["ctc", "rnnt", "attention"]


@dataclass(frozen=True)
class DecoderConfig:
    """The part of rnnt and attention that reads what is written so far."""

    block: str = "mamba2"
    """Kind of its layers; a causal one."""
    d_model: int = 64
    """Width."""
    n_layers: int = 1
    """Layers."""
    d_state: int = 16
    """State size of Mamba blocks."""
    head_dim: int = 16
    """Channels a head of Mamba-2 blocks."""
    n_heads: int = 4
    """With attention: heads that look at the sound."""
    dropout: float = 0.1
    """Share of each block's output that is dropped while training."""

    def __post_init__(self) -> None:
        check_least(self, 1, "d_model", "n_layers", "d_state", "head_dim", "n_heads")
        if self.d_model % self.n_heads:
            raise UsageError(f"n_heads: d_model, {self.d_model}, is no multiple of {self.n_heads}")
        check_shares(self, "dropout", below_one=True)
        check_block(self.block, causal=True)

    def backbone(self) -> BackboneConfig:
        """The stack over what is written."""
        return BackboneConfig(
            d_model=self.d_model,
            layers=[self.block],
            repeat=self.n_layers,
            block_options={self.block: self.block_options()},
            dropout=self.dropout,
        )

    def block_options(self) -> dict[str, int]:
        """Of its blocks."""
        return block_sizes(self.block, d_state=self.d_state, head_dim=self.head_dim)


@dataclass(frozen=True)
class RecognizeModelConfig:
    """The shape of the network; the defaults are the preset, which streams."""

    front_end: FrontEndConfig = field(default_factory=FrontEndConfig)
    """How samples become frames."""
    encoder: EncoderConfig = field(
        default_factory=lambda: EncoderConfig(
            d_model=64, channels=16, subsampling=4, n_layers=3, d_state=16, head_dim=16, bidirectional=False
        )
    )
    """Frames to vectors; with bidirectional it hears what follows too, and can't stream."""
    network: Network = "mamba"
    """bigru is the baseline: GRU layers both ways in the place of the stack, of about as many parameters."""
    head: Head = "ctc"
    """How vectors become text. ctc: a symbol a frame, each by itself; rnnt: a transducer, which knows what it
    has written and streams too; attention: a decoder that looks at the whole recording."""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """Of rnnt and attention."""
    tail_s: float = 0.3
    """Seconds of silence that a causal network hears behind a recording's end, so that it can write the last
    word when it has heard all of it. One that reads both ways needs none."""
    ctc_weight: float = 0.3
    """Of rnnt and attention: the share of CTC in the loss; it aligns texts, so that words have times."""
    units: Units = "bpe"
    """What is written: pieces of words by byte-pair encoding, characters, or phones."""
    n_pieces: int = 256
    """Pieces of words at most, with bpe."""
    lexicon: str | None = None
    """With phones: a file with a word and its phones a line, such as CMUdict; espeak-ng says without one."""
    voice: str = "en-us"
    """With phones and no lexicon: the voice of espeak-ng."""

    def __post_init__(self) -> None:
        for name, known in (
            ("network", get_args(Network)),
            ("head", get_args(Head)),
            ("units", get_args(Units)),
        ):
            if getattr(self, name) not in known:
                raise UsageError(f"{name}: expected {' or '.join(known)}, got {getattr(self, name)!r}")
        check_bands(self.front_end, self.encoder.n_mels)
        check_least(self, 2, "n_pieces")
        if self.lexicon is not None and self.units != "phones":
            raise UsageError(f"lexicon: has no effect with units {self.units}; use --model.units phones")
        if not 0 <= self.tail_s <= 5:
            raise UsageError(f"tail_s: expected seconds from 0 to 5, got {self.tail_s}")
        if not 0 < self.ctc_weight < 1:
            raise UsageError(f"ctc_weight: expected a share between 0 and 1, got {self.ctc_weight}")


@dataclass(frozen=True)
class RecognizerConfig:
    """A network and its symbols: what ``config.json`` holds."""

    n_ids: int
    """Symbols, the blank among them."""
    trained_on: str = ""
    """Name of the data."""
    model: RecognizeModelConfig = field(default_factory=RecognizeModelConfig)
    """The shape of the network."""


@dataclass(frozen=True)
class RecognizeLossConfig(StripesConfig):
    """What is hidden of frames while training."""

    time_share: float = 0.04
    """Share of the recording that each is at most; a hidden word can't be learned."""


@dataclass(frozen=True)
class RecognizeAugmentConfig(AugmentConfig):
    """What is done to the recordings."""

    splice: float = 0.0
    """Share that is put together anew, of words that the same speaker says in other recordings, where the
    data say when words are heard (word_times of a manifest)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_shares(self, "splice")


PRESET_MODEL = RecognizeModelConfig()
PRESET_LOSS = RecognizeLossConfig()
PRESET_AUGMENT = RecognizeAugmentConfig(
    speed=0.5, speed_range=(0.85, 1.2), noise=0.7, snr_db=(0.0, 30.0), reverberation=0.2, splice=0.7
)
# By validation on connected-digits, speakers held out in turn: of the causal network's words 45 and 36 % are
# wrong by letters, 21 and 10 by pieces of words, and 18 and 8 with 40 ms a vector and a running mean. That
# loses its place in long pauses (43 % are wrong after 8 s where 28 were); with bent frequency responses it is
# not needed: 14.1 % over all six speakers. Of one that reads both ways 8.4 % are wrong, without words spliced
# 9.6; with each recording's own mean in the place of bent responses 11.7, and without words spliced then
# 12.6. Of the biGRU 10.0 and 10.8; with its own mean and none spliced 10.8.
# Its rate by the loss of a symbol after 13 epochs: .98, at 1e-3 1.4 to 1.8. One that reads both ways does
# better at 1e-3 (.69 for 1.00 after 10 epochs).
PRESET_TRAIN = TrainConfig(max_epochs=50, batch_size=16, lr=3e-3, patience=20)
