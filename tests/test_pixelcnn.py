"PixelCNN++ as a whole: causality, shortcuts, conditions, faults, and equality with a second implementation written from the paper"
import copy, json, math
import pytest, torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from safetensors.torch import save_file
from torch import nn
from torch.func import grad, jacrev, jvp, vmap
from torch.testing import assert_close
from distsmooth.logistic import quantize
from distsmooth.blocks import ContextEncoder, SigmaEmbedding, data_dependent_init
from distsmooth.pixelcnn import Pair, PixelCNNpp, Streams
from distsmooth.autoregressive import METHODS
from distsmooth.conditional import StackedPixelCNNpp
from distsmooth.masked import WeightNormConv2d
from distsmooth.registry import plain

torch.set_num_threads(1)
f64 = torch.float64

def build(channels=1, size=8, n_filters=4, n_resnet=1, n_mix=1, seed=0, **kw):
    torch.manual_seed(seed)
    return PixelCNNpp(channels, size, n_filters, n_resnet, n_mix, **kw).to(f64).eval()

def noise(*shape, seed=1): return torch.randn(*shape, dtype=f64, generator=torch.Generator().manual_seed(seed))

def jacobian(f, x):
    "(H*W out, H*W in): the derivative of a random mix of each output pixel's parameters, largest over channels; one image"
    w = noise(1, f(x).shape[1], 1, 1, seed=7)
    J = torch.autograd.functional.jacobian(lambda x: (f(x)*w).sum((0, 1)), x, vectorize=True)
    return J.abs().amax((2, 3)).flatten(2).flatten(0, 1)

def before(n): return torch.ones(n, n).tril(-1).bool()

# causality: zero where it must be zero, non-zero where it must not

CONDITIONS = {'plain': ({}, {}), 'context': (dict(context_channels=2), dict(context=noise(1, 2, 8, 8, seed=2))),
              'label': (dict(n_classes=3), dict(label=torch.tensor([2]))),
              'both': (dict(context_channels=1, n_classes=3), dict(context=noise(1, 1, 8, 8, seed=2), label=torch.tensor([0])))}

@pytest.mark.parametrize('channels', (1, 3))
@pytest.mark.parametrize('condition', CONDITIONS)
def test_each_output_sees_all_pixels_before_it_and_no_other(channels, condition):
    config, inputs = CONDITIONS[condition]
    model = build(channels, n_resnet=2, **config)
    J = jacobian(lambda x: model(x, **inputs), noise(1, channels, 8, 8))
    assert torch.equal(J > 0, before(64))

@pytest.mark.parametrize('size', ((4, 12), (12, 4), (8, 4), (4, 4)))
def test_causal_for_oblong_images(size):
    n = size[0]*size[1]
    model = build(size=size, n_resnet=3)
    assert torch.equal(jacobian(model, noise(1, 1, *size)) > 0, before(n))

def test_causal_after_training_steps_and_in_train_mode():
    model = build(dropout=.5).train()
    x = noise(2, 1, 8, 8)
    opt = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(3): opt.zero_grad(); (-model.log_prob(x).mean()).backward(); opt.step()
    def f(x):
        torch.manual_seed(0)
        return model(x)
    J = jacobian(f, noise(1, 1, 8, 8))
    assert not (J > 0)[~before(64)].any() and (J > 0)[before(64)].any()

@pytest.mark.parametrize('n_resnet', (1, 2))
def test_reach_along_an_odd_row_is_4n_plus_2(n_resnet):
    model = build(size=(4, 16), n_resnet=n_resnet)
    x = noise(1, 1, 4, 16).requires_grad_()
    g, = torch.autograd.grad(model(x)[0, :, 3, 15].sum(), x)
    assert (g[0, 0, 3] != 0).tolist() == [15 - (4*n_resnet + 2) <= j < 15 for j in range(16)]

def test_images_of_a_batch_do_not_see_each_other():
    model = build(context_channels=1, n_classes=3)
    x, c, label = noise(3, 1, 8, 8), noise(3, 1, 8, 8, seed=2), torch.tensor([0, 1, 2])
    together = model(x, c, label)
    for i in range(3): assert_close(model(x[i:i+1], c[i:i+1], label[i:i+1]), together[i:i+1])
    J = torch.autograd.functional.jacobian(lambda x: model(x, c, label).sum((1, 2, 3)), x, vectorize=True)
    assert torch.equal(J.abs().amax((2, 3, 4)) > 0, torch.eye(3).bool())

def test_colours_are_coupled_in_the_head_alone():
    model = build(3, n_resnet=2, n_mix=2)
    x = noise(1, 3, 8, 8)/3
    J = torch.autograd.functional.jacobian(lambda x: model(x)[0, :, 4, 4], x, vectorize=True)[:, 0]     # (P, C, H, W)
    assert (J[..., 4, 4] == 0).all() and (J[..., 4, 3] != 0).any(0).all()                 # no colour of its own, every colour of its neighbour
    cdf = lambda x: model.mixture(model(x)).cdf(x)[0, :, 4, 4]
    C = torch.autograd.functional.jacobian(cdf, x)[:, 0, :, 4, 4]                       # (channel, colour it depends on)
    assert torch.equal(C != 0, torch.ones(3, 3).tril().bool())                          # green sees red; red doesn't see green

