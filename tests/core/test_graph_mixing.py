"""Graph layers: neighbours by their equations, relabelling, padding, packing, and edges that are none."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mambakit.core.backbone import Backbone, BackboneConfig
from mambakit.core.blocks import Context, GraphMix

# row, source, target: a path, a node that two lead to, a loop on itself, and isolated nodes
EDGES = torch.tensor([[0, 0, 1], [0, 1, 2], [0, 4, 2], [1, 3, 3], [1, 0, 4], [1, 4, 0]])


def build(**options: object) -> GraphMix:
    torch.manual_seed(0)
    return GraphMix(**{"d_model": 6, **options}).double().eval()


def sample(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def mix(block: GraphMix, x: torch.Tensor, edges: torch.Tensor, features=None, **where) -> torch.Tensor:
    return block(x, context=Context(edges=edges, edge_features=features), **where)[0]


@pytest.mark.parametrize("d_edge", [0, 3])
@pytest.mark.parametrize("gated", [True, False])
def test_neighbour_by_neighbour(gated, d_edge):
    block, x = build(gated=gated, d_edge=d_edge), sample(2, 5, 6)
    features = sample(len(EDGES), d_edge) if d_edge else None
    own, passed, *gates = block.in_proj(x).split(6, dim=-1)
    expected = torch.zeros_like(x)
    for row in range(2):
        for node in range(5):
            total = weight = torch.zeros(6, dtype=torch.float64)
            for i, (r, source, target) in enumerate(EDGES.tolist()):
                if (r, target) != (row, node):
                    continue
                edge = block.edge_proj.weight @ features[i] if d_edge else 0.0
                if gated:
                    gate = torch.sigmoid(gates[0][row, node] + gates[1][row, source] + edge)
                    total, weight = total + gate * passed[row, source], weight + gate
                else:
                    total, weight = total + passed[row, source] + edge, weight + 1
            mixed = total / (weight + 1e-6) if gated else total / weight.clamp(min=1)
            expected[row, node] = block.out_proj.weight @ F.silu(own[row, node] + mixed)
    torch.testing.assert_close(mix(block, x, EDGES, features), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("gated", [True, False])
def test_names_of_nodes_do_not_matter(gated):
    block, x = build(gated=gated, d_edge=2), sample(1, 7, 6)
    generator = torch.Generator().manual_seed(2)
    edges = torch.stack([torch.zeros(9).long(), *torch.randint(0, 7, (2, 9), generator=generator)], dim=1)
    features = sample(9, 2)
    order = torch.randperm(7, generator=generator)  # the new place of each node
    moved = torch.empty_like(x)
    moved[:, order] = x
    renamed = torch.cat([edges[:, :1], order[edges[:, 1:]]], dim=1)
    shuffled = torch.randperm(9, generator=generator)
    y = mix(block, moved, renamed[shuffled], features[shuffled])
    torch.testing.assert_close(y[:, order], mix(block, x, edges, features), atol=1e-12, rtol=0)


def test_isolated_nodes_keep_their_own_part():
    block, x = build(), sample(2, 5, 6)
    alone = block.out_proj(F.silu(block.in_proj(x)[..., :6]))
    torch.testing.assert_close(mix(block, x, EDGES[:0]), alone, atol=1e-12, rtol=0)
    torch.testing.assert_close(mix(block, x, EDGES)[0, 3], alone[0, 3], atol=1e-12, rtol=0)


def stack(**options: object) -> Backbone:
    torch.manual_seed(0)
    config = BackboneConfig(
        d_model=6,
        layers=["graph", "mamba1", "graph", "mlp"],
        block_options={"graph": {"d_edge": 2}, "mamba1": {"d_state": 3}},
        **options,
    )
    return Backbone(config).double().eval()


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("padding", ["right", "left"])
def test_padded_graphs_equal_each_alone(padding, bidirectional):
    backbone, x, features = stack(bidirectional=bidirectional), sample(3, 5, 6), sample(6, 2)
    lengths = [5, 3, 0]
    edges = torch.tensor([[0, 0, 4], [0, 4, 0], [0, 2, 3], [1, 0, 2], [1, 2, 1], [1, 1, 1]])
    padded = torch.full_like(x, torch.nan)
    placed = edges.clone()
    for row, n in enumerate(lengths):
        shift = 5 - n if padding == "left" else 0
        padded[row, shift : shift + n] = x[row, :n]
        placed[placed[:, 0] == row, 1:] += shift
    y, _ = backbone(
        padded, lengths=torch.tensor(lengths), padding=padding, edges=placed, edge_features=features
    )
    for row, n in enumerate(lengths):
        mine = edges[:, 0] == row
        own = torch.cat([torch.zeros_like(edges[mine, :1]), edges[mine, 1:]], dim=1)
        alone, _ = backbone(x[row : row + 1, :n], edges=own, edge_features=features[mine])
        shift = 5 - n if padding == "left" else 0
        torch.testing.assert_close(y[row : row + 1, shift : shift + n], alone, atol=1e-10, rtol=0)
        assert not y[row, :shift].any()
        assert not y[row, shift + n :].any()


def test_packed_graphs_equal_each_alone():
    backbone, x, features = stack(), sample(1, 7, 6), sample(4, 2)
    seq_idx = torch.tensor([[0, 0, 0, 1, 1, 1, 1]], dtype=torch.int32)
    edges = torch.tensor([[0, 0, 2], [0, 2, 1], [0, 3, 6], [0, 6, 4]])
    y, _ = backbone(x, seq_idx=seq_idx, edges=edges, edge_features=features)
    first, _ = backbone(x[:, :3], edges=edges[:2], edge_features=features[:2])
    second, _ = backbone(x[:, 3:], edges=edges[2:] - torch.tensor([0, 3, 3]), edge_features=features[2:])
    torch.testing.assert_close(y, torch.cat([first, second], dim=1), atol=1e-10, rtol=0)


def test_it_has_no_step():
    assert not stack().causal
    with pytest.raises(RuntimeError, match="GraphMix looks in both directions and needs the whole sequence"):
        stack().init_state(1)


@pytest.mark.parametrize(
    ("edges", "where", "message"),
    [
        (None, {}, r"a graph layer needs them, \(n_edges, 3\)"),
        ([[0, 1]], {}, r"expected shape \(n_edges, 3\) of \(row, source, target\), got \(1, 2\)"),
        ([[2, 0, 0]], {}, r"rows must be in 0..1, got 2"),
        ([[0, 1, 1], [0, 0, 5]], {}, r"edges: \[0, 0, 5\] leaves its row's 5 tokens"),
        ([[0, -1, 0]], {}, r"\[0, -1, 0\] leaves its row's 5 tokens"),
        ([[1, 0, 3]], {"lengths": torch.tensor([5, 3])}, r"\[1, 0, 3\] leaves its row's 3 tokens"),
        (
            [[1, 1, 2]],
            {"seq_idx": torch.tensor([[0, 0, 0, 0, 0], [0, 0, 1, 1, 1]], dtype=torch.int32)},
            r"\[1, 1, 2\] joins two packed sequences",
        ),
    ],
)
def test_edges_that_make_no_sense(edges, where, message):
    backbone, x = stack(), sample(2, 5, 6)
    given = None if edges is None else torch.tensor(edges)
    features = None if edges is None else sample(len(edges), 2)
    with pytest.raises(ValueError, match=message):
        backbone(x, **where, edges=given, edge_features=features)


def test_edges_of_another_kind():
    backbone, x = stack(), sample(2, 5, 6)
    with pytest.raises(TypeError, match=r"edges: expected an int64 tensor, got torch\.float32"):
        backbone(x, edges=EDGES.float(), edge_features=sample(6, 2))
    with pytest.raises(ValueError, match=r"edge_features: expected shape \(n_edges=6, d_edge=2\), got None"):
        backbone(x, edges=EDGES)
    with pytest.raises(ValueError, match=r"edge_features: expected .* got \(5, 2\)"):
        backbone(x, edges=EDGES, edge_features=sample(5, 2))
    with pytest.raises(ValueError, match="edge_features: the graph layer was built without them"):
        mix(build(), x, EDGES, sample(6, 2))
    plain = Backbone(BackboneConfig(d_model=6, layers=["mlp"])).double()
    with pytest.raises(ValueError, match="edges: no layer of this backbone looks at them"):
        plain(x, edges=EDGES)
    with pytest.raises(ValueError, match="d_model, d_edge: expected at least 1 and 0"):
        GraphMix(d_model=6, d_edge=-1)


def test_gradients_reach_edges_and_neighbours():
    block, x, features = build(d_edge=3), sample(2, 5, 6), sample(6, 3)
    x.requires_grad_()
    features.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, features: mix(block, x, EDGES, features), (x, features), atol=1e-6
    )
