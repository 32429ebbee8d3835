"""The example package in a fresh environment: found, conforming and trained, with no change here."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_adapter"

IN_THE_VENV = """
import json, sys
from mambakit.core.adapters import adapter_names, get_adapter
from mambakit.core.adapters.testing import check_adapter

assert "dna_quality" not in sys.modules
assert "dna-quality" in adapter_names()
spec = get_adapter("dna-quality")
import dna_quality
from dna_quality import Read
from dna_quality.reads import simulate_reads
from dna_quality.train import accuracy, train

reads, _ = simulate_reads(6, seed=3)
bad = [Read("ACX", "III"), Read("ACG", "II"), Read("A", "\\t"), "ACGT"]
check_adapter(spec.tokenizer(), lambda: spec.adapter(16), reads, bad, empty_sample=Read("", ""))
model, losses = train(n_steps=40)
print(json.dumps({
    "file": dna_quality.__file__,
    "losses": losses,
    "accuracy": accuracy(model, *simulate_reads(500, seed=1)),
    "first_bad": spec.tokenizer().encode_many([reads[0], *bad]).bad[0].reason,
}))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Interpreter of a fresh environment that sees this one's packages and has the example installed."""
    if importlib.util.find_spec("setuptools") is None or importlib.util.find_spec("pip") is None:
        pytest.skip("installing without a network needs pip and setuptools in this environment")
    root = tmp_path_factory.mktemp("own_adapter")
    venv.create(root / "env", with_pip=False, symlinks=os.name != "nt")
    bin_folder, suffix = ("Scripts", ".exe") if os.name == "nt" else ("bin", "")
    python = root / "env" / bin_folder / f"python{suffix}"
    here = {"base": str(root / "env"), "platbase": str(root / "env")}
    packages = Path(sysconfig.get_path("purelib", "venv", vars=here))
    # addsitedir, not a bare path: an editable install of mambakit is a .pth file itself
    parents = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    lines = [f"import site; site.addsitedir({path!r})\n" for path in parents]
    (packages / "parent.pth").write_text("".join(lines))
    shutil.copytree(
        EXAMPLE, root / "source", ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
    )
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index"]
    install += ["--no-build-isolation", "--disable-pip-version-check", str(root / "source")]
    done = subprocess.run(install, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return python


@pytest.mark.slow
def test_a_package_from_outside_is_found_conforms_and_trains(python, tmp_path):
    done = subprocess.run(
        [str(python), "-c", IN_THE_VENV],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        # the plain loops start at once, where the fast CPU path would compile first
        env={**os.environ, "MAMBAKIT_BACKEND": "reference", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert Path(result["file"]).is_relative_to(python.parents[1])
    losses = result["losses"]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    assert result["accuracy"] > 0.75
    assert result["first_bad"] == "letter 'X' at position 2 is none of ACGTN"
