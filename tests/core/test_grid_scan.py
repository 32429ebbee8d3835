from __future__ import annotations

import pytest
import torch
from torch import nn

from mambakit.core.backbone import Backbone, BackboneConfig
from mambakit.core.blocks import GridScan, build_block
from mambakit.core.hub import HubModel
from mambakit.core.scans import SCANS, inverse, phase_of, scan_orders, window_of

GRID = (3, 4)
N = 12
INNER = {"inner": "mamba1", "inner_options": {"d_state": 3}}


def build(**options) -> GridScan:
    torch.manual_seed(0)
    block = build_block("grid_scan", 8, {"grid": GRID, **INNER, **options}).double()
    with torch.no_grad():  # larger dt than at the start of training: states forget within a few tokens
        for name, parameter in block.named_parameters():
            if name.endswith("dt_proj.bias"):
                parameter.add_(3.0)
    return block


def sample(batch: int = 3, length: int = N) -> torch.Tensor:
    return torch.randn(batch, length, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def expected(block: GridScan, x: torch.Tensor, orders: torch.Tensor) -> list[torch.Tensor]:
    """Each order by itself."""
    readers = list(block.inner) * (len(orders) if len(block.inner) == 1 else 1)
    return [reader(x[:, order])[0][:, inverse(order)] for reader, order in zip(readers, orders, strict=True)]


# --- what it computes


@pytest.mark.parametrize("share", ["none", "projections", "all"])
@pytest.mark.parametrize("merge", ["sum", "mean", "concat", "gated"])
def test_it_reads_every_order_and_merges_in_place(merge, share):
    block, x = build(merge=merge, share=share), sample()
    if merge == "gated":
        nn.init.normal_(block.merge.gate_proj.weight)
    outputs = torch.stack(expected(block, x, scan_orders("cross", GRID)))
    if merge == "concat":
        y = torch.cat(list(outputs), -1) @ block.merge.out_proj.weight.T
    elif merge == "gated":
        gates = (x @ block.merge.gate_proj.weight.T).view(3, N, 4, 8).softmax(2).permute(2, 0, 1, 3)
        assert gates.var(dim=0).min() > 0
        y = (gates * outputs).sum(0)
    else:
        y = outputs.sum(0) if merge == "sum" else outputs.mean(0)
    torch.testing.assert_close(block(x)[0], y, atol=1e-12, rtol=0)


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("reverse", [True, False])
def test_every_scan(scan, reverse):
    grid = (2, 2, 3) if scan == "spatio_temporal" else GRID
    block, x = build(grid=grid, scan=scan, reverse=reverse, share="all"), sample()
    y = sum(expected(block, x, scan_orders(scan, grid, reverse=reverse)))
    torch.testing.assert_close(block(x)[0], y, atol=1e-12, rtol=0)


def test_the_gate_starts_as_the_mean():
    gated, mean, x = build(merge="gated"), build(merge="mean"), sample()
    mean.load_state_dict(gated.state_dict(), strict=False)
    torch.testing.assert_close(gated(x)[0], mean(x)[0], atol=1e-12, rtol=0)


@pytest.mark.parametrize("merge", ["sum", "mean", "concat", "gated"])
def test_one_order_needs_no_merge(merge):
    block, x = build(scan="raster", reverse=False, merge=merge), sample()
    assert not list(block.merge.parameters())
    torch.testing.assert_close(block(x)[0], block.inner[0](x)[0], atol=1e-12, rtol=0)


def test_what_is_shared_counts_once():
    counts = {
        share: sum(p.numel() for p in build(share=share).parameters())
        for share in ("none", "projections", "all")
    }
    one = build_block("mamba1", 8, INNER["inner_options"])
    projections = sum(p.numel() for p in (*one.in_proj.parameters(), *one.out_proj.parameters()))
    assert counts["none"] == 4 * counts["all"]
    assert counts["projections"] == counts["none"] - 3 * projections


@pytest.mark.parametrize(("scan", "number"), [("windows", window_of), ("dilated", phase_of)])
@pytest.mark.parametrize("share", ["none", "all"])
def test_isolated_groups_do_not_see_each_other(scan, number, share):
    options = {"scan": scan, "share": share, "scan_options": {"size": [2, 3]}}
    block, x = build(isolate=True, **options), sample()
    group = number(GRID, [2, 3])
    y, _ = block(x)
    for g in group.unique():
        cells = (group == g).nonzero()[:, 0]
        readers = (block.inner[0], block.inner[-1])
        alone = readers[0](x[:, cells])[0] + readers[1](x[:, cells.flip(0)])[0].flip(1)
        torch.testing.assert_close(y[:, cells], alone, atol=1e-12, rtol=0)
    joined = build(**options)
    assert (joined(x)[0] - y).abs().max() > 1e-3


def test_a_transposed_image_is_read_alike():
    """Four ways with the same weights see no difference between rows and columns."""
    turn = torch.arange(N).view(GRID).T.flatten()
    x = sample()
    torch.testing.assert_close(
        build(grid=(4, 3), share="all")(x[:, turn])[0], build(share="all")(x)[0][:, turn], atol=1e-12, rtol=0
    )


# --- gradients


@pytest.mark.parametrize(
    "options", [{"share": "all", "merge": "gated"}, {"scan": "hilbert", "merge": "concat"}]
)
def test_gradients_pass_through_the_orders(options):
    block = build(grid=(2, 2), **options)
    x = sample(1, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: block(x)[0], (x,))
    block(sample(2, 4))[0].square().sum().backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_an_order_and_back_gives_the_gradient_back():
    """With an inner block that looks at single tokens all orders are the same to it."""
    block, x = build(inner="mlp", inner_options={}, share="all", merge="mean"), sample().requires_grad_()
    weight = torch.randn(3, N, 8, dtype=torch.float64)
    actual = torch.autograd.grad((block(x)[0] * weight).sum(), x)[0]
    alone = torch.autograd.grad((block.inner[0](x)[0] * weight).sum(), x)[0]
    torch.testing.assert_close(actual, alone, atol=1e-12, rtol=0)


# --- packed and padded


@pytest.mark.parametrize("options", [{}, {"scan": "windows", "isolate": True, "share": "all"}])
def test_packed_grids_equal_each_alone(options):
    block, x = build(**options), sample(2, 3 * N)
    ids = torch.tensor([[0, 1, 5], [2, 3, 4]], dtype=torch.int32).repeat_interleave(N, dim=1)
    y, _ = block(x, seq_idx=ids)
    for k in range(3):
        part = slice(k * N, (k + 1) * N)
        torch.testing.assert_close(y[:, part], block(x[:, part])[0], atol=1e-12, rtol=0)


def test_padded_grids_equal_each_alone():
    block, x = build(), sample(3, N + 2)
    lengths = torch.tensor([N, 0, N])
    x[:, N:] = torch.nan
    x[1] = torch.nan
    x.requires_grad_()
    y, _ = block(x, lengths=lengths)
    for row in (0, 2):
        torch.testing.assert_close(y[row : row + 1, :N], block(x[row : row + 1, :N])[0], atol=1e-12, rtol=0)
    assert not y[1].any()
    assert not y[:, N:].any()
    grad = torch.autograd.grad(y.square().sum(), x)[0]
    assert grad.isfinite().all()
    assert grad[0, :N].any()


def test_no_grids_at_all():
    for share in ("none", "all"):
        y, state = build(share=share)(sample(0))
        assert y.shape == (0, N, 8)
        assert len(state) == 0


def test_anything_else_is_refused():
    block = build()
    with pytest.raises(ValueError, match=r"x: each row must be one whole grid \(3, 4\) of 12 cells, got"):
        block(sample(2, 13))
    with pytest.raises(ValueError, match="got a length of 24; give seq_idx for several grids in a row"):
        block(sample(2, 24))
    for ids in (torch.zeros(2, 24), (torch.arange(24) >= 11).expand(2, 24), torch.zeros(2, 18)):
        with pytest.raises(ValueError, match=r"seq_idx: each packed sequence must be one whole grid"):
            block(sample(2, ids.shape[1]), seq_idx=ids.int())
    with pytest.raises(ValueError, match=r"lengths: each row must hold one whole grid .* got \[12, 5\]"):
        block(sample(2), lengths=torch.tensor([12, 5]))
    with pytest.raises(ValueError, match=r"x: each row must hold one whole grid .* got a length of 3"):
        block(sample(2, 3), lengths=torch.tensor([0, 0]))
    with pytest.raises(ValueError, match=r"x: expected shape \(batch, length, d_model=8\)"):
        block(sample()[..., :4])
    with pytest.raises(RuntimeError, match="GridScan looks in both directions and needs the whole sequence"):
        block.init_state(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scan": "spiral"}, "scan: expected one of raster"),
        ({"scan_options": {"size": 2}}, "options of cross: it has no option 'size'"),
        ({"grid": [4]}, r"grid: this scan needs \(height, width\) or \(frames, height, width\), got \(4,\)"),
        ({"scan": "spatio_temporal"}, r"needs \(frames, height, width\)"),
        ({"isolate": True}, "isolate: the scan 'cross' has no groups; use windows or dilated"),
        ({"merge": "max"}, "merge: expected one of sum, mean, concat, gated"),
        ({"share": "some"}, "share: expected one of none, projections, all"),
        ({"inner": "rnn"}, "no block is called 'rnn'"),
        (
            {"inner": "bidirectional", "inner_options": {"inner": "mamba1"}, "share": "projections"},
            "share: 'bidirectional' has no in_proj to share; use 'none' or 'all'",
        ),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


# --- in a model


CONFIG = BackboneConfig(
    d_model=8,
    layers=["grid_scan", "mlp"],
    repeat=2,
    block_options={"grid_scan": {"grid": [3, 4], "scan": "hilbert", "share": "projections", **INNER}},
    bidirectional=True,
)


def test_a_backbone_of_scans_from_yaml():
    torch.manual_seed(0)
    backbone = Backbone(BackboneConfig.from_yaml(CONFIG.to_yaml())).double().eval()
    assert isinstance(backbone.blocks[0], GridScan)  # it looks both ways already
    x = sample()
    y, _ = backbone(x)
    other = Backbone(CONFIG).double().eval()
    assert not any("orders" in name for name in backbone.state_dict())
    other.load_state_dict(backbone.state_dict())
    assert torch.equal(other(x)[0], y)
    shared = other.blocks[0].inner
    assert shared[0].in_proj.weight is shared[1].in_proj.weight
    padded = torch.cat([torch.full((3, 2, 8), torch.nan).double(), x], dim=1)
    left, _ = backbone(padded, lengths=torch.full((3,), N), padding="left")
    torch.testing.assert_close(left[:, 2:], y, atol=1e-12, rtol=0)


class Pictures(Backbone, HubModel):
    pass


def test_a_model_folder_keeps_what_is_shared(tmp_path):
    torch.manual_seed(0)
    model, x = Pictures(CONFIG).eval(), sample().float()
    model.save_pretrained(tmp_path)
    loaded = Pictures.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(x)[0], model(x)[0])
    first, second = loaded.blocks[0].inner
    assert first.in_proj.weight is second.in_proj.weight
    assert first.out_proj.weight is second.out_proj.weight


@pytest.mark.parametrize(
    "options", [{"share": "all"}, {"scan": "windows", "isolate": True, "merge": "gated"}]
)
def test_dynamo_traces_it_in_one_graph(options):
    block, x = build(**options).float(), sample().float()
    torch.testing.assert_close(torch.compile(block, backend="eager", fullgraph=True)(x)[0], block(x)[0])


def test_export_for_any_batch():
    block = build(share="all").float().eval()
    with torch.no_grad():
        batch = torch.export.Dim("batch", min=2, max=64)
        graph = torch.export.export(block, (sample().float(),), dynamic_shapes={"x": {0: batch}})
        x = sample(7).float()
        torch.testing.assert_close(graph.module()(x)[0], block(x)[0])


def test_it_learns_a_batch_by_heart():
    torch.manual_seed(0)
    block = build_block("grid_scan", 8, {"grid": GRID, "scan": "zigzag", "merge": "gated", **INNER})
    x, target = sample().float(), sample().float().flip(0, 2)
    optimizer = torch.optim.Adam(block.parameters(), lr=2e-2)
    losses = []
    for _ in range(60):
        loss = (block(x)[0] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