@torch.no_grad()
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), pixel=st.integers(0, 63), channels=st.sampled_from((1, 3)), context=st.booleans())
def test_moving_one_pixel_moves_no_earlier_output(seed, pixel, channels, context):
    model = build(channels, seed=seed, n_mix=2, context_channels=channels*context)
    x, c = noise(1, channels, 8, 8, seed=seed), noise(1, channels, 8, 8, seed=seed+1) if context else None
    y = x.clone()
    y[0, :, pixel//8, pixel % 8] += 1.
    moved = (model(x, c) != model(y, c)).any(1).flatten()
    assert not moved[:pixel+1].any() and (pixel == 63 or moved[pixel+1:].any())

def test_a_leak_is_found():
    "the probes above can fail"
    model = build(n_resnet=2)
    model.down[2].horizontal[2].conv_out = WeightNormConv2d(8, 8, 3, padding=1).to(f64)
    assert (jacobian(model, noise(1, 1, 8, 8)) > 0)[~before(64)].any()

# a second implementation, written out from the published description: shift by adding and cutting rows and columns, two separate stacks

def by_the_paper(sd, x, n, context=None, cond=None):
    "PixelCNN++ as a function of the state dict `sd`"
    def weight(name):
        g, v = sd[f'{name}.weight_g'], sd[f'{name}.weight_v']
        return g*v/v.square().sum((1, 2, 3), keepdim=True).sqrt(), sd[f'{name}.bias']
    def celu(x): return torch.cat([F.elu(x), F.elu(-x)], 1)
    def down(name, x, stride=1):
        w, b = weight(name)
        kh, kw = w.shape[2:]
        x = torch.cat([x.new_zeros(*x.shape[:2], kh-1, x.shape[3]), x], 2)
        return F.conv2d(x, w, b, stride, padding=(0, kw//2))[:, :, :(x.shape[2]-kh)//stride + 1]
    def right(name, x, stride=1):
        w, b = weight(name)
        kh, kw = w.shape[2:]
        x = torch.cat([x.new_zeros(*x.shape[:2], kh-1, x.shape[3]), x], 2)
        x = torch.cat([x.new_zeros(*x.shape[:3], kw-1), x], 3)
        return F.conv2d(x, w, b, stride)
    def shift_down(x): return torch.cat([torch.zeros_like(x[:, :, :1]), x[:, :, :-1]], 2)
    def shift_right(x): return torch.cat([torch.zeros_like(x[..., :1]), x[..., :-1]], 3)
    def scatter(name, x, left):
        w, b = weight(name)
        kh, kw = w.shape[2:]
        out = x.new_zeros(len(x), w.shape[1], 2*x.shape[2] + kh, 2*x.shape[3] + kw)
        for i in range(x.shape[2]):
            for j in range(x.shape[3]): out[:, :, 2*i:2*i+kh, 2*j:2*j+kw] += torch.einsum('bi,iokl->bokl', x[:, :, i, j], w)
        return (out + b[:, None, None])[:, :, :2*x.shape[2], left:left + 2*x.shape[3]]
    def block(name, conv, x, *aside, level):
        h = conv(f'{name}.conv_in.conv', celu(x))
        if aside: h = h + F.conv2d(celu(torch.cat(aside, 1)), *weight(f'{name}.skip'))
        if context: h = h + F.conv2d(context[level], *weight(f'{name}.context'))
        h = conv(f'{name}.conv_out.conv', celu(h))
        if cond is not None: h = h + (cond@sd[f'{name}.cond.weight'].T + sd[f'{name}.cond.bias'])[:, :, None, None]
        a, b = h.chunk(2, 1)
        return x + a*b.sigmoid()
    x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    us = [shift_down(down('init.0.conv', x))]
    uls = [shift_down(down('init.1.conv', x)) + shift_right(right('init.2.conv', x))]
    for i in range(3):
        for k in range(n):
            us.append(block(f'up.{i}.vertical.{k}', down, us[-1], level=i))
            uls.append(block(f'up.{i}.horizontal.{k}', right, uls[-1], us[-1], level=i))
        if i < 2:
            us.append(down(f'shrink.{i}.vertical.conv', us[-1], 2))
            uls.append(right(f'shrink.{i}.horizontal.conv', uls[-1], 2))
    u, ul = us.pop(), uls.pop()
    for i, blocks in enumerate((n, n+1, n+1)):
        for k in range(blocks):
            u = block(f'down.{i}.vertical.{k}', down, u, us.pop(), level=2-i)
            ul = block(f'down.{i}.horizontal.{k}', right, ul, u, uls.pop(), level=2-i)
        if i < 2: u, ul = scatter(f'grow.{i}.vertical.conv', u, 1), scatter(f'grow.{i}.horizontal.conv', ul, 0)
    assert not us and not uls
    return F.conv2d(F.elu(ul), *weight('out'))

def sigma_by_hand(sd, low, high, sigma):
    "The vectors of noise levels `sigma` (B,), from the state dict"
    place = [(math.log(s) - math.log(low))/(math.log(high) - math.log(low)) for s in sigma.tolist()]
    code = torch.tensor([[math.cos(math.pi*k*p) for k in range(1, 9)] for p in place], dtype=f64)
    h = code@sd['sigma_embedding.layers.0.weight'].T + sd['sigma_embedding.layers.0.bias']
    return F.elu(h)@sd['sigma_embedding.layers.2.weight'].T + sd['sigma_embedding.layers.2.bias']

@pytest.mark.parametrize('channels,size,n_filters,n_resnet,config', [
    (1, (8, 8), 4, 1, {}), (3, (8, 12), 3, 2, {}), (1, (12, 4), 4, 3, {}), (1, (4, 4), 5, 1, dict(n_mix=3)),
    (3, (8, 8), 4, 2, dict(context_channels=2)), (1, (8, 8), 4, 1, dict(n_classes=4)), (3, (4, 8), 4, 1, dict(sigma_range=(.2, 1.5))), (1, (8, 4), 4, 1, dict(context_channels=1, n_classes=3, sigma_range=(.1, 1.))), (1, (8, 4), 4, 2, dict(context_channels=1, n_classes=2))])
@torch.no_grad()
def test_equals_an_implementation_from_the_paper(channels, size, n_filters, n_resnet, config):
    model = build(channels, size, n_filters, n_resnet, **config)
    for p in model.parameters(): p.add_(.2*noise(*p.shape, seed=p.numel()))     # biases and gains off their defaults
    x = noise(2, channels, *size)
    c = noise(2, model.context_channels, *size, seed=2) if model.context_channels else None
    label = torch.tensor([0, 1]) if model.n_classes else None
    context, cond = model.encoder(c) if c is not None else None, model.label(label) if label is not None else None
    sigma = torch.tensor([.9, .25], dtype=f64) if model.sigma_range else None
    if model.sigma_range: cond = sigma_by_hand(model.state_dict(), *model.sigma_range, sigma) + (0 if cond is None else cond)
    assert_close(model(x, c, label, sigma), by_the_paper(model.state_dict(), x, n_resnet, context, cond), rtol=1e-9, atol=1e-9)

# structure

def test_state_dict_names_are_kept():
    "models that are stored somewhere depend on these names"
    names = lambda model: {k.removesuffix('.weight_g').removesuffix('.conv') for k in model.state_dict() if 'weight_g' in k}
    got = names(build())
    blocks = {f'{way}.{i}.{stream}.{k}' for way, n in (('up', (1, 1, 1)), ('down', (1, 2, 2))) for i in range(3) for stream in ('vertical', 'horizontal') for k in range(n[i])}
    skips = {f'{b}.skip' for b in blocks if not b.startswith('up') or 'horizontal' in b}
    expected = {b + '.conv_in' for b in blocks} | {b + '.conv_out' for b in blocks} | skips | {'init.0', 'init.1', 'init.2', 'out'} | {
        f'{step}.{i}.{stream}' for step in ('shrink', 'grow') for i in range(2) for stream in ('vertical', 'horizontal')}
    assert got == expected
    both = build(context_channels=1, n_classes=2)
    encoder = {'encoder.init', 'encoder.shrink.0', 'encoder.shrink.1'} | {f'encoder.{way}.{i}{part}' for way, n in (('up', 3), ('down', 2)) for i in range(n)
               for part in ('.conv_in', '.conv_out', '.skip')[:2 + (way == 'down')]}
    got = {k.removesuffix('.weight_g').removesuffix('.conv') for k in both.state_dict() if 'weight_g' in k}
    assert got == expected | encoder | {f'{b}.context' for b in blocks}
    assert {'label.weight', 'up.0.vertical.0.cond.weight', 'down.2.horizontal.1.cond.bias'} <= set(both.state_dict())

def test_noise_levels_add_names_and_change_none():
    "what was stored before there were levels still loads"
    parts = ('bias', 'weight_g', 'weight_v')
    bare, told = (set(build(**kw).state_dict()) for kw in ({}, dict(sigma_range=(.1, 1.))))
    layers = {k[:-5] for k in bare if k.endswith('.bias')}
    assert bare == {f'{layer}.{part}' for layer in layers for part in parts} and not any('sigma' in k or 'cond' in k for k in bare)
    blocks = {k[:-len('.conv_in.conv')] for k in layers if k.endswith('.conv_in.conv')}
    assert len(blocks) == 16 and told - bare == {f'{name}.{p}' for name in ('sigma_embedding.layers.0', 'sigma_embedding.layers.2', *(f'{b}.cond' for b in blocks)) for p in ('weight', 'bias')}
    assert bare < told and set(build(n_classes=2, sigma_range=(.1, 1.)).state_dict()) - told == {'label.weight'}
    assert set(build(n_classes=2).state_dict()) - bare == told - bare - {f'sigma_embedding.layers.{i}.{p}' for i in (0, 2) for p in ('weight', 'bias')} | {'label.weight'}

def old_names(state):
    "As version 0.1 wrote them"
    old = {'weight_g': 'parametrizations.weight.original0', 'weight_v': 'parametrizations.weight.original1'}
    def name(k):
        head, _, last = k.replace('sigma_embedding.', 'level.').rpartition('.')
        return f'{head}.{old.get(last, last)}'
    return {name(k): v for k, v in state.items()}

@pytest.mark.parametrize('net', [PixelCNNpp, StackedPixelCNNpp])
def test_weights_under_their_old_names_load(net):
    config = dict(channels=1, size=4, n_filters=4, n_resnet=1, n_mix=1, n_classes=2, sigma_range=(.1, 1.))
    model, other = net(**config).eval(), net(**config).eval()
    old, x = old_names(model.state_dict()), torch.rand(2, 1, 4, 4)
    assert sum('level.layers.' in k for k in old) == 4 and not any('sigma' in k or 'weight_g' in k for k in old) and len(old) == len(model.state_dict())
    cond = dict(label=torch.tensor([0, 1]), sigma=.3) | (dict(context=x) if net is StackedPixelCNNpp else {})
    assert not torch.equal(other(x, **cond), model(x, **cond))
    got = other.load_state_dict(old)
    assert not got.missing_keys and not got.unexpected_keys and torch.equal(other(x, **cond), model(x, **cond))

def test_a_network_that_was_saved_with_sigmas_comes_back(tmp_path):
    model = PixelCNNpp(1, 4, 4, 1, 1, sigma_range=(.1, 1.)).eval()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path/'config.json').read_text())
    config['sigmas'] = config.pop('sigma_range')
    (tmp_path/'config.json').write_text(json.dumps(config))
    save_file(old_names(model.state_dict()), tmp_path/'model.safetensors')
    again, x = PixelCNNpp.from_pretrained(tmp_path), torch.rand(2, 1, 4, 4)
    assert again.sigma_range == (.1, 1.) and torch.equal(again(x, sigma=.2), model(x, sigma=.2))
    assert PixelCNNpp.from_config(config).sigma_range == (.1, 1.)

def by_hand(C, P, f, n):
    conv = lambda n_in, n_out, kernel: n_in*n_out*kernel + 2*n_out
    block = lambda kernel, skip: conv(2*f, f, kernel) + conv(2*f, 2*f, kernel) + (conv(2*skip*f, f, 1) if skip else 0)
    up, down = 3*n*(block(6, 0) + block(4, 1)), (3*n + 2)*(block(6, 1) + block(4, 2))
    return sum(conv(C+1, f, k) for k in (6, 3, 2)) + up + down + 4*(conv(f, f, 6) + conv(f, f, 4)) + conv(f, P, 1)

@pytest.mark.parametrize('channels,size,n_filters', ((1, 28, 40), (3, 32, 160)))
def test_published_configurations(channels, size, n_filters):
    with torch.device('meta'): model = PixelCNNpp(channels, size, n_filters)
    P = {1: 30, 3: 100}[channels]
    assert sum(p.numel() for p in model.parameters()) == by_hand(channels, P, n_filters, 5)
    assert [len(s.vertical) for s in model.up] == [5, 5, 5] and [len(s.horizontal) for s in model.down] == [5, 6, 6]
    if channels == 1: assert model(torch.empty(2, 1, 28, 28, device='meta')).shape == (2, 30, 28, 28)

def test_blocks_use_up_the_stack():
    down = Streams(3, 4, True, dropout=0.).to(f64)
    stack = [(noise(1, 4, 4, 4, seed=i), noise(1, 4, 4, 4, seed=i+9)) for i in range(5)]
    bottom = stack[:2]
    out = list(down(noise(1, 4, 4, 4), noise(1, 4, 4, 4), stack))
    assert len(out) == 3 and len(stack) == 2 and all(a is b for a, b in zip(stack, bottom))

def test_vertical_stream_never_reads_the_horizontal_one():
    streams = Streams(2, 4, False, dropout=0.).to(f64)
    h = noise(1, 4, 4, 4).requires_grad_()
    v, out = list(streams(noise(1, 4, 4, 4), h))[-1]
    assert not v.requires_grad or torch.autograd.grad(v.sum(), h, allow_unused=True)[0] is None
    pair = Pair(nn.Identity(), nn.Flatten())
    assert [t.shape for t in pair(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3))] == [(1, 2, 3), (1, 6)]

