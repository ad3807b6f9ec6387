"Causality by Jacobian in float64 for every layer, gradients, initialisation, MADE masks, faults"
import copy
import json
import re
from functools import partial
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import nn
from safetensors.torch import load_file, save_file
from torch.nn.utils.parametrizations import weight_norm
from torch.optim.swa_utils import AveragedModel
from torch.testing import assert_close
from distsmooth.registry import plain as in_plain_form
from distsmooth.blocks import GatedResidual, concat_elu, data_dependent_init, pointwise
from distsmooth.made import MaskedLinear, made_masks
from distsmooth.masked import MaskedConv2d, ShiftedConv2d, ShiftedConvTranspose2d, WeightNormConv2d, WeightNormConvTranspose2d, causal_mask, shift_padding
from distsmooth.pipeline import SmoothedModel

SIZES = [(4, 4), (6, 4), (4, 8)]
DIRECTIONS = ['down', 'right']

@pytest.fixture(autouse=True)
def _seed(): torch.manual_seed(0)

def jacobian(net, c, size):
    "(P, H', W', C, H, W) of absolute gradients, and a check that no image of a batch sees another"
    net = copy.deepcopy(net).double().eval()
    x = torch.randn(2, c, *size, dtype=torch.float64)
    j = torch.autograd.functional.jacobian(net, x, vectorize=True).abs()
    assert not j[0, :, :, :, 1].any() and not j[1, :, :, :, 0].any()
    return (j[0, :, :, :, 0] + j[1, :, :, :, 1])

def sees(net, c, size):
    "Boolean (H', W', H, W): which input pixels reach which output pixels, by any channel"
    return jacobian(net, c, size).amax((0, 3)) > 0

def window(size, rows, cols, stride=1):
    "Boolean (H', W', H, W): true where the input lies at an offset in `rows` and `cols` of stride times the output"
    h, w = size
    i, j = torch.arange(0, h, stride), torch.arange(0, w, stride)
    dr, dc = torch.arange(h) - i[:, None], torch.arange(w) - j[:, None]
    row, col = (dr >= rows[0]) & (dr <= rows[1]), (dc >= cols[0]) & (dc <= cols[1])
    return row[:, None, :, None] & col[None, :, None, :]

def raster_past(size, own=False):
    "Boolean (H, W, H, W): true where the input comes before the output in raster order"
    h, w = size
    return torch.ones(h*w, h*w).tril(0 if own else -1).bool().view(h, w, h, w)

