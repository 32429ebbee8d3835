from __future__ import annotations

import copy
import pickle

import pytest
import safetensors.torch
import torch
import torch.utils._pytree as pytree

from mambakit.core.blocks import build_block
from mambakit.core.state import State


def example(batch: int = 3) -> State:
    generator = torch.Generator().manual_seed(0)
    return State(
        {
            "0": State(
                {
                    "conv": torch.randn(batch, 4, 3, generator=generator),
                    "ssm": torch.randn(batch, 4, 2, generator=generator, dtype=torch.float64),
                }
            ),
            "1": State(),
            "2": State({"key": torch.zeros(batch, 0, 2), "valid": torch.ones(batch, 5, dtype=torch.bool)}),
            "clock": torch.arange(batch),
        }
    )


def flat(state: State) -> dict[str, torch.Tensor]:
    return dict(state.tensors())


def assert_equal(actual: State, expected: State) -> None:
    assert repr(actual) == repr(expected)
    for name, tensor in flat(expected).items():
        assert torch.equal(flat(actual)[name], tensor), name


def test_reads_as_a_nested_mapping():
    state = example()
    assert list(state) == ["0", "1", "2", "clock"]
    assert list(flat(state)) == ["0.conv", "0.ssm", "2.key", "2.valid", "clock"]
    assert "1" in state
    assert "conv" not in state
    assert state.get("conv") is None
    with pytest.raises(KeyError, match="no entry 'conv'; it holds '0', '1', '2', 'clock'"):
        state["conv"]


def test_batch_and_bytes():
    assert example(3).batch == 3
    assert State().batch is None
    assert State({"a": State(), "b": State({"c": torch.zeros(7, 2)})}).batch == 7
    assert example(3).nbytes == 3 * (12 * 4 + 8 * 8 + 5 * 1 + 8)


def test_shows_names_dtypes_and_shapes():
    assert repr(State({"a": State(), "b": torch.zeros(2, 1)})) == "State(a=State(), b=<float32 (2, 1)>)"


@pytest.mark.parametrize("name", ["", "a.b", 3])
def test_refuses_names_that_files_cannot_hold(name):
    with pytest.raises(ValueError, match="non-empty string without dots"):
        State({name: torch.zeros(1)})


def test_refuses_what_is_no_state():
    with pytest.raises(TypeError, match="'a' must be a tensor or a State, got list"):
        State({"a": [1.0]})
    with pytest.raises(ValueError, match="'a' must have a batch dimension"):
        State({"a": torch.tensor(1.0)})
    with pytest.raises(ValueError, match=r"same batch size, got \{'a': 2, 'b.c': 3\}"):
        State({"a": torch.zeros(2), "b": State({"c": torch.zeros(3)})})


def test_is_a_pytree():
    state = example()
    leaves, spec = pytree.tree_flatten({"state": state})
    assert len(leaves) == 5
    assert_equal(pytree.tree_unflatten(leaves, spec)["state"], state)
    doubled = pytree.tree_map(lambda tensor: tensor * 2, state)
    assert torch.equal(doubled["0"]["conv"], 2 * state["0"]["conv"])
    paths = [pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(state)[0]]
    assert paths[0] == "['0']['conv']"
    # serialised by torch.export
    assert pytree.treespec_loads(pytree.treespec_dumps(spec)) == spec


def test_vmap_sees_through():
    state = State({"a": torch.arange(6.0).view(3, 2)})
    out = torch.vmap(lambda s: State.of(a=s["a"].sum(0, keepdim=True)))(state)
    assert torch.equal(out["a"], torch.tensor([[1.0], [5.0], [9.0]]))


def test_to_casts_what_is_real():
    moved = example().to(dtype=torch.float16)
    assert [str(t.dtype) for t in flat(moved).values()] == [
        "torch.float16",
        "torch.float16",
        "torch.float16",
        "torch.bool",
        "torch.int64",
    ]
    assert_equal(example().to("cpu"), example())
    assert {t.device.type for t in flat(example().to("meta")).values()} == {"meta"}


def test_clone_has_its_own_memory_and_detach_cuts():
    state = example()
    copy = state.clone()
    copy["0"]["conv"].zero_()
    assert_equal(state, example())
    leaf = torch.ones(2, requires_grad=True)
    tracked = State({"a": State({"b": leaf * 2})})
    assert tracked.clone()["a"]["b"].requires_grad
    assert not tracked.detach()["a"]["b"].requires_grad


def test_index_select_takes_rows_in_order():
    state = example()
    picked = state.index_select(torch.tensor([2, 0, 2, 2]))
    assert picked.batch == 4
    for name, tensor in flat(picked).items():
        assert torch.equal(tensor, flat(state)[name][[2, 0, 2, 2]])
    assert_equal(state.index_select([0, 1, 2]), state)
    assert state.index_select([]).batch == 0


def test_index_select_refuses_other_rows():
    with pytest.raises(IndexError, match=r"rows must be in 0..2, got \[0, 3\]"):
        example().index_select([0, 3])
    with pytest.raises(IndexError, match="rows must be in"):
        example().index_select([-1])
    with pytest.raises(TypeError, match="index: expected a list"):
        example().index_select(torch.tensor([True, False, True]))
    with pytest.raises(TypeError, match="index: expected a list"):
        example().index_select(torch.tensor([[0]]))


def test_cat_undoes_index_select():
    state = example()
    assert_equal(State.cat([state.index_select([0]), state.index_select([1, 2])]), state)


