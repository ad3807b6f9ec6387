"""The functions between the convolutions against PyTorch's own: values and derivatives of any kind, in every layout and type; coins that are fair."""
import ctypes
import math
from functools import partial
from itertools import product
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch.autograd import forward_ad
from torch.testing import assert_close
from distsmooth.engine import fused
from distsmooth.engine.fused import keep_memory
from distsmooth.registry import plain
from distsmooth.blocks import Dropout, GatedResidual, concat_elu, gated
from distsmooth.masked import ShiftedConv2d, padded
from distsmooth.pixelcnn import PixelCNNpp

SHAPE = 3, 4, 5, 6
FUNCTIONS = {  # a function, and how many channels each input has for one of the first
    'concat_elu': (concat_elu, (1,)),
    'concat_elu of images': (partial(concat_elu, dim=0), (1,)),
    'concat_elu from the end': (partial(concat_elu, dim=-3), (1,)),
    'concat_elu of images from the end': (partial(concat_elu, dim=-4), (1,)),
    'concat_elu of columns': (partial(concat_elu, dim=-1), (1,)),
    'gated': (gated, (1, 2)),
    'down': (partial(padded, left=1, right=1, top=1), (1,)),
    'right': (partial(padded, left=1, right=0, top=1), (1,)),
    'no frame': (partial(padded, left=0, right=0, top=0), (1,)),
}
LAYOUTS = {
    'contiguous': lambda t: t,
    'channels_last': lambda t: t.to(memory_format=torch.channels_last),
    'sliced': lambda t: torch.cat([t, t, t], 3)[..., ::3][..., :t.shape[3]] if not t.numel() else t.repeat_interleave(2, 3)[..., ::2],
    'rows of a larger one': lambda t: torch.cat([t, t], 2).to(memory_format=torch.channels_last)[:, :, :t.shape[2]],
    'turned': lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
}
TOLERANCE = {torch.float64: dict(rtol=1e-13, atol=1e-14), torch.float32: dict(rtol=2e-6, atol=2e-7), torch.bfloat16: dict(rtol=2**-6, atol=2**-8)}  # of sums near 0 the rounding of their terms is left
names = pytest.mark.parametrize('name', FUNCTIONS)

def seeded(seed=0): return torch.Generator().manual_seed(seed)

def inputs_of(name, shape=SHAPE, dtype=torch.float64, layout='contiguous', grad=True, seed=0):
    B, C, H, W = shape
    make = lambda k: LAYOUTS[layout](torch.randn(B, k*C, H, W, generator=seeded(seed + k), dtype=torch.float64).to(dtype))
    return [make(k).requires_grad_(grad) for k in FUNCTIONS[name][1]]

def both(work):
    "What `work()` gives, here and in the plain form"
    here = work()
    with plain(): return here, work()

def close(here, there):
    for a, b in zip(here, there, strict=True): assert_close(a, b, **TOLERANCE[b.dtype])

@pytest.fixture(params=[None, 7], ids=['whole', 'in pieces'])
def pieces(request, monkeypatch):
    if request.param: monkeypatch.setattr(fused, 'PIECE', request.param)

# values and derivatives
@names
@pytest.mark.parametrize('layout', LAYOUTS)
def test_values_and_slopes(name, layout, pieces):
    f, _ = FUNCTIONS[name]
    for shape, dtype in product((SHAPE, (0, 4, 5, 6), (1, 1, 1, 1)), TOLERANCE):
        def work():
            xs = inputs_of(name, shape, dtype, layout)
            out = f(*xs)
            g = torch.randn(out.shape, generator=seeded(9), dtype=torch.float64).to(dtype)
            return out, *torch.autograd.grad(out, xs, g)
        here, there = both(work)
        close(here, there)
        if layout == 'channels_last' and shape == SHAPE: assert here[0].is_contiguous(memory_format=torch.channels_last)

@names
def test_with_and_without_a_gradient(name, pieces):
    f, _ = FUNCTIONS[name]
    free, bound = f(*inputs_of(name, grad=False)), f(*inputs_of(name))
    assert torch.equal(free, bound) and bound.requires_grad and not free.requires_grad
    with torch.no_grad(): assert torch.equal(f(*inputs_of(name)), free) and not f(*inputs_of(name)).requires_grad

