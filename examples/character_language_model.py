"""A character language model on a text file: train, measure, save, sample.

    python examples/character_language_model.py --text book.txt --steps 1000 --output runs/characters
    python examples/character_language_model.py --model runs/characters --prompt "The "

Without --text it reads the help texts of Python itself, about 460,000 characters of technical English.
"""

import argparse
import math
from collections import Counter
from pathlib import Path
from pydoc_data.topics import topics

import torch

from mambakit.core.backbone import BackboneConfig
from mambakit.core.generation import GenerationConfig, stream
from mambakit.core.language_model import LanguageModel, LanguageModelConfig


class CharacterModel(LanguageModel):
    """A language model that keeps its alphabet beside the weights."""

    def save_extra(self, folder):
        (folder / "alphabet.txt").write_text("".join(self.alphabet), "utf-8")

    def load_extra(self, folder):
        self.alphabet = list((folder / "alphabet.txt").read_text("utf-8"))


def n_gram_bits(train, test, n_ids, order):
    """Bits per character where each context falls back on a shorter one (Witten & Bell 1991, method C)."""
    counts = {}
    for n in range(order):
        for i in range(n, len(train)):
            counts.setdefault(tuple(train[i - n : i]), Counter())[train[i]] += 1
    bits = 0.0
    for i in range(order, len(test)):
        p = 1 / n_ids
        for n in range(order):
            if seen := counts.get(tuple(test[i - n : i])):
                p = (seen[test[i]] + len(seen) * p) / (seen.total() + len(seen))
        bits -= math.log2(p)
    return bits / (len(test) - order)


@torch.no_grad()
def bits_per_character(model, ids, piece=4096):
    """Over a whole text as one stream: every piece continues the state of the one before."""
    state, nats = model.eval().init_state(1), 0.0
    for inputs, targets in zip(ids[:-1].split(piece), ids[1:].split(piece), strict=True):
        logits, state = model(inputs[None], state)
        nats += float(model.loss(logits, targets[None])) * len(targets)
    return nats / (len(ids) - 1) / math.log(2)


def train(args):
    text = args.text.read_text("utf-8") if args.text else "\n\n".join(topics.values())
    alphabet = sorted(set(text))
    ids = torch.tensor([alphabet.index(character) for character in text])
    kept, held_out = ids[: (cut := int(0.95 * len(ids)))], ids[cut:]
    torch.manual_seed(0)
    model = CharacterModel(LanguageModelConfig(len(alphabet), BackboneConfig(args.width, repeat=args.layers)))
    model.alphabet = alphabet
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95))
    for step in range(args.steps):
        warm, left = min(1, (step + 1) / 50), 1 - step / args.steps
        optimizer.param_groups[0]["lr"] = 3e-3 * warm * left
        window = kept[torch.randint(len(kept) - args.length, (args.batch, 1)) + torch.arange(args.length + 1)]
        loss = model.loss(model(window[:, :-1])[0], window[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step} of {args.steps}: {loss.item() / math.log(2):.3f} bits", flush=True)
    model.save_pretrained(args.output)
    n_grams = [n_gram_bits(kept.tolist(), held_out.tolist(), len(alphabet), n) for n in range(1, 8)]
    print(f"{len(kept)} characters to learn from, the last {len(held_out)} held out")
    print(f"bits per character: {bits_per_character(model, held_out):.3f}, best n-gram {min(n_grams):.3f}")


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
for name in ("text", "model", "output"):
    parser.add_argument(f"--{name}", type=Path, default=Path("runs/characters") if name == "output" else None)
for name, value in {"steps": 1000, "width": 128, "layers": 3, "length": 256, "batch": 16, "n": 400}.items():
    parser.add_argument(f"--{name}", type=int, default=value)
parser.add_argument("--prompt", default="The ")
args = parser.parse_args()
if not args.model:
    train(args)
model = CharacterModel.from_pretrained(args.model or args.output)
prompt = [model.alphabet.index(character) for character in args.prompt]
config = GenerationConfig(max_new_tokens=args.n, strategy="sample", temperature=0.8, top_p=0.95, seed=0)
print(args.prompt, end="")
for chosen in stream(model, [prompt], config):
    print(model.alphabet[chosen.ids.item()], end="", flush=True)
print()