def test_cat_refuses_other_structures():
    a = State({"a": torch.zeros(1, 2)})
    with pytest.raises(ValueError, match="at least one"):
        State.cat([])
    with pytest.raises(ValueError, match=r"number 1 holds \['b'\], the first one \['a'\]"):
        State.cat([a, State({"b": torch.zeros(1, 2)})])
    with pytest.raises(ValueError, match=r"'a' has shape \(3,\) after the batch in number 2"):
        State.cat([a, a, State({"a": torch.zeros(1, 3)})])
    with pytest.raises(ValueError, match="'a' has shape a nested state"):
        State.cat([a, State({"a": State()})])
    with pytest.raises(ValueError, match="nested state in some and a tensor in others"):
        State.cat([State({"a": State()}), a])


def cache(n: int, batch: int = 2) -> State:
    return State(
        {"0": State({"key": torch.full((batch, n, 3), float(n)), "valid": torch.ones(batch, n) > 0})}
    )


def test_caches_of_different_lengths_join() -> None:
    joined = State.cat([cache(1), cache(3)])
    assert joined["0"]["key"].shape == (4, 3, 3)
    assert joined["0"]["valid"].tolist() == [[True, False, False]] * 2 + [[True] * 3] * 2
    anew = cache(3).where_rows(torch.tensor([True, False]), cache(0))
    assert anew["0"]["valid"].tolist() == [[False] * 3, [True] * 3]
    with pytest.raises(ValueError, match="'key' has shape"):  # without a mask there is no telling
        State.cat([State({"key": torch.zeros(1, 2)}), State({"key": torch.zeros(1, 3)})])


@pytest.mark.parametrize("kind", ["attention", "zamba", "conv_attention", "sliding_attention"])
def test_streams_of_different_ages_join(kind: str) -> None:
    torch.manual_seed(0)
    options = {"n_heads": 2, "window": 3} if kind == "sliding_attention" else {"n_heads": 2}
    block = build_block(kind, 8, options)
    x, following = torch.randn(2, 7, 8), torch.randn(2, 8)
    states = [block(x[:1])[1], block(x[1:, :2])[1]]
    both, _ = block.step(following, State.cat(states))
    for row, state in enumerate(states):
        alone, _ = block.step(following[row : row + 1], state)
        torch.testing.assert_close(both[row : row + 1], alone)


def test_where_rows_takes_rows_of_another() -> None:
    state = example()
    other = example().map(lambda tensor: tensor + 1 if tensor.dtype != torch.bool else ~tensor)
    mixed = state.where_rows(torch.tensor([False, True, False]), other)
    for name, tensor in flat(mixed).items():
        assert torch.equal(tensor[[0, 2]], flat(state)[name][[0, 2]])
        assert torch.equal(tensor[1], flat(other)[name][1])
    assert_equal(state, example())
    leaf = torch.ones(3, requires_grad=True)
    State({"a": leaf}).where_rows(torch.tensor([True, False, False]), State({"a": leaf * 2}))[
        "a"
    ].sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [2.0, 1.0, 1.0]


def test_put_rows_undoes_index_select() -> None:
    state, zero = example(), example().map(torch.zeros_like)
    put = zero.put_rows([2, 0], state.index_select([2, 0]))
    for name, tensor in flat(put).items():
        assert torch.equal(tensor[[0, 2]], flat(state)[name][[0, 2]])
        assert not tensor[1].any()
    assert_equal(state.put_rows([], state.index_select([])), state)


def test_other_rows_are_refused() -> None:
    state = example()
    with pytest.raises(TypeError, match=r"mask: expected bool, got torch.int64"):
        state.where_rows(torch.tensor([0, 1, 0]), state)
    with pytest.raises(
        ValueError, match="expected a batch of 3 rows, got a mask of shape \\(3,\\) and a state of 2"
    ):
        state.where_rows(torch.ones(3) > 0, example(2))
    with pytest.raises(ValueError, match="holds \\['a'\\]"):
        state.where_rows(torch.ones(3) > 0, State({"a": torch.zeros(3)}))
    with pytest.raises(ValueError, match="one row for each of the 2 of other, got 1"):
        state.put_rows([0], example(2))
    with pytest.raises(ValueError, match=r"a row is named twice in \[1, 1\]"):
        state.put_rows([1, 1], example(2))
    with pytest.raises(IndexError, match="rows must be in"):
        state.put_rows([3], example(1))


def test_dicts_give_everything_back() -> None:
    plain = example().to_dict()
    assert type(plain["0"]) is dict
    assert plain["1"] == {}
    assert_equal(State.from_dict(plain), example())


def test_a_file_gives_everything_back(tmp_path):
    path = tmp_path / "state.safetensors"
    example().save(path)
    assert_equal(State.load(path), example())
    assert "0.conv" in safetensors.torch.load_file(path)
    State().save(path)
    assert_equal(State.load(path), State())


def test_a_file_of_views_and_shared_memory(tmp_path):
    base = torch.arange(12.0).view(3, 4)
    state = State({"a": base[:, ::2], "b": base.transpose(0, 1)[:3, :], "c": base})
    state.save(tmp_path / "s")
    assert_equal(State.load(tmp_path / "s"), state)


def test_files_that_are_no_states(tmp_path):
    with pytest.raises(FileNotFoundError, match="no state file at"):
        State.load(tmp_path / "none")
    (tmp_path / "text").write_text("not a state")
    with pytest.raises(ValueError, match="is not a saved state"):
        State.load(tmp_path / "text")
    safetensors.torch.save_file({"weight": torch.zeros(2)}, tmp_path / "weights")
    with pytest.raises(ValueError, match="is not a saved state"):
        State.load(tmp_path / "weights")


def test_copies_and_processes():
    state = example()
    for other in (copy.copy(state), copy.deepcopy(state), pickle.loads(pickle.dumps(state))):
        assert_equal(other, state)
    deep = copy.deepcopy(state)
    deep["0"]["conv"].zero_()
    assert_equal(state, example())
