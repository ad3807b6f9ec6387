"Every incremental form equals its parallel one: over kernels, strides, shifts, sizes, numbers of images, from the top and from the middle."
import copy
from functools import partial
from itertools import product
import pytest, torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import nn
from distsmooth.engine.incremental import LANES, RowCache, PixelBlock, PixelConv, PixelUp, RowBlock, RowConv, fold_weight_norm, row_up
from distsmooth.blocks import GatedResidual, concat_elu
from distsmooth.masked import MaskedConv2d, ShiftedConv2d, ShiftedConvTranspose2d, WeightNorm, WeightNormConv2d, WeightNormConvTranspose2d
from distsmooth.pixelcnn import PixelCNNpp

close = partial(torch.testing.assert_close, rtol=0, atol=1e-10)
down, right = partial(ShiftedConv2d, direction='down'), partial(ShiftedConv2d, direction='right')
ROWS, NS = 6, (1, 3, 17)

def randn(*size): return torch.randn(*size, dtype=torch.float64)
def plain(layer):
    "Folded, with biases that matter"
    layer = fold_weight_norm(layer.double())
    for name, p in layer.named_parameters():
        if name.endswith('bias'): p.data = torch.randn_like(p)
    return layer
def as_row(x): return x.permute(1, 2, 0).flatten(1)
def as_image(rows, n): return torch.stack([r.view(len(r), -1, n).permute(2, 0, 1) for r in rows], 2)
def lanes(x): return F.pad(x.t(), (0, -len(x) % LANES))
def ids(kw): return '-'.join(f'{k}={v}' for k, v in kw.items()) or 'plain'

# ---- one row, one pixel

def by_row(layer, x, start=0, **kw):
    conv, out = RowConv(layer, len(x), **kw), []
    for i in range(start, x.shape[2]):
        window = conv.window(as_row(x[:, :, i]))
        if i % conv.stride == 0: out.append(conv.read(window))
        if i % conv.stride == conv.stride - 1: conv.leave(window)
    return as_image(out, len(x))