# conditions

def test_first_output_sees_the_whole_context_and_none_of_the_image():
    model = build(n_resnet=2, context_channels=2)
    x, c = noise(1, 1, 8, 8).requires_grad_(), noise(1, 2, 8, 8, seed=2).requires_grad_()
    gx, gc = torch.autograd.grad(model(x, c)[:, :, 0, 0].square().sum(), (x, c))
    assert (gx == 0).all() and (gc != 0).all()

def test_encoder_resolutions():
    feats = ContextEncoder(2, 3, n_levels=3)(torch.zeros(2, 2, 8, 12))
    assert [tuple(f.shape) for f in feats] == [(2, 6, 8, 12), (2, 6, 4, 6), (2, 6, 2, 3)]
    assert len(ContextEncoder(1, 3, n_levels=4)(torch.zeros(1, 1, 16, 16))) == 4

@pytest.mark.parametrize('context_channels', [0, 2])
def test_fewer_rows_give_the_same_params(context_channels):
    "What `sample` computes of a row, from the rows down to it alone, is what one full pass says"
    model = PixelCNNpp(1, (12, 8), 4, 1, 2, dropout=0., context_channels=context_channels, n_classes=3).double()
    x, label = torch.randn(2, 1, 12, 8, dtype=torch.float64), torch.tensor([0, 2])
    context = torch.randn(2, 2, 12, 8, dtype=torch.float64) if context_channels else None
    full, encoded = model(x, context, label), model.encode(context, label)
    for row in range(12):
        rows = model.row_multiple*(row//model.row_multiple + 1)
        assert row < rows <= 12
        torch.testing.assert_close(model.params(x[:, :, :rows], encoded)[:, :, row], full[:, :, row])
    drawn = model.sample(context=context, uniforms=model.uniforms(2, torch.Generator().manual_seed(0)), label=label)
    assert drawn.shape == x.shape

def test_labels_in_any_form():
    "Numbers, tensors and lists; one for each image or one for all"
    model, x = build(size=4, n_classes=3), noise(2, 1, 4, 4)
    u = model.uniforms(2, torch.Generator().manual_seed(0))
    for label, forms in (([2, 2], (2, torch.tensor(2), torch.tensor([2]), [2], [2, 2], torch.tensor([2, 2], dtype=torch.uint8))), ([0, 2], ([0, 2], torch.tensor([0, 2], dtype=torch.int32)))):
        want, drawn = model(x, label=torch.tensor(label)), model.sample(uniforms=u, label=torch.tensor(label))
        for form in forms:
            assert_close(model(x, label=form), want, rtol=1e-12, atol=1e-12); assert_close(model.log_prob(x, label=form), model.mixture(want).log_prob(x).flatten(1).sum(1))
            assert_close(model.sample(uniforms=u, label=form), drawn, rtol=0, atol=1e-9)
    assert model.dist(label=2).batch_shape == model.dist(label=torch.tensor(2)).batch_shape == () and model.dist(label=torch.tensor([0, 2])).batch_shape == (2,)
    assert model.dist(label=2).sample().shape == (1, 4, 4) and model.dist(label=torch.tensor([0, 2])).sample().shape == (2, 1, 4, 4)

def test_labels_shift_every_gate():
    model = build(n_classes=3)
    x = noise(1, 1, 8, 8)
    a, b = (model(x, label=torch.tensor([k])) for k in (0, 2))
    assert ((a - b).abs().amax(1) > 0).all()
    gates = [m.cond for m in model.modules() if getattr(m, 'cond', None) is not None]
    assert len(gates) == 2*(3 + 5)
    label = torch.tensor([0, 2])
    u = model.uniforms(2, torch.Generator().manual_seed(0))
    drawn = model.sample(uniforms=u, label=label)
    assert_close(drawn, model.sample(uniforms=u, label=label)); assert (drawn != model.sample(uniforms=u, label=label.flip(0))).any()

@pytest.mark.parametrize('config', ({}, dict(head='discretized'), dict(channels=3), dict(context_channels=1, n_classes=2), dict(sigma_range=(.1, 1.))))
def test_every_parameter_gets_a_gradient(config):
    model = build(**{'n_resnet': 2, 'n_mix': 2, **config}).train()
    x = quantize(noise(4, model.channels, 8, 8)/2)
    cond = dict(context=noise(4, 1, 8, 8, seed=2), label=torch.tensor([0, 1, 0, 1])) if config.get('n_classes') else dict(sigma=torch.tensor([.1, .2, .5, 1.])) if config.get('sigma_range') else {}
    model.log_prob(x, **cond).sum().backward()
    for name, p in model.named_parameters(): assert p.grad is not None and p.grad.abs().sum() > 0 and p.grad.isfinite().all(), name

# likelihood

def silence(model, bias):
    with torch.no_grad():
        model.out.weight_g.zero_()
        model.out.bias.copy_(bias)
    return model

def test_uniform_model_has_8_bits_per_dim():
    levels = torch.linspace(-1, 1, 256, dtype=f64)
    model = silence(build(n_mix=256, head='discretized'), torch.cat([torch.zeros(256), levels, torch.full((256,), -7.)]))
    x = torch.stack([quantize(noise(1, 8, 8)), -torch.ones(1, 8, 8, dtype=f64), levels[::4].reshape(1, 8, 8)])
    assert_close(-model.log_prob(x)/(64*math.log(2)), torch.full((3,), 8., dtype=f64), rtol=0, atol=1e-4)

def test_density_of_a_silenced_model_is_that_of_independent_logistics():
    model = silence(build(), torch.tensor([0., .3, -1.]))
    x = noise(2, 1, 8, 8)
    z = (x - .3)/math.exp(-1)
    assert_close(model.log_prob(x), (-z - 2*F.softplus(-z) + 1).sum((1, 2, 3)))

@pytest.mark.parametrize('config', ({}, dict(head='discretized'), dict(channels=3), dict(context_channels=1)))
def test_log_prob_is_differentiable_in_x(config):
    model = build(**{'n_resnet': 2, 'n_mix': 2, **config})
    cond = dict(context=noise(1, 1, 8, 8, seed=2)) if config.get('context_channels') else {}
    x = quantize((.3*noise(1, model.channels, 8, 8)).clamp(-.9, .9)).requires_grad_()
    g, = torch.autograd.grad(model.log_prob(x, **cond).sum(), x)
    d, eps = noise(*x.shape, seed=5), 1e-6
    with torch.no_grad(): slope = (model.log_prob(x + eps*d, **cond) - model.log_prob(x - eps*d, **cond))/(2*eps)
    assert_close((g*d).sum(), slope[0], rtol=1e-5, atol=1e-6)

@pytest.mark.parametrize('config', ({}, dict(head='discretized'), dict(channels=3, context_channels=1, n_classes=2, sigma_range=(.1, 1.))))
def test_transforms_of_functions(config):
    "`torch.func` goes through the plain network, and agrees with autograd"
    model = build(**{'size': 4, 'n_mix': 2, **config})
    cond = dict(context=noise(3, 1, 4, 4, seed=2), label=1, sigma=.3) if config.get('n_classes') else {}
    x, v = quantize(.3*noise(3, model.channels, 4, 4)), noise(3, model.channels, 4, 4, seed=3)
    score, f = model.dist(**cond).score(x), lambda x: model.log_prob(x, **cond)
    with plain():
        assert_close(grad(lambda x: f(x).sum())(x), score)
        value, slope = jvp(f, (x,), (v,))
        J = jacrev(f)(x)
    assert_close(value, model.log_prob(x, **cond)); assert_close(slope, (score*v).flatten(1).sum(1))
    assert_close(J.diagonal(dim1=0, dim2=1).movedim(-1, 0), score); assert J[0, 1:].abs().max() == 0

@pytest.mark.parametrize('config', ({}, dict(head='discretized'), dict(channels=3, context_channels=1, n_classes=2, sigma_range=(.1, 1.))))
def test_one_image_at_a_time_by_vmap(config):
    "`vmap` over images, and over their conditions, is the batch; so is a gradient for each; a wrong shape is still refused"
    model = build(**{'size': 4, 'n_mix': 2, **config})
    x = quantize(.3*noise(3, model.channels, 4, 4))
    told = bool(config.get('n_classes'))
    cond = (noise(3, 1, 4, 4, seed=2), torch.tensor([0, 1, 1]), torch.tensor([.1, .3, 1.], dtype=torch.float64)) if told else ()
    one = lambda f: lambda x, *cond: f(x[None], *(c[None] for c in cond))
    assert_close(vmap(one(model))(x, *cond)[:, 0], model(x, *cond))
    each = one(lambda x, *cond: model.log_prob(x, *cond).sum())
    assert_close(vmap(each)(x, *cond), model.log_prob(x, *cond))
    assert_close(vmap(grad(each))(x, *cond), model.dist(*cond).score(x))
    if told: assert_close(vmap(lambda x: model.log_prob(x[None], cond[0][:1], 1, .3)[0])(x), model.log_prob(x, cond[0][:1].expand(3, -1, -1, -1), 1, .3))
    with pytest.raises(ValueError, match='x must be'): vmap(lambda x: model.log_prob(x[None, :, :3], *(c[:1] for c in cond)))(x)

def test_score_is_joint():
    "the gradient reaches a pixel through later pixels' conditions as well as through its own term"
    model = build(n_resnet=2, n_mix=2)
    x = noise(1, 1, 8, 8)
    y = x.clone().requires_grad_()
    joint, = torch.autograd.grad(model.log_prob(y).sum(), y)
    z = x.clone().requires_grad_()
    local, = torch.autograd.grad(model.mixture(model(x)).log_prob(z).sum(), z)
    assert_close(joint[0, 0, 7, 7], local[0, 0, 7, 7]); assert (joint - local).abs()[0, 0, 0, 0] > 1e-6

def test_data_dependent_init_standardises_the_whole_net():
    model = data_dependent_init(build(n_filters=6, context_channels=1, dropout=0.), noise(16, 1, 8, 8), noise(16, 1, 8, 8, seed=2))
    params = model(noise(16, 1, 8, 8), noise(16, 1, 8, 8, seed=2))
    assert_close(params.mean((0, 2, 3)), torch.zeros(3, dtype=f64), atol=1e-6, rtol=0)
    assert_close(params.std((0, 2, 3)), torch.ones(3, dtype=f64), atol=1e-2, rtol=0)
    assert torch.equal(jacobian(lambda x: model(x, noise(1, 1, 8, 8, seed=2)), noise(1, 1, 8, 8)).triu() > 0, torch.zeros(64, 64).bool())

def test_learns_one_batch():
    model = build(n_filters=6, n_mix=2, dropout=0.).float()
    x = noise(4, 1, 8, 8).float().clamp(-1, 1)
    data_dependent_init(model, x)
    opt, first = torch.optim.Adam(model.parameters(), 1e-2), None
    for _ in range(25):
        loss = -model.log_prob(x).mean()/model.dims
        first = first if first is not None else loss.item()
        opt.zero_grad(); loss.backward(); opt.step()
    assert loss.item() < first - .3

# modes, copies, files

def test_dropout_in_training_only():
    model, x = build(context_channels=1, dropout=.5), noise(2, 1, 8, 8)
    assert torch.equal(model(x, x), model(x, x))
    model.train()
    assert (model(x, x) != model(x, x)).any()
    still = build(context_channels=1, dropout=0.).train()
    assert torch.equal(still(x, x), still(x, x))
    assert sum(isinstance(m, nn.Dropout) and m.p == .5 for m in model.modules()) == 2*(3 + 5) + 5   # elements, in every block and in the encoder

def test_sampling_leaves_the_mode_alone_and_is_not_dropped_out():
    model = build(size=4, dropout=.5).train()
    u = model.uniforms(2, torch.Generator().manual_seed(0))
    a, b = model.sample(uniforms=u), model.sample(uniforms=u)
    assert torch.equal(a, b) and model.training

@pytest.mark.parametrize('config', (dict(), dict(channels=3, size=(8, 4), head='discretized'), dict(context_channels=1, n_classes=3, dropout=.1), dict(size=4, sigma_range=(.1, 1))))
def test_save_and_load(config, tmp_path):
    torch.manual_seed(0)
    model = PixelCNNpp(**{**dict(size=8, n_filters=4, n_resnet=1, n_mix=2), **config}).eval()
    model.save_pretrained(tmp_path)
    again = PixelCNNpp.from_pretrained(tmp_path)
    assert not again.training and repr(again) == repr(model)
    x = quantize(torch.rand(2, model.channels, *model.size))
    assert again.sigma_range == model.sigma_range and (again.sigma_range is None or type(again.sigma_range) is tuple)
    cond = dict(context=x, label=torch.tensor([0, 2])) if config.get('n_classes') else dict(sigma=.3) if config.get('sigma_range') else {}
    assert torch.equal(again(x, **cond), model(x, **cond)) and torch.equal(again.log_prob(x, **cond), model.log_prob(x, **cond))
    assert torch.equal(copy.deepcopy(model)(x, **cond), model(x, **cond))

def test_repr_informs():
    text = repr(build(size=(8, 12), n_classes=3, sigma_range=(.1, 1)))
    for word in ('sigma_range=(0.1, 1.0)', 'size=(8, 12)', 'n_classes=3', 'head=continuous', 'parameters'): assert word in text

# bad inputs

@pytest.mark.parametrize('config,message', [
    (dict(size=30), 'size must be divisible by 4.*30'), (dict(size=(8, 6)), r'size must be divisible by 4.*\(8, 6\)'), (dict(size=0), 'size must be'),
    (dict(size=(8, 8, 8)), 'size must be'), (dict(channels=2), r'channels must be one of \[1, 3\], got 2'), (dict(head='softmax'), "head must be one of.*'softmax'"),
    (dict(n_resnet=0), 'n_resnet must be a whole number of at least 1, got 0'), (dict(n_filters=-4), 'n_filters must be .* got -4'), (dict(n_filters=4.5), 'n_filters must be .* got 4.5'),
    (dict(n_mix=0), 'n_mix must be .* got 0'), (dict(n_classes=-1), 'n_classes must be .* got -1'), (dict(context_channels=-1), 'context_channels must be .* got -1'),
    (dict(dropout=1.), r'dropout must be a number in \[0, 1\), got 1.0'), (dict(dropout=-.1), 'dropout must be .* got -0.1'), (dict(sigma_range=(1., .1)), r'sigma_range must be \(lowest, highest\)'), (dict(sigma_range=(0, 1.)), 'sigma_range must be a number above 0, got 0'), (dict(sigma_range=()), 'sigma_range must be')])
def test_networks_that_cannot_be_built(config, message):
    with pytest.raises(ValueError, match=message): PixelCNNpp(**{**dict(size=8, n_filters=4, n_resnet=1, n_mix=1), **config})

x8 = torch.zeros(2, 1, 8, 8, dtype=f64)

@pytest.mark.parametrize('call', ('forward', 'log_prob'))
@pytest.mark.parametrize('config,args,message', [
    ({}, dict(x=x8.expand(-1, 3, -1, -1)), r'x must be \(B, 1, 8, 8\), got \(2, 3, 8, 8\)'), ({}, dict(x=x8[:, :, :4]), r'got \(2, 1, 4, 8\)'), ({}, dict(x=x8[0]), r'x must be \(B, 1, 8, 8\), got \(1, 8, 8\)'),
    ({}, dict(x=x8, context=x8), r'context must be None: this model was made with context_channels=0, got \(2, 1, 8, 8\)'), (dict(context_channels=1), dict(x=x8), 'context must be given: this model was made with context_channels=1'),
    (dict(context_channels=1), dict(x=x8, context=x8[:, :, :4]), r'context must be .*got \(2, 1, 4, 8\)'), (dict(context_channels=2), dict(x=x8, context=x8), r'context must be .*got \(2, 1, 8, 8\)'),
    (dict(context_channels=1), dict(x=x8, context=x8[:1]), r'context must be \(2, 1, 8, 8\), got \(1, 1, 8, 8\)'),
    ({}, dict(x=x8, label=torch.tensor([0, 1])), r'label must be None: this model was made with n_classes=0, got \(2,\)'), (dict(n_classes=3), dict(x=x8), 'label must be given: this model was made with n_classes=3'),
    (dict(n_classes=3), dict(x=x8, label=torch.tensor([0, 3])), r'label must be a whole number in \[0, 2\], got 3'), (dict(n_classes=3), dict(x=x8, label=torch.tensor([-1, 0])), r'label must be a whole number in \[0, 2\], got -1'),
    (dict(n_classes=3), dict(x=x8, label=torch.tensor([0, 1, 2])), r'label must be one or \(2,\) of them, got \(3,\)'), (dict(n_classes=3), dict(x=x8, label=torch.tensor([0., 1.])), r'label must be a whole number in \[0, 2\], got 0.0'),
    (dict(n_classes=3), dict(x=x8, label=[[0], [1]]), r'label must be one or \([2B],\) of them, got \(2, 1\)')])
def test_inputs_that_do_not_fit(call, config, args, message):
    with pytest.raises(ValueError, match=message): getattr(build(**config), call)(**args)

@pytest.mark.parametrize('bad,error,message', [
    (x8*math.nan, ValueError, 'x holds NaN'), (x8 + math.inf, ValueError, 'x holds NaN or infinite'), (x8 + 1.01, ValueError, r'x must lie in \[-1, 1\], found 1.01 to 1.01'), (x8.long(), TypeError, 'float tensor')])
def test_values_that_do_not_fit(bad, error, message):
    with pytest.raises(error, match=message): build(head='discretized').log_prob(bad)
    if 'must lie' in message: assert build().log_prob(bad).isfinite().all()      # a density on the whole line takes them

def test_nan_in_the_context_is_refused():
    with pytest.raises(ValueError, match='context holds NaN'): build(context_channels=1).log_prob(x8, x8*math.nan)

# noise levels

LEVELS = dict(sigma_range=(.1, 1.))
def levels(*values): return torch.tensor(values, dtype=f64)

def test_every_level_gives_a_causal_network_of_its_own():
    "a Jacobian for each level of a batch; a level changes every pixel's params, the first one's too"
    model, sigma = build(3, (4, 4), n_resnet=2, context_channels=1, **LEVELS), levels(.1, .13, .45, .999, 1.)
    x, c = noise(1, 3, 4, 4).expand(5, -1, -1, -1), noise(1, 1, 4, 4, seed=2).expand(5, -1, -1, -1)
    f = lambda x: model(x, c, sigma=sigma)
    w = noise(1, f(x).shape[1], 1, 1, seed=7)
    J = torch.autograd.functional.jacobian(lambda x: (f(x)*w).sum(1), x.clone(), vectorize=True)  # (B, H, W, B, C, H, W)
    J = J.abs().amax(4).flatten(1, 2).flatten(3)
    for i in range(5):
        for k in range(5): assert torch.equal(J[i, :, k] > 0, before(16) if i == k else torch.zeros(16, 16).bool())
    out = f(x)
    for i in range(5):
        for k in range(i): assert ((out[i] - out[k]).abs().amax(0) > 1e-7).all()

def test_a_number_is_as_good_as_a_level_for_each_image():
    model = build(size=(4, 8), n_classes=3, **LEVELS)
    x, label, sigma = noise(3, 1, 4, 8), torch.tensor([2, 0, 0]), levels(.15, .4, 1.)
    for f in (model, model.log_prob):
        each = f(x, label=label, sigma=sigma)
        for i, s in enumerate(sigma.tolist()): assert_close(f(x[i:i+1], label=label[i:i+1], sigma=s), each[i:i+1], rtol=1e-12, atol=1e-12)
        for one in (torch.full((3,), .4, dtype=f64), torch.tensor(.4, dtype=f64), torch.tensor([.4], dtype=f64)):
            assert_close(f(x, label=label, sigma=one), f(x, label=label, sigma=.4), rtol=1e-12, atol=1e-12)
        assert (f(x, label=label, sigma=.4)[[0, 2]] != each[[0, 2]]).any(-1).all()
        assert (f(x, label=label.flip(0), sigma=sigma) != each)[[0, 2]].any()        # labels still count
        swapped = f(x[[1, 0, 2]], label=label[[1, 0, 2]], sigma=sigma[[1, 0, 2]])
        assert_close(swapped[[1, 0, 2]], each, rtol=1e-12, atol=1e-12)

def test_a_number_is_as_exact_as_a_float64_tensor():
    "1/3 is not a float32: rounded to one, it gives other params"
    model, x, f32 = build(size=4, **LEVELS), noise(2, 1, 4, 4), build(size=4, **LEVELS).float()
    for s in (1/3, .3, .1):
        assert torch.equal(model(x, sigma=s), model(x, sigma=levels(s)))
        assert_close(model.log_prob(x, sigma=s), model.log_prob(x, sigma=levels(s, s)), rtol=1e-13, atol=1e-13)
        assert torch.equal(model.sample(2, sigma=s, generator=torch.Generator().manual_seed(0)), model.sample(2, sigma=levels(s), generator=torch.Generator().manual_seed(0)))
        assert torch.equal(f32(x.float(), sigma=s), f32(x.float(), sigma=levels(s)))
        if s != .1: assert not torch.equal(model(x, sigma=s), model(x, sigma=levels(s).float()))

def test_two_distributions_of_one_network_share_nothing():
    model, x = build(size=4, n_classes=3, **LEVELS), noise(2, 1, 4, 4)
    label, before = torch.tensor([0, 2]), vars(model).keys()
    a, b = model.dist(label=label, sigma=.2), model.dist_at(levels(.3, .9), label=1)
    first = a.log_prob(x)
    assert torch.equal(b.log_prob(x), model.log_prob(x, label=1, sigma=levels(.3, .9))) and (first != b.log_prob(x)).all()
    assert torch.equal(a.log_prob(x), first) and torch.equal(first, model.log_prob(x, label=label, sigma=.2)) and vars(model).keys() == before
    with pytest.raises(ValueError, match='sigma must be given'): model.log_prob(x, label=1)     # nothing of it is remembered

def test_the_network_is_continuous_in_its_level():
    "finite differences across the whole range, and at both ends, agree with autograd: no steps, no lost digits"
    model, x = build(size=4, **LEVELS), noise(1, 1, 4, 4)
    w = noise(1, 3, 4, 4, seed=3)
    f = lambda s: (model(x.expand(len(s), -1, -1, -1), sigma=s)*w).sum((1, 2, 3))
    s = levels(.1 + 1e-7, .11, .2, .3, .5, .7, .95, 1 - 1e-7).requires_grad_()
    slope, = torch.autograd.grad(f(s).sum(), s)
    with torch.no_grad(): assert_close((f(s*(1 + 2e-7)) - f(s*(1 - 2e-7)))/(4e-7*s), slope, rtol=1e-5, atol=1e-6)
    assert (slope.abs() > 1e-6)[1:-1].all()
    dense = f(torch.logspace(-1, 0, 60, dtype=f64).clamp(.1, 1))
    assert len(dense.unique()) == 60

def test_a_vector_for_a_level():
    layer = SigmaEmbedding((.2, .8), 5).to(f64)
    sd = {f'sigma_embedding.{k}': v for k, v in layer.state_dict().items()}
    s = levels(.2, .21, .4, .7999, .8)
    out = layer(s)
    assert out.shape == (5, 5); assert_close(out, sigma_by_hand(sd, .2, .8, s), rtol=1e-12, atol=1e-12)
    for i, one in enumerate(s): assert_close(layer(one.item()), out[i:i+1], rtol=1e-12, atol=1e-12)
    assert len(layer.layers[0].weight[0]) == 8 and layer.float()(s).dtype == torch.float32
    assert_close(layer(s.float()), out.float(), rtol=1e-4, atol=1e-5)               # single precision may fall a hair outside
    assert SigmaEmbedding((.2, .8), 5, n_cosines=3).layers[0].weight.shape == (5, 3) and 'sigma_range=(0.2, 0.8)' in repr(layer)

def test_other_levels_of_the_range_mean_the_same_place():
    "the code is of the place on a log scale: two ranges of one ratio know the same vectors"
    a, b = build(size=4, sigma_range=(.1, 1.)), build(size=4, sigma_range=(.03, .3))
    x = noise(1, 1, 4, 4)
    assert_close(a(x, sigma=.5), b(x, sigma=.15), rtol=1e-9, atol=1e-9)
    assert (a(x, sigma=.3) - b(x, sigma=.3)).abs().max() > 1e-6

OUTSIDE, NO_LEVEL = r'sigma must lie in \[0.1, 1\], got ', 'sigma must be a number above 0.*got '
@pytest.mark.parametrize('call', ('forward', 'log_prob', *METHODS))
@pytest.mark.parametrize('sigma, message', [
    (None, r'sigma must be given: this model was made with sigma_range=\(0.1, 1.0\)'), (.0999, OUTSIDE + '0.0999'), (1.001, OUTSIDE), (-.3, NO_LEVEL + '-0.3'), (0., NO_LEVEL), (math.nan, NO_LEVEL + 'nan'),
    (math.inf, NO_LEVEL), (levels(.3, 1.1), OUTSIDE + '1.1'), (levels(.05, .3), OUTSIDE + '0.05'), (levels(math.nan, .3), NO_LEVEL + 'nan'), (levels(.3, .4, .5), r'sigma must be one or \(2,\) of them, got \(3,\)'), (levels(), r'sigma must be one or .*, got \(0,\)')], ids=str)
def test_levels_that_do_not_fit(call, sigma, message):
    model = NETS.setdefault('levels', build(size=4, **LEVELS))
    with pytest.raises(ValueError, match=message):
        if call in ('forward', 'log_prob'): getattr(model, call)(x8[:, :, :4, :4], sigma=sigma)
        else: model.sample(2, method=call, sigma=sigma)
NETS = {}

@pytest.mark.parametrize('sigma', (.3, levels(.3, .4)), ids=str)
def test_a_model_of_one_level_is_not_told(sigma):
    model = build(size=4)
    assert model.sigma_range is None and model.dist_at(sigma).conditions == {} and build(size=4, **LEVELS).dist_at(sigma).conditions == dict(sigma=sigma)
    assert torch.equal(model.dist_at(sigma).log_prob(x8[:, :, :4, :4]), model.log_prob(x8[:, :, :4, :4]))
    for f in (lambda: model(x8[:, :, :4, :4], sigma=sigma), lambda: model.log_prob(x8[:, :, :4, :4], sigma=sigma), lambda: model.sample(2, sigma=sigma)):
        with pytest.raises(ValueError, match='sigma must be None: this model was made with sigma_range=None, got (0.3|\\(2,\\))'): f()
