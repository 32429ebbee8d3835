"""DNA reads with quality scores, as a mambakit adapter."""

from dna_quality.adapter import DnaAdapter
from dna_quality.tokenizer import DnaTokenizer, Read
from mambakit.core.adapters import AdapterSpec

SPEC = AdapterSpec("dna-quality", tokenizer=DnaTokenizer, adapter=DnaAdapter)

__all__ = ["SPEC", "DnaAdapter", "DnaTokenizer", "Read"]