def by_pixel(layer, x, start=0, more=lambda i: (), **kw):
    "Fills in only what has been drawn: everything to come is NaN until it is there"
    n, (W, s) = len(x), (x.shape[3], layer.conv.stride[0])
    conv, out = PixelConv(layer, W, n, **kw), []
    for i in range(start, x.shape[2]):
        if i % s == 0: conv.row(*more(i))
        for cell in conv.inputs: cell.fill_(torch.nan)
        for j in range(W):
            known = j - 1 if conv.shift else j
            if known >= 0: conv.inputs[known][:, :n] = x[:, :, i, known].t()
            if i % s == j % s == 0:
                before = conv.outputs[j//s].data_ptr()
                assert conv.pixel(j//s).data_ptr() == before
        if conv.shift: conv.inputs[-1][:, :n] = x[:, :, i, -1].t()
        if i % s == 0: out.append(conv.sums[..., :n].clone().permute(2, 1, 0))
    return torch.stack(out, 2)

@pytest.mark.parametrize('stride', (1, 2, 3))
@pytest.mark.parametrize('width', (1, 3, 5))
@pytest.mark.parametrize('W', (1, 4, 7))
def test_rows_are_the_convolution(width, stride, W):
    for n, (n_in, n_out) in product(NS, ((1, 1), (3, 2))):
        layer, x = plain(down(n_in, n_out, kernel=(2, width), stride=stride)), randn(n, n_in, ROWS, W)
        close(by_row(layer, x), layer(x))

@pytest.mark.parametrize('stride, shift', ((1, False), (1, True), (2, False), (3, False)))
@pytest.mark.parametrize('width', (1, 2, 3))
@pytest.mark.parametrize('W', (1, 4, 7))
def test_pixels_are_the_convolution(width, stride, shift, W):
    for n, (n_in, n_out) in product(NS, ((1, 1), (3, 2))):
        layer, x = plain(right(n_in, n_out, kernel=(2, width), stride=stride, shift=shift)), randn(n, n_in, ROWS, W)
        close(by_pixel(layer, x), layer(x))

def test_row_is_window_read_leave():
    layer, x = plain(down(3, 2)), randn(3, 3, ROWS, 5)
    conv = RowConv(layer, 3)
    close(as_image([conv.row(as_row(x[:, :, i])) for i in range(ROWS)], 3), layer(x))

def fill(net, x, start):
    "The memory of `net` after the first rows of `x`"
    with RowCache(net) as memory:
        net(x[:, :, :start])
        memory.commit()
    return memory.above

@pytest.mark.parametrize('make, by', ((partial(down, stride=1), by_row), (partial(down, stride=2), by_row), (partial(right, stride=1), by_pixel),
                                      (partial(right, stride=2), by_pixel), (partial(right, kernel=(2, 1), shift=True), by_pixel), (partial(right, shift=True), by_pixel)))
@pytest.mark.parametrize('n', NS)
@pytest.mark.parametrize('start', (2, 4))
def test_convolutions_start_below_known_rows(make, by, n, start):
    layer, x = plain(make(3, 2)), randn(n, 3, ROWS, 6)
    rest = layer(x)[:, :, start//layer.conv.stride[0]:]
    close(by(layer, x, start, above=fill(layer, x, start)[layer]), rest)
    assert not torch.allclose(by(layer, x, start), rest)

@pytest.mark.parametrize('n', NS)
@pytest.mark.parametrize('columns', (1, 5))
def test_base_replaces_the_bias(n, columns):
    x, image = randn(n, 3, ROWS, 5), lambda base: base.view(2, -1, n if columns > 1 else 1).permute(2, 0, 1)[:, :, None]
    for make, by in ((down, by_row), (right, by_pixel)):
        layer, base = plain(make(3, 2)), randn(2, columns*n if columns > 1 else 1)
        close(by(layer, x, base=base), layer(x) - layer.conv.bias.view(-1, 1, 1) + image(base))

def test_more_is_added_to_the_row():
    layer, x, e, f = plain(right(3, 2)), randn(3, 3, ROWS, 5), randn(3, 4, ROWS, 5), randn(3, 1, ROWS, 5)
    a, b = randn(2, 4), randn(2, 1)
    out = by_pixel(layer, x, more=lambda i: ((a, as_row(e[:, :, i])), (b, as_row(f[:, :, i]))))
    close(out, layer(x) + torch.einsum('oc,bchw->bohw', a, e) + torch.einsum('oc,bchw->bohw', b, f))

@pytest.mark.parametrize('form, layer', ((partial(RowConv, n=1), right(1, 1)), (partial(RowConv, n=1), down(1, 1, kernel=(1, 3))), (partial(RowConv, n=1), down(1, 1, kernel=(3, 3))),
    (partial(RowConv, n=1), down(1, 1, shift=True)), (partial(PixelConv, width=4, n=1), down(1, 1)), (partial(PixelConv, width=4, n=1), right(1, 1, kernel=(1, 2))),
    (partial(PixelConv, width=4, n=1), right(1, 1, kernel=(3, 2))), (partial(PixelUp, width=4, n=1), ShiftedConvTranspose2d(1, 1, 'down'))))
def test_layers_without_an_incremental_form_are_refused(form, layer):
    with pytest.raises(ValueError, match=r"layer must be '(down|right)', of height 2.*got \('(down|right)', [123], (True|False)\)"): form(fold_weight_norm(layer))

# ---- the way back up

@pytest.mark.parametrize('n', NS)
@pytest.mark.parametrize('W', (1, 4))
def test_way_up(n, W):
    x = randn(n, 3, 3, W)
    vertical, horizontal = (plain(ShiftedConvTranspose2d(3, 2, d)) for d in ('down', 'right'))
    close(as_image([row for i in range(3) for row in row_up(vertical, as_row(x[:, :, i]), n)], n), vertical(x))
    up, out = PixelUp(horizontal, W, n), horizontal(x)
    for i in range(3):
        for j in range(W): up.pixel(j, lanes(x[:, :, i, j]))
        for a, j in product((0, 1), range(2*W)): close(up.at[a][j][:, :n].t(), out[:, :, 2*i + a, j])

# ---- the gated block

SIDES = [dict(zip(('skip', 'context', 'cond'), on)) for on in product((0, 1), repeat=3)]

def sides(n, W, on):
    "v, h, what is mixed in, and the sizes of a block that takes them"
    made = dict(skip=randn(n, 4, ROWS, W), context=randn(n, 3, ROWS, W), cond=randn(n, 5))
    return randn(n, 4, ROWS, W), randn(n, 4, ROWS, W), {k: made[k] if on[k] else None for k in made}

def rows_of(block, v, side, start=0, above={}):
    n, out = len(v), []
    form = RowBlock(block, v.shape[3], n, above, side['cond'])
    for i in range(start, ROWS):
        args = [None if t is None else as_row(t[:, :, i]) for t in (side['skip'] if side['skip'] is None else concat_elu(side['skip']), side['context'])]
        x = as_row(v[:, :, i])
        out.append(form.row(x, concat_elu(x, 0), *args))
    return as_image(out, n)

def pixels_of(block, v, h, side, start=0, above={}):
    (n, _, _, W), e, out = h.shape, concat_elu(v), torch.empty_like(h)
    form = PixelBlock(block, W, n, above, side['cond'])
    for i in range(start, ROWS):
        form.row(as_row(e[:, :, i]), None if side['context'] is None else as_row(side['context'][:, :, i]))
        for j in range(W):
            x, s = lanes(h[:, :, i, j]), side['skip']
            close(form.read(j, x), concat_elu(x, 0))
            out[:, :, i, j] = form.pixel(j, x, None if s is None else lanes(concat_elu(s)[:, :, i, j]))[:, :n].t()
    return out[:, :, start:]

def block_of(conv, on, n_skip): return plain(GatedResidual(4, conv, n_skip, 3*on['context'], 5*on['cond']))

def both(on): return block_of(down, on, 4*on['skip']), block_of(right, on, 4 + 4*on['skip'])

def whole(row, pixel, v, h, side):
    rest = side['context'], side['cond']
    return row(v, side['skip'], *rest), pixel(h, v if side['skip'] is None else torch.cat([v, side['skip']], 1), *rest)

@pytest.mark.parametrize('on', SIDES, ids=ids)
@pytest.mark.parametrize('n', NS)
def test_blocks(on, n):
    (row, pixel), (v, h, side) = both(on), sides(n, 4, on)
    out_v, out_h = whole(row, pixel, v, h, side)
    close(rows_of(row, v, side), out_v)
    close(pixels_of(pixel, v, h, side), out_h)

@pytest.mark.parametrize('on', SIDES, ids=ids)
@pytest.mark.parametrize('n', (1, 17))
def test_blocks_start_below_known_rows(on, n, start=3):
    (row, pixel), (v, h, side) = both(on), sides(n, 4, on)
    top = [None if t is None else t[:, :, :start] if t.ndim == 4 else t for t in (v, h, *side.values())]
    with RowCache(nn.ModuleList([row, pixel])) as memory:
        whole(row, pixel, *top[:2], dict(zip(side, top[2:])))
        memory.commit()
    out_v, out_h = (o[:, :, start:] for o in whole(row, pixel, v, h, side))
    close(rows_of(row, v, side, start, memory.above), out_v)
    close(pixels_of(pixel, v, h, side, start, memory.above), out_h)
    assert not torch.allclose(rows_of(row, v, side, start), out_v) and not torch.allclose(pixels_of(pixel, v, h, side, start), out_h)

# ---- strips

class Streams(nn.Module):
    "Both streams, a stride and the way back; strips of even height"
    def __init__(self, n=3):
        super().__init__()
        self.v, self.left = down(2, n, shift=True), right(2, n, kernel=(2, 1), shift=True)
        self.low, self.up = down(n, n, stride=2), ShiftedConvTranspose2d(n, n, 'down')
        self.h, self.wide = right(n, n), down(n, n, kernel=(4, 5))
    def forward(self, x):
        v = self.v(x).tanh()
        return self.h((self.up(self.low(v)) + self.left(x)).tanh()) + self.wide(v)

def in_strips(net, x, sizes):
    out = []
    with RowCache(net) as memory:
        for strip in x.split(sizes, 2):
            out.append(net(strip))
            memory.commit()
    return torch.cat(out, 2)

def splits(total, unit=1):
    "Any split of `total` rows into strips of multiples of `unit`"
    def sizes(cuts):
        edges = [0, *sorted(cuts), total]
        return [b - a for a, b in zip(edges, edges[1:])]
    return st.sets(st.sampled_from(range(unit, total, unit))).map(sizes)

@settings(max_examples=30, deadline=None)
@given(splits(8), st.sampled_from([('down', (2, 3)), ('down', (1, 3)), ('down', (4, 5)), ('right', (2, 2)), ('right', (1, 2)), ('right', (3, 1))]), st.booleans())
def test_a_layer_over_any_strips(sizes, kind, shift):
    layer, x = ShiftedConv2d(2, 3, *kind, shift=shift).double(), randn(2, 2, 8, 5)
    close(in_strips(layer, x, sizes), layer(x))

@settings(max_examples=20, deadline=None)
@given(splits(12, 2))
def test_a_network_over_any_strips(sizes):
    net, x = Streams().double(), randn(2, 2, 12, 6)
    close(in_strips(net, x, sizes), net(x))

@settings(max_examples=8, deadline=None)
@given(splits(16, 4), st.sampled_from([1, 3]))
def test_a_pixelcnn_over_any_strips(sizes, channels):
    torch.manual_seed(0)
    net = PixelCNNpp(channels, (16, 8), n_filters=4, n_resnet=1, n_mix=1).double().eval()
    x, out = randn(2, channels, 16, 8), []
    with torch.no_grad(), RowCache(net) as memory:
        for strip in x.split(sizes, 2):
            out.append(net.params(strip, net.encode()))
            memory.commit()
    with torch.no_grad(): close(torch.cat(out, 2), net(x))

def test_without_memory_there_is_a_seam():
    net, x = Streams().double(), randn(2, 2, 12, 6)
    apart = torch.cat([net(s) for s in x.split(6, 2)], 2)
    close(apart[:, :, :6], net(x)[:, :, :6])
    assert not torch.allclose(apart[:, :, 6], net(x)[:, :, 6])

def test_a_strip_may_be_tried_again_until_it_is_kept():
    net, x = Streams().double(), randn(2, 2, 12, 6)
    with RowCache(net) as memory:
        net(x[:, :, :4]); memory.commit()
        for guess in (randn(2, 2, 8, 6), x[:, :, 4:]): out = net(guess)
        net(randn(2, 2, 4, 6)); net(x[:, :, 4:8]); memory.commit()
        last = net(x[:, :, 8:])
    close(out, net(x)[:, :, 4:])
    close(last, net(x)[:, :, 8:])

def test_keep_without_a_new_strip_changes_nothing():
    net, x = Streams().double(), randn(2, 2, 12, 6)
    with RowCache(net) as memory:
        memory.commit()
        assert not memory.above
        net(x[:, :, :2]); memory.commit(); memory.commit()
        out = net(x[:, :, 2:])
    close(out, net(x)[:, :, 2:])

def test_kept_rows_are_copies_of_reach_rows():
    net, x = Streams().double(), randn(2, 2, 12, 6)
    above = fill(net, x, 12)
    assert {m: t.shape[2] for m, t in above.items()} == {m: m.reach for m in net.modules() if isinstance(m, ShiftedConv2d)}
    close(above[net.v], x[:, :, -net.v.reach:])
    x.zero_()
    assert above[net.v].abs().sum() > 0
    assert all(t.untyped_storage().nbytes() == t.nbytes for t in above.values())

def test_odd_strips_are_refused_where_a_stride_follows():
    net, x = Streams().double(), randn(2, 2, 12, 6)
    with pytest.raises(ValueError, match='strips must be multiples of 2 rows for this stride, got 3 rows'): in_strips(nn.Sequential(net.v, net.low), x, 3)

def hooks(net): return sum(len(m._forward_pre_hooks) for m in net.modules())

def test_hooks_are_gone_afterwards_even_after_an_error():
    net, x = Streams().double(), randn(2, 2, 12, 6)
    with RowCache(net): assert hooks(net) == 5
    assert hooks(net) == 0
    with pytest.raises(RuntimeError):
        with RowCache(net) as memory:
            net(x); memory.commit()
            net(randn(2, 9, 12, 6))
    assert hooks(net) == 0
    close(in_strips(net, x, 12), net(x))  # and a new memory begins at the top

def test_foreign_hooks_stay():
    net, calls = Streams().double(), []
    net.h.register_forward_pre_hook(lambda *_: calls.append(1))
    in_strips(net, randn(2, 2, 12, 6), 6)
    assert hooks(net) == 1 and len(calls) == 2

# ---- fold_weight_norm

def model(dropout=.5): return nn.Sequential(MaskedConv2d(2, 4, 3, 'A'), GatedResidual(4, right, dropout=dropout), ShiftedConv2d(4, 4, stride=2), ShiftedConvTranspose2d(4, 2)).double()

def test_a_folded_network_gives_the_same_and_is_plain():
    net, x = model(), randn(2, 2, 8, 8)
    flat = fold_weight_norm(net)
    close(flat(x), net.eval()(x))
    assert not flat(x).requires_grad and not any(p.requires_grad for p in flat.parameters())
    assert not any(isinstance(m, WeightNorm) or m.training for m in flat.modules())
    assert sum(isinstance(m, WeightNorm) for m in net.modules()) == 4
    for name, m in net.named_modules():
        if isinstance(m, WeightNorm):
            assert type(flat.get_submodule(name)) is (nn.ConvTranspose2d if isinstance(m, nn.ConvTranspose2d) else nn.Conv2d)
            assert set(flat.get_submodule(name).state_dict()) == {'weight', 'bias'}

def test_folding_leaves_the_original_as_it_was():
    net, calls = model().train(), []
    net[2].conv.bias.requires_grad_(False)
    net[2].conv.register_forward_hook(lambda *_: calls.append(1))
    state, x = copy.deepcopy(net.state_dict()), randn(2, 2, 8, 8)
    trains = {name: p.requires_grad for name, p in net.named_parameters()}
    flat = fold_weight_norm(net)
    with torch.no_grad():
        for p in flat.parameters(): p.fill_(7)
    assert all(m.training for m in net.modules())
    assert {name: p.requires_grad for name, p in net.named_parameters()} == trains and not trains['2.conv.bias']
    assert net.state_dict().keys() == state.keys() and all(torch.equal(a, state[k]) for k, a in net.state_dict().items())
    flat(x); assert len(calls) == 1  # the copy has the hook too
    flat[2].conv._forward_hooks.clear(); net(x).square().sum().backward()
    assert len(calls) == 2
    assert all((p.grad is not None) == p.requires_grad for p in net.parameters())
    before = fold_weight_norm(net)
    torch.optim.SGD([p for p in net.parameters() if p.requires_grad], .1).step()
    assert not torch.allclose(net[2].conv.weight, before[2].conv.weight)
    close(fold_weight_norm(net)(x), net.eval()(x))

def test_folding_gives_ordinary_memory_whatever_the_original_has():
    net = model()[1:]
    flat, other = fold_weight_norm(net), fold_weight_norm(net.to(memory_format=torch.channels_last))
    assert not net[1].conv.weight_v.is_contiguous()
    for a, b in zip(flat.parameters(), other.parameters(), strict=True): assert b.is_contiguous() and torch.equal(a, b)

def test_folding_twice_is_folding_once():
    net, x = model(), randn(2, 2, 8, 8)
    close(fold_weight_norm(fold_weight_norm(net))(x), fold_weight_norm(net)(x))

@pytest.mark.parametrize('dtype', (torch.float32, torch.bfloat16, torch.float64, None))
def test_dtype(dtype):
    net = model()
    assert {p.dtype for p in fold_weight_norm(net, dtype).parameters()} == {dtype or torch.float64}
    assert {p.dtype for p in net.parameters()} == {torch.float64} and net[0].mask.dtype == torch.float64

@pytest.mark.parametrize('make', (lambda: nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)), lambda: nn.ELU(), lambda: nn.Sequential(), lambda: nn.Conv2d(2, 3, 3, bias=False),
    lambda: WeightNormConv2d(2, 3, 3, bias=False), lambda: WeightNormConv2d(2, 3, 3), lambda: WeightNormConvTranspose2d(2, 3, 3, bias=False)),
    ids=('no weight norm', 'no parameters', 'empty', 'no bias', 'weight norm, no bias', 'the model itself', 'transposed'))
def test_models_of_all_kinds(make):
    net, x = make().double().eval(), randn(2, 2, 5, 5)
    flat = fold_weight_norm(net, torch.float64)
    close(flat(x), net(x))
    assert flat is not net and type(flat) in type(net).__mro__ and not any(p.requires_grad for p in flat.parameters())

def test_a_layer_used_twice_is_still_one():
    layer = ShiftedConv2d(2, 2)
    flat = fold_weight_norm(nn.Sequential(layer, nn.ELU(), layer))
    assert flat[0] is flat[2] and flat[0].conv is flat[2].conv