def test_a_gate_of_which_one_side_has_a_gradient():
    for i in (0, 1):
        xs = inputs_of('gated', grad=False)
        xs[i].requires_grad_()
        here, there = both(lambda: torch.autograd.grad(gated(*xs).sum(), xs[i])[0])
        assert_close(here, there)

@names
@pytest.mark.parametrize('layout', ['contiguous', 'channels_last', 'sliced'])
def test_second_derivatives(name, layout, pieces):
    f, _ = FUNCTIONS[name]
    curved = lambda *xs: f(*xs)**2
    xs = inputs_of(name, (2, 2, 3, 2), layout=layout)
    assert torch.autograd.gradcheck(f, xs) and torch.autograd.gradgradcheck(f, xs) and torch.autograd.gradgradcheck(curved, xs)
    def hessian():
        first = torch.autograd.grad(curved(*xs).sin().sum(), xs, create_graph=True)
        return torch.autograd.grad(sum((g*g).sum() for g in first), xs)
    close(*both(hessian))

@names
def test_a_batch_of_gradients(name):
    "`is_grads_batched` maps the way back alone over its first axis"
    f, _ = FUNCTIONS[name]
    xs = inputs_of(name)
    gs = torch.randn(4, *f(*xs).shape, generator=seeded(3), dtype=torch.float64)
    here, there = both(lambda: torch.autograd.grad(f(*xs), xs, gs, is_grads_batched=True))
    close(here, there)
    one_by_one = [torch.autograd.grad(f(*xs), xs, g) for g in gs]
    for i, g in enumerate(here): assert_close(g, torch.stack([gs[i] for gs in one_by_one]))

@names
def test_torch_func_sees_through(name):
    f, _ = FUNCTIONS[name]
    xs = tuple(inputs_of(name, (2, 2, 3, 2), grad=False))
    which = tuple(range(len(xs)))
    total = lambda *xs: f(*xs).sin().sum()
    by_hand = torch.autograd.grad(total(*(needs := [x.clone().requires_grad_() for x in xs])), needs)
    close(torch.func.grad(total, which)(*xs), by_hand)
    value, slope = torch.func.jvp(total, xs, xs)
    assert_close(value, total(*xs)); assert_close(slope, sum((g*x).sum() for g, x in zip(by_hand, xs)))
    many = tuple(torch.stack([x, 2*x, -x]) for x in xs)
    assert_close(torch.func.vmap(f)(*many), torch.stack([f(*(m[i] for m in many)) for i in range(3)]))
    each = torch.func.vmap(torch.func.grad(total, which))(*many)
    close([e[0] for e in each], by_hand)
    forward, reverse = torch.func.jacfwd(f)(*xs), torch.func.jacrev(f)(*xs)
    assert_close(forward, reverse)
    assert_close(torch.func.hessian(total)(*xs), torch.autograd.functional.hessian(lambda x: total(x, *xs[1:]), xs[0]))

@names
def test_forward_mode(name):
    f, _ = FUNCTIONS[name]
    for i, x in enumerate(xs := inputs_of(name)):
        with forward_ad.dual_level():
            dual = [forward_ad.make_dual(x, torch.ones_like(x)) if i == j else x for j, x in enumerate(xs)]
            tangent = forward_ad.unpack_dual(f(*dual)).tangent
        slope = torch.autograd.grad((f(*xs)*(v := torch.randn(tangent.shape, generator=seeded(), dtype=x.dtype))).sum(), x)[0].sum()
        assert_close((tangent*v).sum(), slope)
    assert 'ConcatELU' in concat_elu(xs[0]).grad_fn.name()     # afterwards, and outside, the quick form again

def test_a_network_can_be_differentiated_in_every_way():
    torch.manual_seed(0)
    net = PixelCNNpp(size=4, n_filters=2, n_resnet=1, n_mix=1).double().eval()
    x = torch.rand(2, 1, 4, 4, dtype=torch.float64)*2 - 1
    log_p = lambda x: net.log_prob(x).sum()
    needs = x.clone().requires_grad_()
    slope, = torch.autograd.grad(log_p(needs), needs, create_graph=True)
    twice, = torch.autograd.grad((slope*x).sum(), needs)                                     # the Hessian times x
    assert_close(torch.func.grad(log_p)(x), slope)
    assert_close(torch.func.jvp(log_p, (x,), (x,))[1], (slope*x).sum())
    assert_close(torch.func.jvp(torch.func.grad(log_p), (x,), (x,))[1], twice)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(log_p(forward_ad.make_dual(needs, x))).tangent
    assert_close(tangent, (slope*x).sum())

