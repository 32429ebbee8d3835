"""Molecules drawn a second: the preset beside a transformer of equal size with a cache of keys and values.

    python benchmarks/molecules_sampling.py
    python benchmarks/molecules_sampling.py --device cuda --batch 1024 --n 8192

Both are untrained networks of the same loop (core.generation), vocabulary and number of parameters, and draw
the same numbers of tokens: END is forbidden until a row has the length of a real molecule, drawn from a
card's, and forced then. The preset's rows are refilled as they end, as a state of one size allows at no cost;
the transformer's batches are decoded until their longest row ends, without the rows that have ended as soon
as these are half. (A server of transformers refills its rows too, at the price of a cache of pages.)
Before it times, it checks that a step of each gives what the whole sequence does. The two take turns, and the
best of the rounds counts. Writes results/molecules-sampling.json.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from mambakit.core.backbone import BackboneConfig
from mambakit.core.generation import GenerationConfig, GraphedDecoder, in_order, sample_stream
from mambakit.core.language_model import LanguageModel, LanguageModelConfig
from mambakit.core.state import State
from mambakit.domains.molecules.cards import load_molecules
from mambakit.domains.molecules.language.config import PRESET_MODEL
from mambakit.domains.molecules.tokenizer import END, PAD, START, SmilesTokenizer
from rows import row, write_rows

# Pre-norm attention with rotary positions, and a gated MLP, at the preset's width: as many parameters as its.
GPT = BackboneConfig(
    d_model=256,
    layers=["attention", "mlp"],
    repeat=6,
    block_options={"attention": {"n_heads": 8}, "mlp": {"d_hidden": 736}},
)


class Lengths:
    """Ends sequence i after ``lengths[i]`` tokens, and not before: a constraint of the decoding loop."""

    def __init__(self, lengths: torch.Tensor, n_ids: int) -> None:
        self.lengths, self.n_ids, self.begun = lengths, n_ids, 0

    def start(self, prompt: torch.Tensor, lengths: torch.Tensor) -> State:
        first, self.begun = self.begun, self.begun + len(prompt)
        return State.of(left=self.lengths[first : self.begun].to(prompt.device))

    def allowed(self, state: State) -> torch.Tensor:
        ends = torch.arange(self.n_ids, device=state["left"].device) == END
        return (state["left"] <= 0)[:, None] == ends

    def advance(self, state: State, ids: torch.Tensor) -> State:
        return State.of(left=state["left"] - 1)


def check_steps(model: LanguageModel, n_ids: int) -> None:
    """Asserts that steps give what the whole sequence gives."""
    device = model.embedding.weight.device
    ids = torch.randint(4, n_ids, (2, 12), device=device)
    with torch.no_grad():
        whole, _ = model(ids)
        state = model.init_state(2)
        for i in range(ids.shape[1]):
            logits, state = model.step(ids[:, i], state)
            assert torch.allclose(logits, whole[:, i], atol=2e-3), (logits - whole[:, i]).abs().max()


def draw(decoder: GraphedDecoder, lengths: torch.Tensor, batch: int, n_ids: int) -> float:
    """Seconds to draw molecules of these lengths."""
    config = GenerationConfig(max_new_tokens=513, strategy="sample", seed=0, eos_ids=(END,), pad_id=PAD)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    made = sample_stream(
        decoder, [START], config, n=len(lengths), slots=batch, constraint=Lengths(lengths, n_ids)
    )
    drawn = [len(one.ids) - 1 for one in in_order(made)]
    seconds = time.perf_counter() - began
    assert drawn == lengths.tolist()
    return seconds


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default="nci", help="a card, whose lengths are drawn")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--n", type=int, default=512, help="molecules a round")
    parser.add_argument("--batch", type=int, default=256, help="drawn at once")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dry", action="store_true", help="write no rows")
    arguments = parser.parse_args()
    smiles = load_molecules(arguments.data, tasks=()).smiles.tolist()
    tokenizer = SmilesTokenizer().fit(smiles)
    n_ids = tokenizer.n_ids
    chosen = np.random.default_rng(0).choice(len(smiles), arguments.n)
    lengths = torch.tensor([len(tokenizer.encode(smiles[i])) - 2 for i in chosen])
    torch.manual_seed(0)
    backbones = {"mambakit": PRESET_MODEL.backbone(), "GPT, KV cache": GPT}
    models = {
        name: LanguageModel(LanguageModelConfig(n_ids, one)).to(arguments.device).eval()
        for name, one in backbones.items()
    }
    sizes = {name: sum(one.numel() for one in model.parameters()) for name, model in models.items()}
    assert max(sizes.values()) < 1.05 * min(sizes.values()), sizes
    for model in models.values():
        check_steps(model, n_ids)
    decoders = {name: GraphedDecoder(model) for name, model in models.items()}
    best = dict.fromkeys(decoders, float("inf"))
    for decoder in decoders.values():
        draw(decoder, lengths[: arguments.batch].clamp(max=8), arguments.batch, n_ids)
    for _ in range(arguments.rounds):
        for name, decoder in decoders.items():
            best[name] = min(best[name], draw(decoder, lengths, arguments.batch, n_ids))
    speed = {name: arguments.n / seconds for name, seconds in best.items()}
    print(f"{arguments.data}: {lengths.float().mean():.1f} tokens a molecule; parameters {sizes}")
    for name, value in speed.items():
        print(f"{name:15s} {value:9.1f} molecules/s")
    if arguments.dry:
        return
    place = f"{torch.device(arguments.device).type}-{arguments.data}-B{arguments.batch}"
    peers = {name: round(value, 1) for name, value in speed.items() if name != "mambakit"}
    made = row(
        f"molecules/sampling/{place}", round(speed["mambakit"], 1), "molecules/s", peers=peers, seeds=[0]
    )
    print(write_rows("molecules-sampling", [made]))


if __name__ == "__main__":
    main()
