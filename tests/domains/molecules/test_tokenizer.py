"""SMILES and SELFIES as ids: nothing is lost, and what is not known is named."""

import random
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("rdkit")

from rdkit import Chem, RDConfig

from mambakit.core.adapters import IdAdapter, SampleError, Tokens
from mambakit.core.adapters.testing import check_adapter
from mambakit.domains.molecules.tokenizer import END, START, SelfiesTokenizer, SmilesTokenizer, load_tokenizer

ODD = [
    "[13CH3]C(=O)[O-].[Na+]",
    "C[C@H](N)C(=O)O",
    r"F/C=C\Br",
    "C%10CCCCC%10",
    "C%(123)CCCCC%(123)",
    "ClCCl",
    "CC(=O)O.OCC>>CC(=O)OCC",
    "[NH3]->[Cu+2]<-[NH3]",
    "[O-]B(O)c1ccc2ccccc2c1",
    "N[Pt@SP1](F)(Cl)Br",
    "C$C",
    "*c1ccccc1",
]


@cache
def nci() -> list[str]:
    path = Path(RDConfig.RDDataDir) / "NCI" / "first_200.props.sdf"
    return [Chem.MolToSmiles(mol) for mol in Chem.SDMolSupplier(str(path)) if mol is not None]


@cache
def fitted() -> SmilesTokenizer:
    return SmilesTokenizer().fit(nci())


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_way_of_writing_a_known_molecule_comes_back_unchanged(data):
    mol = Chem.MolFromSmiles(data.draw(st.sampled_from(nci())))
    random.seed(data.draw(st.integers(0, 2**16)))
    order = list(range(mol.GetNumAtoms()))
    random.shuffle(order)
    written = Chem.MolToSmiles(
        Chem.RenumberAtoms(mol, order), canonical=False, allBondsExplicit=data.draw(st.booleans())
    )
    ids = fitted().encode(written)
    assert ids.values[[0, -1]].tolist() == [START, END]
    assert fitted().decode(ids) == written


@given(st.text(alphabet="CNOcn()=#123%[]@H+-.>/\\ClBr", max_size=20))
def test_a_string_is_cut_without_a_gap_or_refused_with_a_position(text):
    cut = SmilesTokenizer().pieces
    try:
        joined = "".join(cut(text))
    except SampleError as error:
        said = error.reason
        place = int(said.partition("position ")[2].partition(",")[0])
        cut(text[:place])  # all before it can be cut
    else:
        assert joined == text


def test_brackets_rings_and_two_letter_atoms_are_one_token_each():
    cut = SmilesTokenizer().pieces
    assert cut("[13C@@H]%12Br") == ["[13C@@H]", "%12", "Br"]
    assert cut("ClC>>C.[Na+]") == ["Cl", "C", ">>", "C", ".", "[Na+]"]


def test_the_tokenizer_contract_holds(tmp_path):
    tokenizer = SmilesTokenizer().fit(nci() + ODD)
    bad = ["CC[", "C C", "C!", "[Zr]", None, 3]
    check_adapter(tokenizer, lambda: IdAdapter(tokenizer.n_ids, 8), nci()[:5] + ODD, bad, empty_sample="")
    tokenizer.save(tmp_path)
    assert type(load_tokenizer(tmp_path)) is SmilesTokenizer


def test_the_selfies_contract_holds():
    samples = nci()[:20]
    tokenizer = SelfiesTokenizer().fit(samples)
    check_adapter(tokenizer, lambda: IdAdapter(tokenizer.n_ids, 8), samples, ["CC[", "Q", None])


@given(st.lists(st.integers(4, SelfiesTokenizer().fit(["CC(=O)Nc1ccccc1C#N"]).n_ids - 1), max_size=30))
def test_any_selfies_ids_are_a_molecule(ids):
    import torch

    tokenizer = SelfiesTokenizer().fit(["CC(=O)Nc1ccccc1C#N"])
    assert Chem.MolFromSmiles(tokenizer.decode(Tokens(torch.tensor(ids, dtype=torch.int64)))) is not None


def test_faults_name_the_character_and_its_position():
    with pytest.raises(SampleError, match="position 2, '!'"):
        fitted().encode("CC!C")
    with pytest.raises(SampleError, match=r"unknown symbol '\[Zr\]' at position 1"):
        fitted().encode("C[Zr]")


def test_unseen_tokens_are_listed_with_their_rows_and_extend_keeps_old_ids():
    tokenizer = SmilesTokenizer().fit(["CCO"])
    given = ["C[Si](C)C", "CC", "[Se]C[Si]", "not a molecule"]
    assert tokenizer.unseen(given, rows=[2, 5, 9, 11]) == {"[Si]": [2, 9], "[Se]": [9]}
    before = {symbol: tokenizer.ids(symbol) for symbol in ("C", "O", "%12")}
    assert tokenizer.extend(given[:3]) == ["[Si]", "[Se]"]
    assert {symbol: tokenizer.ids(symbol) for symbol in before} == before
    assert tokenizer.unseen(given) == {}


def test_the_other_hand_of_a_stereo_centre_is_in_the_vocabulary():
    tokenizer = SmilesTokenizer().fit(["C[C@H](N)C(=O)O"])
    assert tokenizer.decode(tokenizer.encode("C[C@@H](N)C(=O)O")) == "C[C@@H](N)C(=O)O"


def test_an_unknown_id_among_selfies_is_said():
    import torch

    tokenizer = SelfiesTokenizer().fit(["CCO"])
    with pytest.raises(SampleError, match=r"SELFIES can't read it: .*<unk>"):
        tokenizer.decode(Tokens(torch.tensor([1, 4, 3, 5, 2])))