def test_a_gradient_for_each_image():
    torch.manual_seed(0)
    block = GatedResidual(2, partial(ShiftedConv2d, direction='down'), n_skip=2, dropout=.5).double().eval()
    weights, x, skip = dict(block.named_parameters()), *torch.randn(2, 3, 2, 4, 4, dtype=torch.float64)
    loss = lambda w, x, skip: torch.func.functional_call(block, w, (x[None], skip[None])).square().sum()
    each = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(weights, x, skip)
    for i in range(3): close(torch.autograd.grad(loss(weights, x[i], skip[i]), weights.values()), [g[i] for g in each.values()])
    block.train()
    each = torch.func.vmap(torch.func.grad(loss), (None, 0, 0), randomness='different')(weights, x, skip)
    assert all(g.isfinite().all() for g in each.values())

@names
@pytest.mark.parametrize('dtypes', [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.bfloat16, torch.bfloat16)], ids=str)
def test_under_autocast(name, dtypes):
    "Inputs of several types meet there; the result has the type of the plain form, and each gradient that of its input"
    f, _ = FUNCTIONS[name]
    def work():
        xs = [x.detach().to(d).requires_grad_() for x, d in zip(inputs_of(name, dtype=torch.float32), dtypes)]
        with torch.autocast('cpu', torch.bfloat16): out = f(*xs)
        return out, *torch.autograd.grad(out.sum(), xs)
    here, there = both(work)
    for a, b in zip(here, there): assert_close(a, b, rtol=2**-6, atol=2**-8)

@settings(max_examples=30, deadline=None)
@given(st.tuples(st.integers(0, 4), st.integers(1, 5), st.integers(1, 6), st.integers(1, 6)), st.sampled_from(list(LAYOUTS)), st.sampled_from(list(FUNCTIONS)),
       st.integers(1, 40), st.integers(0, 99))
def test_any_shape_in_any_pieces(shape, layout, name, piece, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, 'PIECE', piece)
        f, _ = FUNCTIONS[name]
        def work():
            xs = inputs_of(name, shape, torch.float64, layout, seed=seed)
            out = f(*xs)
            return out, *torch.autograd.grad(out.square().sum(), xs)
        close(*both(work))

# concat-ELU: near 0, far out, and no number
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_sixteen_bits_keep_what_is_close_to_0(dtype):
    x = torch.cat([s*torch.logspace(-7, 2, 200, dtype=torch.float64) for s in (-1, 1)])[:, None].to(dtype)
    exact = concat_elu(x.double())
    near = concat_elu(x).double()
    close_enough = torch.finfo(dtype).eps*exact.abs() + torch.finfo(dtype).smallest_normal*torch.finfo(dtype).eps
    assert ((near - exact).abs() <= close_enough).all()

def test_float32_is_exp_minus_1_to_the_bit():
    "The values that earlier versions computed"
    x = torch.randn(50, 40, generator=seeded())
    t = torch.exp(-x.abs()) - 1
    assert torch.equal(concat_elu(x), torch.cat([torch.maximum(x, t), torch.maximum(-x, t)], 1))

@pytest.mark.parametrize('dtype', TOLERANCE, ids=str)
def test_extremes(dtype):
    x = torch.tensor([0., -0., math.inf, -math.inf, math.nan, 200., -200.], dtype=dtype)[:, None].requires_grad_()
    for here, there in zip(*both(lambda: (out := concat_elu(x), *torch.autograd.grad(out.nan_to_num(0, 0, 0).sum(), x)))):
        assert_close(here, there, equal_nan=True)

# dropout
SHARES = 0, 1e-4, 1/512, .1, .5, .9, .999, 1
WIDE = 16, 8, 40, 40

def dropped_share(p): return 0 if p == 0 else 1 if p == 1 else round(2**16*p)/2**16