def reach(kernel, direction, shift):
    (kh, kw), s = kernel, int(shift)
    if direction == 'down': return (-kh+1-s, -s), (-(kw//2), kw//2)
    return (-kh+1, 0), (-kw+1-s, -s)

# masked convolutions

@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('k', [1, 3, 5])
@pytest.mark.parametrize('kind', ['A', 'B'])
def test_masked_conv_sees_exactly_its_past(size, k, kind):
    m = k//2
    inside = window(size, (-m, m), (-m, m))
    assert torch.equal(sees(MaskedConv2d(2, 3, k, kind), 2, size), inside & raster_past(size, own=kind == 'B'))

@pytest.mark.parametrize('kind', ['A', 'B'])
@pytest.mark.parametrize('n_in,n_out,colours', [(3, 3, 3), (6, 9, 3), (2, 4, 2), (4, 4, 1)])
def test_masked_conv_orders_its_colours(kind, n_in, n_out, colours):
    j = jacobian(MaskedConv2d(n_in, n_out, 3, kind, colours), n_in, (3, 4))
    own, left, right = (j[:, 1, 1, :, 1, c] > 0 for c in (1, 0, 2))
    c_in, c_out = torch.arange(n_in)//(n_in//colours), torch.arange(n_out)//(n_out//colours)
    assert torch.equal(own, c_in < c_out[:, None] if kind == 'A' else c_in <= c_out[:, None])
    assert left.all() and not right.any()

def test_colour_stack_green_sees_red_and_red_not_green():
    net = nn.Sequential(MaskedConv2d(3, 6, 3, 'A', 3), nn.ELU(), MaskedConv2d(6, 6, 3, 'B', 3), nn.ELU(), MaskedConv2d(6, 3, 1, 'B', 3))
    j = jacobian(net, 3, (4, 4)) > 0
    order = j.permute(1, 2, 0, 4, 5, 3).reshape(48, 48)  # pixels in raster order, colours inside
    assert not order.triu().any()
    assert order[1::3, ::3].diagonal().all() and order[2::3, 1::3].diagonal().all()

def test_mask_survives_training_and_is_not_saved():
    conv = MaskedConv2d(1, 4, 3, 'A')
    for _ in range(3):
        conv.zero_grad(); conv(torch.randn(3, 1, 5, 5)).square().mean().backward()
        with torch.no_grad():
            for p in conv.parameters(): p -= .5*(p.grad + .1*p)
    assert not (sees(conv, 1, (5, 5)) & ~raster_past((5, 5))).any()
    assert not conv.weight.grad[:, :, 1, 1:].any() and conv.weight.grad[:, :, 0].all()
    assert set(conv.state_dict()) == {'weight', 'bias'}

def test_a_leaky_mask_is_caught():
    conv = MaskedConv2d(1, 4, 3, 'A')
    conv.mask[:, :, 1, 2] = 1
    assert (sees(conv, 1, (4, 4)) & ~raster_past((4, 4))).any()

def test_masked_stack_has_a_blind_spot_and_two_streams_have_none():
    size, depth, n = (5, 7), 8, 4
    layers = [MaskedConv2d(1, n, 3, 'A')]
    for _ in range(depth): layers += [nn.ELU(), MaskedConv2d(n, n, 3, 'B')]
    seen = sees(nn.Sequential(*layers), 1, size)
    assert not (seen & ~raster_past(size)).any()
    h, w = size
    for i, j in ((4, 2), (3, 0), (2, 6)):
        expected = torch.tensor([[(r < i and c <= j + i - r) or (r == i and c < j) for c in range(w)] for r in range(h)])
        assert torch.equal(seen[i, j], expected)
    assert torch.equal(sees(TwoStreams(depth, n), 1, size), raster_past(size))

class TwoStreams(nn.Module):
    def __init__(self, depth, n):
        super().__init__()
        self.first = nn.ModuleList([ShiftedConv2d(1, n, d, k, shift=True) for d, k in (('down', (2, 3)), ('down', (1, 3)), ('right', (2, 1)))])
        self.v, self.h = (nn.ModuleList(ShiftedConv2d(n, n, d) for _ in range(depth)) for d in DIRECTIONS)
    def forward(self, x):
        v, h = self.first[0](x), self.first[1](x) + self.first[2](x)
        for down, right in zip(self.v, self.h):
            v = down(F.elu(v))
            h = right(F.elu(h)) + v
        return h

# shifted convolutions

KERNELS = [('down', (2, 3)), ('down', (1, 3)), ('down', (3, 5)), ('down', (1, 1)), ('right', (2, 2)), ('right', (2, 1)), ('right', (1, 3)), ('right', (3, 2))]

@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('direction,kernel', KERNELS)
@pytest.mark.parametrize('shift,stride', [(False, 1), (True, 1), (False, 2)])
def test_shifted_conv_sees_exactly_its_window(size, direction, kernel, shift, stride):
    layer = ShiftedConv2d(2, 3, direction, kernel, stride, shift)
    seen = sees(layer, 2, size)
    assert seen.shape == (size[0]//stride, size[1]//stride, *size)
    assert torch.equal(seen, window(size, *reach(kernel, direction, shift), stride))

@pytest.mark.parametrize('direction,kernel', [('down', (2, 3)), ('right', (2, 2))])
def test_default_kernels_are_the_published_ones(direction, kernel):
    assert ShiftedConv2d(1, 1, direction).conv.kernel_size == kernel == ShiftedConvTranspose2d(1, 1, direction).conv.kernel_size

@settings(max_examples=25, deadline=None)
@given(direction=st.sampled_from(DIRECTIONS), kh=st.integers(1, 4), half=st.integers(0, 2), even=st.booleans(), shift=st.booleans(), stride=st.integers(1, 2))
def test_shifted_equals_a_centred_masked_convolution(direction, kh, half, even, shift, stride):
    if shift: stride = 1
    kw = 2*half+1 if direction == 'down' else half+1+even
    layer = ShiftedConv2d(2, 3, direction, (kh, kw), stride, shift).double()
    (top, _), (left, _) = reach((kh, kw), direction, shift)
    full = torch.zeros(3, 2, 11, 11, dtype=torch.float64)  # centred on entry (5, 5)
    full[:, :, 5+top:5+top+kh, 5+left:5+left+kw] = layer.conv.weight
    x = torch.randn(2, 2, 6, 8, dtype=torch.float64)
    bias = layer.conv.bias.detach()[:, None, None].expand_as(layer(x)[0]).clone()
    if shift: bias[(slice(None), 0) if direction == 'down' else (..., 0)] = 0  # what a shift brings in is zero, not the bias
    assert_close(layer(x), F.conv2d(x, full, None, stride, padding=5) + bias)

@pytest.mark.parametrize('direction', DIRECTIONS)
@pytest.mark.parametrize('size', [(2, 2), (3, 4), (1, 3)])
def test_transposed_sees_exactly_its_window(direction, size):
    seen = sees(ShiftedConvTranspose2d(2, 3, direction), 2, size)
    h, w = size
    assert seen.shape == (2*h, 2*w, h, w)
    for i in range(2*h):
        for j in range(2*w):
            cols = {j//2} if direction == 'right' or j % 2 == 0 else {j//2, j//2+1}
            expected = {(i//2, c) for c in cols if c < w}
            assert set(map(tuple, seen[i, j].nonzero().tolist())) == expected

@pytest.mark.parametrize('direction,left', [('down', 1), ('right', 0)])
def test_transposed_equals_the_published_cut(direction, left):
    layer = ShiftedConvTranspose2d(3, 2, direction).double()
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    large = F.conv_transpose2d(x, layer.conv.weight, layer.conv.bias, stride=2, output_padding=1)
    assert_close(layer(x), large[:, :, :10, left:left+8])

def hourglass(direction, n=3, levels=1):
    net = [ShiftedConv2d(1, n, direction, shift=True)]
    for _ in range(levels): net += [nn.ELU(), ShiftedConv2d(n, n, direction, stride=2)]
    for _ in range(levels): net += [nn.ELU(), ShiftedConvTranspose2d(n, n, direction)]
    return nn.Sequential(*net)

@pytest.mark.parametrize('size,levels', [((4, 4), 1), ((8, 4), 1), ((6, 8), 1), ((8, 8), 2), ((12, 8), 2)])
def test_down_and_up_again_is_causal(size, levels):
    for d in DIRECTIONS:
        net, at = hourglass(d, levels=levels), size
        expected = torch.eye(size[0]*size[1], dtype=torch.float64)
        for layer in net:  # what each layer sees, one after the other
            if isinstance(layer, nn.ELU): continue
            seen = sees(layer, layer.conv.in_channels, at)
            expected, at = seen.flatten(2).flatten(0, 1).double() @ expected, seen.shape[:2]
        seen = sees(net, 1, size)
        assert torch.equal(seen, (expected > 0).view(*size, *size))
        own = seen.any(3).any(1) if d == 'down' else seen.any(2).any(0)  # row sees row, or column sees column
        assert own.any() and not own.triu().any()
        if d == 'right': assert not (seen & ~raster_past(size)).any()

def test_an_ordinary_strided_layer_leaks():
    net = nn.Sequential(ShiftedConv2d(1, 3, 'right', shift=True), nn.Conv2d(3, 3, 3, 2, padding=1), ShiftedConvTranspose2d(3, 3, 'right'))
    assert (sees(net, 1, (4, 4)) & ~raster_past((4, 4))).any()

@pytest.mark.parametrize('make', [
    lambda: ShiftedConv2d(2, 3), lambda: ShiftedConv2d(2, 3, 'right', shift=True), lambda: ShiftedConv2d(2, 3, 'right', stride=2),
    lambda: ShiftedConvTranspose2d(2, 3), lambda: ShiftedConvTranspose2d(2, 3, 'right'), lambda: pointwise(2, 3), lambda: MaskedConv2d(2, 3, 3, 'A')])
def test_every_parameter_of_a_layer_gets_a_gradient(make):
    layer = make()
    layer(torch.randn(3, 2, 6, 6)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in layer.parameters())

def test_pointwise_looks_at_no_neighbour():
    seen = sees(pointwise(2, 3), 2, (3, 4)).reshape(12, 12)
    assert torch.equal(seen, torch.eye(12).bool())

# weight norm

OLD = dict(weight_g='parametrizations.weight.original0', weight_v='parametrizations.weight.original1')
KINDS = [(WeightNormConv2d, nn.Conv2d, dict(stride=2, padding=1)), (WeightNormConvTranspose2d, nn.ConvTranspose2d, dict(stride=2, padding=(0, 1), output_padding=(0, 1)))]
both_kinds = pytest.mark.parametrize('ours,theirs,kw', KINDS, ids=('conv', 'transposed'))

def twins(ours, theirs, kw, n_in=3, n_out=4, seed=0):
    "Our layer, and PyTorch's with weight norm, from one seed"
    made = []
    for make in (ours, lambda *a, **k: weight_norm(theirs(*a, **k))):
        torch.manual_seed(seed)
        made.append(make(n_in, n_out, (2, 3), **kw))
    return made

def under_old_names(state):
    return {re.sub(r'^sigma_embedding', 'level', re.sub(r'[^.]+$', lambda last: OLD.get(last[0], last[0]), k)): v for k, v in state.items()}

def test_weight_norm_names_are_stable():
    "Checkpoints depend on these names, and an optimizer's on their order"
    for layer in (ShiftedConv2d(1, 2), ShiftedConvTranspose2d(1, 2)):
        assert list(layer.state_dict()) == [k for k, _ in layer.named_parameters()] == ['conv.bias', 'conv.weight_g', 'conv.weight_v']

@both_kinds
@pytest.mark.parametrize('bias', [True, False])
def test_weight_norm_begins_as_pytorchs_and_computes_the_same(ours, theirs, kw, bias):
    a, b = twins(ours, theirs, dict(kw, bias=bias))
    for p, q in zip(a.parameters(), b.parameters(), strict=True): assert torch.equal(p, q)
    a, b, x = a.double(), b.double(), torch.randn(2, 3, 6, 5, dtype=torch.float64)
    with torch.no_grad():
        for p, q in zip(a.parameters(), b.parameters()): q.copy_(p.mul_(1 + torch.rand_like(p)))
    assert_close(a(x), b(x), rtol=0, atol=1e-12)
    grads = [torch.autograd.grad(layer(x).square().sum(), [*layer.parameters()]) for layer in (a, b)]
    assert_close(*grads, rtol=1e-12, atol=1e-12)
    assert isinstance(a, theirs) and a.weight.shape == b.weight.shape and a.stride == b.stride and a.kernel_size == (2, 3)
    assert (a.bias is None) == (not bias) and 'stride=(2, 2)' in repr(a)

@both_kinds
def test_lengths_are_those_along_dimension_0(ours, theirs, kw):
    layer = ours(3, 4, (2, 3), **kw).double()
    with torch.no_grad(): layer.weight_g.copy_(torch.arange(1., 1 + len(layer.weight_g)).view(-1, 1, 1, 1)), layer.weight_v.mul_(7)
    assert len(layer.weight_g) == (4 if ours is WeightNormConv2d else 3)
    assert_close(layer.weight.flatten(1).norm(dim=1), layer.weight_g.flatten())

def test_the_weight_does_not_depend_on_the_memory_format():
    layer = WeightNormConv2d(8, 6, (2, 3))
    before = layer.weight.detach().clone()
    assert torch.equal(layer.to(memory_format=torch.channels_last).weight, before) and not layer.weight_v.is_contiguous()

@both_kinds
def test_layers_of_a_kind_are_of_one_class(ours, theirs, kw):
    "what a compiler needs in order to share a graph between them; PyTorch's weight norm makes a class for each"
    (a, b), (c, d) = twins(ours, theirs, kw), twins(ours, theirs, kw)
    assert type(a) is type(c) is ours and type(b) is not type(d)

@both_kinds
def test_files_with_the_names_of_pytorch_are_read(ours, theirs, kw):
    a, b = twins(ours, theirs, kw)
    _, other = twins(ours, theirs, kw, seed=1)
    x = torch.randn(2, 3, 6, 5)
    state = other.state_dict()
    assert set(state) == {'bias', *OLD.values()} and not torch.allclose(a(x), other(x))
    a.load_state_dict(state)
    assert_close(a(x), other(x))
    assert set(state) == {'bias', *OLD.values()}  # what was handed in is not changed
    net, wrapped = nn.Sequential(nn.ELU(), nn.Sequential(a)), nn.Sequential(nn.ELU(), nn.Sequential(b))
    net.load_state_dict(wrapped.state_dict())
    assert_close(net(x), wrapped(x))

def test_files_of_neither_name_are_refused():
    layer = ShiftedConv2d(2, 3)
    old = under_old_names(layer.state_dict())
    with pytest.raises(RuntimeError, match='Missing.*conv.weight_g'): layer.load_state_dict({k: v for k, v in old.items() if 'original0' not in k})
    with pytest.raises(RuntimeError, match='Unexpected.*original2'): layer.load_state_dict(old | {'conv.parametrizations.weight.original2': torch.ones(1)})
    with pytest.raises(RuntimeError, match='size mismatch for conv.weight_v'): layer.load_state_dict(under_old_names(ShiftedConv2d(3, 3).state_dict()))
    ordinary = nn.Sequential(nn.Conv2d(2, 3, 1))
    with pytest.raises(RuntimeError, match='Missing'): ordinary.load_state_dict({'0.bias': torch.ones(3), '0.parametrizations.weight.original0': torch.ones(3, 1, 1, 1)})

def adam(net, x, steps, opt=None):
    opt = opt or torch.optim.Adam(net.parameters(), .01)
    for _ in range(steps):
        opt.zero_grad(); net(x).square().mean().backward(); opt.step()
    return opt

def test_a_run_of_the_old_layers_goes_on():
    "weights, their average, and the optimizer's moments"
    ours, theirs = (nn.Sequential(*pair).double() for pair in zip(twins(*KINDS[0]), twins(*KINDS[1], n_in=4)))
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    opt, ema = adam(theirs, x, 3), AveragedModel(theirs)
    ema.update_parameters(theirs)
    ours.load_state_dict(theirs.state_dict())
    ours_ema, ours_opt = AveragedModel(ours), torch.optim.Adam(ours.parameters(), .01)
    adam(ours, x, 1, torch.optim.SGD(ours.parameters(), .5)); ours.load_state_dict(theirs.state_dict())
    ours_ema.load_state_dict(ema.state_dict()); ours_opt.load_state_dict(copy.deepcopy(opt.state_dict()))
    adam(theirs, x, 3, opt); adam(ours, x, 3, ours_opt)
    assert_close(ours(x), theirs(x), rtol=0, atol=1e-10)
    assert_close(ours_ema(x), ema(x))
    for p, q in zip(ours.parameters(), theirs.parameters()): assert_close(p, q, rtol=0, atol=1e-10)

def test_files_of_the_old_names_load_and_new_files_have_the_new_ones(tmp_path):
    model = SmoothedModel.from_pretrained('digits')
    model.save_pretrained(tmp_path)
    for part in ('smooth', 'reverse'):
        file = tmp_path/part/'model.safetensors'
        new = load_file(file)
        assert any(k.endswith('.weight_g') for k in new) and not any('parametrizations' in k for k in new)
        assert new.keys() != under_old_names(new).keys()
        save_file(under_old_names(new), file)
    config = json.loads((tmp_path/'config.json').read_text())
    del config['sha256']  # not told by version 0.1
    (tmp_path/'config.json').write_text(json.dumps(config))
    again = SmoothedModel.from_pretrained(tmp_path)
    for p, q in zip(model.parameters(), again.parameters(), strict=True): assert torch.equal(p, q)

@pytest.mark.parametrize('make', [partial(ShiftedConv2d, 3, 3), partial(ShiftedConv2d, 3, 3, 'right', stride=2), partial(ShiftedConvTranspose2d, 3, 3), partial(pointwise, 3, 3)])
@in_plain_form()
def test_weight_norm_under_function_transforms(make):
    "derivatives forwards and backwards, in the image and in the parameters, one by one and in a batch"
    layer = make().double()
    params = {k: p.detach() for k, p in layer.named_parameters()}
    x, d = torch.randn(2, 4, 3, 4, 4, dtype=torch.float64)
    dp = {k: torch.randn_like(p) for k, p in params.items()}
    f = lambda p, x: torch.func.functional_call(layer, p, (x,)).square().sum()
    gp, gx = torch.func.grad(f, (0, 1))(params, x)
    slope = sum((gp[k]*dp[k]).sum() for k in gp) + (gx*d).sum()
    assert_close(torch.func.jvp(f, (params, x), (dp, d))[1], slope)
    each = torch.func.vmap(torch.func.grad(lambda x: f(params, x[None])))(x)
    assert_close(each, gx)

# concat-ELU and the gated block

def test_concat_elu():
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    out = concat_elu(x)
    assert_close(out[:, :3], torch.where(x > 0, x, x.exp() - 1))
    assert_close(out[:, 3:], concat_elu(-x)[:, :3])

SIDES = dict(skip=(4, 5, 6), context=(3, 5, 6), cond=(5,))

def sides(names, batch=2, dtype=torch.float64):
    return {k: torch.randn(batch, *SIDES[k], dtype=dtype) for k in names}

def block(direction, names, dropout=0.5, n=3):
    return GatedResidual(n, partial(ShiftedConv2d, direction=direction), dropout=dropout, **{f'n_{k}': SIDES[k][0] for k in names})

ALL = ('skip', 'context', 'cond')

@pytest.mark.parametrize('direction', DIRECTIONS)
@pytest.mark.parametrize('names', [(), ('skip',), ('context',), ('cond',), ALL])
def test_gated_block_is_causal_in_all_its_inputs(direction, names):
    size, b = (5, 6), block(direction, names).double().eval()
    given = sides(names)
    (kh, kw), d = {'down': (2, 3), 'right': (2, 2)}[direction], direction == 'down'
    once = (-kh+1, 0), (-(kw//2), kw//2) if d else (-kw+1, 0)
    twice = tuple(tuple(2*r for r in pair) for pair in once)
    assert torch.equal(sees(lambda_module(b, 'x', given), 3, size), window(size, *twice))
    for k in set(names) - {'cond'}: assert torch.equal(sees(lambda_module(b, k, given), SIDES[k][0], size), window(size, *once))

class lambda_module(nn.Module):
    "`block` as a function of the input `name`"
    def __init__(self, block, name, given):
        super().__init__()
        self.block, self.name, self.given = block, name, {'x': torch.randn(2, 3, 5, 6, dtype=torch.float64), **given}
    def forward(self, t): return self.block(**{**self.given, self.name: t})

def test_cond_moves_every_channel_and_its_own_image_only():
    b = block('right', ('cond',)).double().eval()
    x, c = torch.randn(2, 3, 5, 6, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    j = torch.autograd.functional.jacobian(lambda c: b(x, cond=c), c)
    assert (j[0, ..., 0, :] != 0).all() and (j[1, ..., 1, :] != 0).all() and not j[0, ..., 1, :].any() and not j[1, ..., 0, :].any()

@pytest.mark.parametrize('direction', DIRECTIONS)
@pytest.mark.parametrize('names', [(), ALL])
def test_every_parameter_of_the_block_gets_a_gradient(direction, names):
    b = block(direction, names).double()
    b(torch.randn(2, 3, 5, 6, dtype=torch.float64), **sides(names)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in b.parameters())

def test_gated_block_equals_its_formula():
    b = block('down', ALL, dropout=0.).double()
    x, s = torch.randn(2, 3, 5, 6, dtype=torch.float64), sides(ALL)
    act = lambda t: torch.cat([F.elu(t), F.elu(-t)], 1)
    h = b.conv_in(act(x)) + b.skip(act(s['skip'])) + b.context(s['context'])
    h = b.conv_out(act(h)) + (s['cond'] @ b.cond.weight.T + b.cond.bias)[..., None, None]
    assert_close(b(x, **s), x + h[:, :3]*torch.sigmoid(h[:, 3:]))

def test_a_closed_gate_gives_the_identity():
    b = block('down', ()).eval()
    with torch.no_grad(): b.conv_out.conv.bias[3:] = -1e4
    x = torch.randn(2, 3, 5, 6)
    assert torch.equal(b(x), x)

def test_dropout_drops_elements_not_channels():
    b, kept = block('down', (), dropout=.5, n=8).train(), []
    b.conv_out.register_forward_pre_hook(lambda m, args: kept.append(args[0] != 0))
    b(torch.randn(2, 8, 16, 16))
    share = kept[0].double().mean((2, 3))
    assert ((share > .3) & (share < .7)).all()

@pytest.mark.parametrize('name', ALL)
def test_a_missing_or_useless_side_input_is_an_error(name):
    x, value = torch.randn(2, 3, 5, 6), sides((name,), dtype=torch.float32)
    with pytest.raises(ValueError, match=f'{name} must be given.*n_{name}'): block('down', (name,))(x)
    with pytest.raises(ValueError, match=f'{name} must be None.*n_{name}=0'): block('down', ())(x, **value)

# data-dependent initialisation

class Net(nn.Module):
    "Strided, transposed, gated, plain and masked layers, with and without a bias"
    def __init__(self, n=6, direction='right', dropout=0.):
        super().__init__()
        gated = lambda **kw: GatedResidual(n, partial(ShiftedConv2d, direction=direction), dropout=dropout, **kw)
        self.first, self.masked, self.plain = ShiftedConv2d(1, n, direction, shift=True), MaskedConv2d(n, n, 3, 'B'), nn.Conv2d(n, n, 1)
        self.a, self.b = gated(), gated(n_skip=n, n_context=2)
        self.shrink, self.grow = ShiftedConv2d(n, n, direction, stride=2), ShiftedConvTranspose2d(n, n, direction)
        self.out = pointwise(n, 3)
    def forward(self, x, context):
        h = self.a(self.plain(self.masked(self.first(x))))
        return self.out(F.elu(self.b(self.grow(self.shrink(h)), skip=h, context=context)))

CONVS = nn.Conv2d, nn.ConvTranspose2d

def outputs(net, *args):
    found = {}
    hooks = [m.register_forward_hook(lambda m, i, o, name=name: found.update({name: o.detach()})) for name, m in net.named_modules() if isinstance(m, CONVS)]
    with torch.no_grad(): result = net(*args)
    for h in hooks: h.remove()
    return found, result

@pytest.mark.parametrize('direction', DIRECTIONS)
@pytest.mark.parametrize('scale', [1., .3])
def test_init_standardises_every_layer(direction, scale):
    net, batch = Net(direction=direction).double(), (torch.randn(4, 1, 8, 8, dtype=torch.float64), torch.randn(4, 2, 8, 8, dtype=torch.float64))
    names = list(net.state_dict())
    before = outputs(net, *batch)[0]
    assert data_dependent_init(net, *batch, scale=scale) is net
    after, _ = outputs(net, *batch)
    assert list(net.state_dict()) == names and len(after) == 12 and 'grow.conv' in after
    assert max((o.std((0, 2, 3)) - scale).abs().max() for o in before.values()) > .1
    for o in after.values():
        assert_close(o.mean((0, 2, 3)), torch.zeros(o.shape[1], dtype=o.dtype), atol=1e-8, rtol=0)
        assert_close(o.std((0, 2, 3)), torch.full((o.shape[1],), scale, dtype=o.dtype), atol=1e-8, rtol=0)

def test_init_takes_keywords_and_leaves_no_hooks():
    net = Net()
    data_dependent_init(net, torch.randn(4, 1, 8, 8), context=torch.randn(4, 2, 8, 8))
    assert not any(m._forward_hooks for m in net.modules())
    net(torch.randn(4, 1, 8, 8), torch.randn(4, 2, 8, 8)).square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())

def test_gate_scale_is_for_the_second_convolutions_alone():
    net, batch = Net(), (torch.randn(4, 1, 8, 8), torch.randn(4, 2, 8, 8))
    after, _ = outputs(data_dependent_init(net, *batch, gate_scale=.1), *batch)
    for name, o in after.items():
        assert_close(o.std((0, 2, 3)), torch.full((o.shape[1],), .1 if 'conv_out' in name else 1.), atol=1e-4, rtol=0)

def test_init_sets_lengths_and_directions_in_place():
    "whoever holds the parameters keeps them; the direction is as long as the length says, as PyTorch's own would be"
    net, batch = Net(), (torch.randn(4, 1, 8, 8), torch.randn(4, 2, 8, 8))
    held = dict(net.named_parameters())
    data_dependent_init(net, *batch)
    assert all(held[k] is p for k, p in net.named_parameters())
    for m in net.modules():
        if hasattr(m, 'weight_v'): assert_close(m.weight_v.flatten(1).norm(dim=1), m.weight_g.flatten())

def test_init_keeps_masks_closed_and_handles_no_bias():
    net = nn.Sequential(MaskedConv2d(1, 4, 3, 'A'), nn.ConvTranspose2d(4, 2, 2, 2, bias=False)).double()
    x = torch.randn(8, 1, 6, 6, dtype=torch.float64)
    data_dependent_init(net, x)
    assert_close(net(x).std((0, 2, 3)), torch.ones(2, dtype=x.dtype))
    assert not (sees(net[0], 1, (4, 4)) & ~raster_past((4, 4))).any()

def test_init_errors():
    net = nn.Sequential(nn.Conv2d(1, 2, 3))
    with pytest.raises(ValueError, match='the batch must vary'): data_dependent_init(net, torch.zeros(4, 1, 5, 5))
    with pytest.raises(ValueError, match='^scale must be a number above 0, got -1'): data_dependent_init(net, torch.randn(4, 1, 5, 5), scale=-1)
    assert not net[0]._forward_hooks

# MADE

def made(n_inputs, n_hidden):
    layers = [f for m in made_masks(n_inputs, n_hidden) for f in (MaskedLinear(m), nn.SiLU())]
    return nn.Sequential(*layers[:-1]).double()

@settings(max_examples=30, deadline=None)
@given(d=st.integers(1, 7), extra=st.lists(st.integers(0, 9), min_size=1, max_size=3))
def test_made_output_sees_exactly_the_inputs_before_it(d, extra):
    net = made(d, [d+e for e in extra])
    j = torch.autograd.functional.jacobian(net, torch.randn(2, d, dtype=torch.float64))
    assert torch.equal(j[0, :, 0] != 0, torch.ones(d, d).tril(-1).bool())
    assert not j[0, :, 1].any() and not j[1, :, 0].any()

@settings(max_examples=30, deadline=None)
@given(d=st.integers(2, 12), widths=st.lists(st.integers(1, 12), min_size=1, max_size=3))
def test_narrow_made_never_leaks(d, widths):
    j = torch.autograd.functional.jacobian(made(d, widths), torch.randn(d, dtype=torch.float64))
    assert not j.triu().any()

def test_narrow_made_spreads_its_orders():
    "The last output sees most of the inputs even if the layers are narrow"
    j = torch.autograd.functional.jacobian(made(64, (16, 16)), torch.randn(64, dtype=torch.float64))
    assert (j[-1] != 0).sum() == 60

@pytest.mark.parametrize('d,widths', [(2, (8, 8)), (5, (5,)), (6, (13, 6)), (6, (3, 3))])
def test_units_of_order_zero_carry_a_context_to_the_first_output(d, widths):
    masks = made_masks(d, widths)
    assert [tuple(m.shape) for m in masks] == list(zip([*widths, d], [d, *widths]))
    assert (masks[0].sum(1) == 0).any()
    paths = masks[1]
    for m in masks[2:]: paths = m @ paths
    assert (paths[0, masks[0].sum(1) == 0] > 0).any() and not paths[0, masks[0].sum(1) > 0].any()

def test_masked_linear():
    layer = MaskedLinear(torch.tensor([[1, 0], [1, 1], [0, 0]])).double()
    x = torch.randn(4, 2, dtype=torch.float64)
    w = layer.weight.detach()
    assert_close(layer(x), torch.stack([w[0, 0]*x[:, 0], w[1, 0]*x[:, 0] + w[1, 1]*x[:, 1], 0*x[:, 0]], 1) + layer.bias)
    layer(x).square().sum().backward()
    assert torch.equal(layer.weight.grad != 0, layer.mask.bool())
    assert set(layer.state_dict()) == {'weight', 'bias'}

# faults

@pytest.mark.parametrize('call,match', [
    (lambda: MaskedConv2d(1, 2, 3, 'a'), r"kind must be one of \['A', 'B'\], got 'a'"),
    (lambda: MaskedConv2d(1, 2, 2, 'A'), 'kernel_size must be odd and positive, got 2'),
    (lambda: MaskedConv2d(1, 2, -1, 'A'), 'kernel_size must be a whole number of at least 1, got -1'),
    (lambda: causal_mask(4, 6, 3, 'A', 3), 'n_in and n_out must be multiples of colours=3, got 4 and 6'),
    (lambda: causal_mask(4, 6, 3, 'A', 0), 'colours must be a whole number of at least 1, got 0'),
    (lambda: ShiftedConv2d(1, 2, 'up'), r"direction must be one of \['down', 'right'\], got 'up'"),
    (lambda: ShiftedConv2d(1, 2, 'up', (2, 2)), r"direction must be one of \['down', 'right'\], got 'up'"),
    (lambda: ShiftedConv2d(1, 2, 'down', (2, 2)), r"odd width for 'down', got \(2, 2\)"),
    (lambda: shift_padding((0, 3)), 'kernel must be a whole number of at least 1, got 0'),
    (lambda: ShiftedConv2d(1, 2, stride=0), 'stride must be a whole number of at least 1, got 0'),
    (lambda: ShiftedConv2d(1, 2, stride=2, shift=True), '1 for a layer with shift, got 2'),
    (lambda: ShiftedConvTranspose2d(1, 2, 'Down'), r"direction must be one of \['down', 'right'\], got 'Down'"),
    (lambda: MaskedLinear(torch.ones(2)), r'mask must be \(n_out, n_in\), got \(2,\)'),
    (lambda: MaskedLinear(torch.full((2, 2), .5)), r'mask must hold 0 and 1 only, got \[0.5\]'),
    (lambda: made_masks(0, (4,)), 'n_inputs must be a whole number of at least 1, got 0'),
    (lambda: made_masks(3, 4), 'n_hidden must list the units of hidden layers, got 4'),
    (lambda: made_masks(3, ()), 'n_hidden must list'),
    (lambda: made_masks(3, (4, 0)), 'n_hidden must be a whole number of at least 1, got 0'),
])
def test_bad_arguments_are_named(call, match):
    with pytest.raises(ValueError, match=match): call()