@pytest.mark.parametrize('p', SHARES)
@pytest.mark.parametrize('layout', ['contiguous', 'channels_last', 'sliced'])
@pytest.mark.parametrize('dtype', [*TOLERANCE, torch.float16], ids=str)
def test_share_scale_and_the_way_back(p, layout, dtype):
    torch.manual_seed(0)
    x = LAYOUTS[layout]((1 + torch.rand(WIDE, dtype=torch.float64)).to(dtype)).requires_grad_()
    y = Dropout(p)(x)
    kept, n, q = y != 0, x.numel(), dropped_share(p)
    assert abs(q - p) <= 2**-17 and abs((~kept).sum().item() - n*q) <= 5*math.sqrt(n*q*(1-q))
    scale = 1/(1-q) if q < 1 else 0
    assert y.dtype == dtype and torch.equal(y, x.detach()*kept*1.*scale)
    g = (1 + torch.rand(WIDE, dtype=torch.float64)).to(dtype)
    assert torch.equal(torch.autograd.grad(y, x, g)[0], g*kept*1.*scale)

@pytest.mark.parametrize('p', [1e-9, 1 - 1e-9])
def test_the_smallest_shares_are_not_turned_around(p):
    torch.manual_seed(0)
    y = Dropout(p)(torch.ones(WIDE))
    assert (y == 1).all() if p < .5 else (y != 0).float().mean() < 1e-3

@pytest.mark.parametrize('shape', [(0, 3, 4, 4), (1,), (), (3, 0), (5, 7), (2, 3, 4, 5, 6)], ids=str)
def test_dropout_of_any_shape(shape):
    x = torch.ones(shape, requires_grad=True)
    y = Dropout(.5)(x)
    assert y.shape == shape and ((y == 0) | (y == 2)).all()
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], y.detach())

def test_coins_are_independent():
    "Four come from one throw: neighbours must not know of each other"
    torch.manual_seed(0)
    for p in (.5, .9):
        kept = (Dropout(p)(torch.ones(2**18)) != 0).double()
        z = (kept - (1-p))/math.sqrt(p*(1-p))
        for lag in (1, 2, 3, 4, 8): assert abs((z[lag:]*z[:-lag]).mean()) < 5/math.sqrt(len(z))
        for place in range(4): assert abs(z[place::4].mean()) < 5/math.sqrt(len(z)/4)

def test_dropout_of_a_seed():
    drop, x = Dropout(.5), torch.ones(4, 4, 8, 8)
    def of(seed): torch.manual_seed(seed); return drop(x)
    assert torch.equal(of(1), of(1)) and not torch.equal(of(1), of(2))
    torch.manual_seed(1)
    assert not torch.equal(drop(x), drop(x))

def test_dropout_has_every_derivative():
    def same(t): torch.manual_seed(0); return Dropout(.3)(t)
    x = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(same, x) and torch.autograd.gradgradcheck(lambda t: same(t)**3, x)
    gs = torch.randn(3, *x.shape, dtype=torch.float64)
    out = same(x)
    batched = torch.autograd.grad(out, x, gs, is_grads_batched=True, retain_graph=True)[0]
    assert_close(batched, torch.stack([torch.autograd.grad(out, x, g, retain_graph=True)[0] for g in gs]))
    y, slope = torch.func.jvp(Dropout(.3), (x.detach(),), (x.detach(),))
    assert_close(y, slope)                                                                 # linear
    many = torch.func.vmap(Dropout(.5), randomness='different')(torch.ones(3, 50))
    assert set(many.unique().tolist()) == {0., 2.} and not torch.equal(many[0], many[1])

def test_dropout_that_drops_nothing():
    x = torch.ones(3, 4)
    assert Dropout(.5).eval()(x) is x and torch.equal(Dropout(0)(x), x)
    assert Dropout(.5, inplace=True)(x) is x and ((x == 0) | (x == 2)).all()

# the plain form
def test_plain_is_pytorchs_own_and_ends_with_its_context():
    x = inputs_of('concat_elu')[0]
    with plain():
        with plain(): pass
        assert 'Elu' in concat_elu(x).grad_fn.name() and 'Pad' in padded(x, 1, 1, 1).grad_fn.name() and 'Padded' not in padded(x, 1, 1, 1).grad_fn.name()
        torch.manual_seed(0); here = Dropout(.5)(x)
        torch.manual_seed(0); assert torch.equal(here, F.dropout(x, .5))
    with pytest.raises(KeyError), plain(): raise KeyError
    assert 'ConcatELU' in concat_elu(x).grad_fn.name()

def test_memory_is_kept_where_the_system_has_the_switch():
    assert keep_memory() is hasattr(ctypes.CDLL(None), 'mallopt')
