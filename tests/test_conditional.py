"Conditional models: the stacked net and the encoder, through one interface"
import math
import re

import pytest
import torch
from torch.testing import assert_close

from distsmooth.conditional import StackedPixelCNNpp
from distsmooth.logistic import quantize
from distsmooth.pixelcnn import PixelCNNpp

CONFIG = dict(size=8, n_filters=4, n_resnet=1, n_mix=2, dropout=0.)

def make(kind, channels=1, **kw):
    torch.manual_seed(0)
    args = {**CONFIG, 'channels': channels, **kw}
    return (StackedPixelCNNpp(**args) if kind == 'stacked' else PixelCNNpp(**args, context_channels=channels)).double().eval()

def rand(n=2, channels=1, size=(8, 8), seed=0):
    return 0.5*torch.randn(n, channels, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

both = pytest.mark.parametrize('kind', ['stacked', 'encoder'])
colours = pytest.mark.parametrize('channels', [1, 3])

# what sees what

@both
@colours
def test_causality_by_jacobian(kind, channels):
    "Every output sees all of the context; of `x` just the pixels before it; and no other image of the batch"
    net, H, W = make(kind, channels), 8, 8
    x, c = rand(2, channels).requires_grad_(), rand(2, channels, seed=1).requires_grad_()
    out = net(x, c)
    weights = torch.randn(out.shape[1], generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    seen = []
    for i in range(H*W):
        gx, gc = torch.autograd.grad((out[0, :, i//W, i % W]*weights).sum(), (x, c), retain_graph=True)
        assert (gc[0].abs().amax(0) > 0).all(), f'output {i} misses a part of the context'
        assert (gx[1] == 0).all() and (gc[1] == 0).all(), 'images of a batch must not mix'
        flat = gx[0].abs().amax(0).flatten()
        assert (flat[i:] == 0).all(), f'output {i} sees itself or later pixels'
        seen.append(flat > 0)
    seen = torch.stack(seen)
    assert not seen[0].any() and seen[-1].any()
    for i in range(1, H*W):
        if i % W: assert seen[i, i-1], f'output {i} must see its left neighbour'
        if i >= W: assert seen[i, i-W], f'output {i} must see the pixel above'
    if channels == 3:  # every channel of a neighbour counts
        gx, = torch.autograd.grad((out[0, :, 4, 4]*weights).sum(), x)
        assert (gx[0, :, 4, 3] != 0).all()

@both
def test_log_prob_terms_do_not_look_ahead(kind):
    "Changing a pixel changes its own term and later ones, and none before"
    net, x, c = make(kind), rand(1), rand(1, seed=1)
    terms = lambda x: net.mixture(net(x, c)).log_prob(x).flatten()
    other = x.clone(); other[0, 0, 3, 5] += 0.1
    change = (terms(other) - terms(x)).abs()
    assert (change[:29] == 0).all() and change[29] > 0 and (change[30:] > 0).any()

# parameters

@both
@colours
@pytest.mark.parametrize('head', ['continuous', 'discretized'])
def test_every_parameter_gets_a_gradient(kind, channels, head):
    net = make(kind, channels, head=head)
    net.log_prob(quantize(rand(3, channels)), rand(3, channels, seed=1)).sum().backward()
    idle = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not idle

def test_upper_half_is_not_scored():
    net, x, c = make('stacked'), rand(), rand(seed=1)
    out = net.net(torch.cat([c, x], 2))
    grad, = torch.autograd.grad(net.mixture(out[:, :, 8:]).log_prob(x).sum(), out)
    assert (grad[:, :, :8] == 0).all() and (grad[:, :, 8:].abs().amax(1) > 0).all()

@pytest.mark.parametrize('size', [8, (4, 8), (12, 4)])
@colours
def test_stacked_is_the_tall_net_on_the_canvas(size, channels):
    net = make('stacked', channels, size=size)
    assert net.net.size == (2*net.size[0], net.size[1])
    x, c = rand(2, channels, net.size), rand(2, channels, net.size, seed=1)
    tall = net.net(torch.cat([c, x], 2))
    assert_close(net(x, c), tall[:, :, net.size[0]:], rtol=0, atol=0)
    terms = net.net.mixture(tall).log_prob(torch.cat([c, x], 2))
    assert_close(net.log_prob(x, c), terms[:, net.size[0]:].flatten(1).sum(1))

def test_tall_density_splits_into_context_and_image():
    "log p(canvas) = log p(context) + log p(image | context), and the first part knows nothing of the image"
    net, x, c = make('stacked'), rand(), rand(seed=1)
    whole = net.net.log_prob(torch.cat([c, x], 2))
    other = net.net.log_prob(torch.cat([c, x + 0.1], 2))
    assert_close(whole - net.log_prob(x, c), other - net.log_prob(x + 0.1, c))

# one interface

@both
@colours
@pytest.mark.parametrize('head', ['continuous', 'discretized'])
def test_one_interface(kind, channels, head):
    net = make(kind, channels, head=head, size=4)
    assert (net.channels, net.size, net.context_channels, net.head) == (channels, (4, 4), channels, head)
    x, c = quantize(rand(3, channels, (4, 4))), rand(3, channels, (4, 4), seed=1)
    assert net(x, c).shape == (3, net.n_out, 4, 4)
    assert net.log_prob(x, c).shape == (3,)
    sample = net.sample(context=c)
    assert sample.shape == x.shape and torch.isfinite(sample).all()
    if head == 'discretized': assert_close(sample, quantize(sample)); assert (net.log_prob(x, c) < 0).all()

@both
def test_same_uniforms_same_samples(kind):
    net, c = make(kind, size=4), rand(3, 1, (4, 4))
    u = net.uniforms(3, torch.Generator().manual_seed(0))
    assert u.shape == (3, 2, 4, 4) and u.min() >= 0 and u.max() < 1
    a, b = net.sample(uniforms=u, context=c), net.sample(uniforms=u, context=c)
    assert_close(a, b, rtol=0, atol=0)
    assert_close(a[:1], net.sample(uniforms=u[:1], context=c[:1]))                     # an image's sample is its own affair
    assert (net.sample(uniforms=net.uniforms(3, torch.Generator().manual_seed(1)), context=c) - a).abs().max() > 1e-3
    assert (net.sample(uniforms=u, context=c + 1) - a).abs().max() > 1e-6              # the context matters

@both
def test_samples_follow_the_model(kind):
    "The first pixel's samples against the cdf of its own mixture (Kolmogorov-Smirnov)"
    from scipy.stats import kstest
    net = make(kind, size=4)
    c = rand(1, 1, (4, 4)).expand(250, -1, -1, -1).contiguous()
    x = net.sample(uniforms=net.uniforms(250, torch.Generator().manual_seed(0)), context=c)
    with torch.no_grad(): u = net.mixture(net(x, c)).cdf(x)
    for i, j in ((0, 0), (2, 1)): assert kstest(u[:, 0, i, j].numpy(), 'uniform').pvalue > 1e-3

@both
def test_dropout_and_labels(kind):
    net, x, c = make(kind, dropout=0.5, n_classes=3, size=4), rand(2, 1, (4, 4)), rand(2, 1, (4, 4), seed=1)
    label = torch.tensor([0, 2])
    assert_close(net(x, c, label=label), net(x, c, label=label), rtol=0, atol=0)       # evaluating: no dropout
    assert (net(x, c, label=label) - net(x, c, label=torch.tensor([1, 2])))[0].abs().max() > 0
    assert_close(net(x, c, label=label)[1], net(x, c, label=torch.tensor([1, 2]))[1])
    with pytest.raises(ValueError, match='label'): net(x, c)
    net.train()
    assert (net(x, c, label=label) - net(x, c, label=label)).abs().max() > 0
    net.sample(context=c, label=label)
    assert net.training                                                                # as it was

@both
def test_dist_keeps_its_conditions_to_itself(kind):
    "Two of one network do not mix, in whatever order they are asked, and the network stays as it was"
    net, x = make(kind, n_classes=3, sigma_range=(.1, 1.), size=4).train(), rand(2, 1, (4, 4))
    one, other = (rand(2, 1, (4, 4), seed=s) for s in (1, 2))
    a, b = net.dist(one, label=1, sigma=.2), net.dist_at(.7, context=other, label=torch.tensor([0, 2]))
    net.eval()
    first = a.log_prob(x)
    assert_close(b.log_prob(x), net.log_prob(x, other, torch.tensor([0, 2]), .7), rtol=0, atol=0)
    assert torch.equal(a.log_prob(x), first) and torch.equal(first, net.log_prob(x, one, 1, .2)) and (first != b.log_prob(x)).all()
    assert a.batch_shape == b.batch_shape == (2,) and a.event_shape == (1, 4, 4)
    assert vars(net).keys() == vars(make(kind, n_classes=3, sigma_range=(.1, 1.), size=4)).keys()

@both
def test_labels_in_any_form(kind):
    net, x, c = make(kind, n_classes=3, size=4), rand(2, 1, (4, 4)), rand(2, 1, (4, 4), seed=1)
    each, u = net.log_prob(x, c, label=torch.tensor([2, 2])), net.uniforms(2, torch.Generator().manual_seed(0))
    drawn = net.sample(context=c, uniforms=u, label=torch.tensor([2, 2]))
    for one in (2, torch.tensor(2), torch.tensor([2]), torch.tensor([2, 2], dtype=torch.uint8), [2, 2]):
        assert_close(net.log_prob(x, c, label=one), each, rtol=1e-12, atol=1e-12)
        assert_close(net.dist(c, label=one).log_prob(x), each, rtol=1e-12, atol=1e-12)
        assert_close(net.sample(context=c, uniforms=u, label=one), drawn, rtol=0, atol=1e-9)
    assert (net.log_prob(x, c, label=1) != each).all()
    for bad, says in (([0, 1, 2], r'label must be one or \(2,\) of them, got \(3,\)'), (3, r'label must be a whole number in \[0, 2\], got 3'), (-1, 'got -1'), (torch.tensor([0., 1.]), 'whole number .*got 0.0'), (True, 'whole number .*got True')):
        for f in (lambda: net.log_prob(x, c, label=bad), lambda: net.sample(context=c, label=bad), lambda: net.sample(uniforms=u, context=c, label=bad)):
            with pytest.raises(ValueError, match=says): f()

@both
def test_score_is_the_gradient(kind):
    net, c, label = make(kind, n_classes=2, sigma_range=(.1, 1.), size=4), rand(2, 1, (4, 4), seed=1), torch.tensor([0, 1])
    x = rand(2, 1, (4, 4)).requires_grad_()
    want, = torch.autograd.grad(net.log_prob(x, c, label, .3).sum(), x)
    dist = net.dist(c, label, .3)
    for f in (lambda: dist.score(x.detach()), torch.no_grad()(lambda: dist.score(x.detach())), torch.inference_mode()(lambda: dist.score(x.detach()))):
        assert_close(f().clone(), want, rtol=1e-12, atol=1e-12)
    assert all(p.grad is None for p in net.parameters()) and (net.dist(c, label, .9).score(x) - want).abs().max() > 1e-8

@both
def test_save_and_load(kind, tmp_path):
    net, x, c = make(kind, size=4).float(), rand(2, 1, (4, 4)).float(), rand(2, 1, (4, 4), seed=1).float()
    net.save_pretrained(tmp_path)
    assert_close(type(net).from_pretrained(tmp_path).eval()(x, c), net(x, c), rtol=0, atol=0)

# faults

@both
@pytest.mark.parametrize('context, error', [
    (None, 'context must be given: this model was made with context_channels=1'),
    (rand(2, 1, (8, 4)), r'context must be \((2|B), 1, 8, 8\), got \(2, 1, 8, 4\)'),
    (rand(2, 3), r'context must be \((2|B), 1, 8, 8\), got \(2, 3, 8, 8\)'),
    (rand(2)[0], r'context must be \((2|B), 1, 8, 8\), got \(1, 8, 8\)'),
    (rand(3), r'context must be \(2, 1, 8, 8\), got \(3, 1, 8, 8\)'),
    (rand(2)*math.nan, 'context holds NaN'),
    (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), 'context must be a float tensor, got torch.uint8')])
def test_bad_contexts(kind, context, error):
    net, x = make(kind), rand()
    with pytest.raises((ValueError, TypeError), match=error): net.log_prob(x, context)
    with pytest.raises((ValueError, TypeError), match=error): net.sample(uniforms=net.uniforms(2), context=context)

def test_stacked_forward_names_a_bad_image():
    "its own shape, not that of the tall canvas; also where the two halves fit together"
    net, x = make('stacked'), rand()
    for bad in (x[:, :, :4], rand(2, 1, (4, 12)), x[0]):
        with pytest.raises(ValueError, match=rf'x must be \(B, 1, 8, 8\), got {re.escape(str(tuple(bad.shape)))}'): net(bad, rand(2, 1, (12, 8)))

def test_stacked_forward_names_a_bad_context():
    net, x = make('stacked'), rand()
    with pytest.raises(ValueError, match='context must be given: this model was made with context_channels=1'): net(x, None)
    with pytest.raises(ValueError, match=r'context must be \(2, 1, 8, 8\), got \(2, 1, 4, 8\)'): net(x, rand(2, 1, (4, 8)))
    with pytest.raises(ValueError, match=r'context must be \(2, 1, 8, 8\), got \(1, 1, 8, 8\)'): net(x, rand(1))

def test_unconditional_nets_refuse_a_context():
    net = PixelCNNpp(**CONFIG).double()
    with pytest.raises(ValueError, match='context must be None'): net.log_prob(rand(), rand())

@pytest.mark.parametrize('size', [6, (6, 8), (8, 6)])
@both
def test_bad_sizes(kind, size):
    with pytest.raises(ValueError, match='size must be divisible by 4'): make(kind, size=size)

# noise levels

def five(*values): return torch.tensor(values, dtype=torch.float64)

@both
def test_causal_at_every_level(kind):
    net, sigma = make(kind, size=4, sigma_range=(.1, 1.)), five(.1, .4, 1.)
    x, c = (rand(1, 1, (4, 4), seed=s).repeat(3, 1, 1, 1).requires_grad_() for s in (0, 1))
    assert net.sigma_range == (.1, 1.) and net.dist_at(.3, context=c).conditions == dict(context=c, sigma=.3)
    out = net(x, c, sigma=sigma)
    weights = torch.randn(out.shape[1], 1, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for i in range(16):
        for b in range(3):
            gx, gc = torch.autograd.grad((out[b]*weights).sum(0).flatten()[i], (x, c), retain_graph=True)
            other = torch.arange(3) != b
            assert (gx[other] == 0).all() and (gc[other] == 0).all() and (gc[b] != 0).all()
            assert (gx[b].flatten()[i:] == 0).all() and (gx[b].flatten()[:i] != 0).any() == (i > 0)
    for a, b in ((0, 1), (1, 2), (0, 2)): assert ((out[a] - out[b]).abs().amax(0) > 1e-7).all()      # one image, one context, three levels

@both
def test_a_level_for_each_image(kind):
    net, x, c, sigma, label = make(kind, size=4, sigma_range=(.1, 1.), n_classes=3), rand(3, 1, (4, 4)), rand(3, 1, (4, 4), seed=1), five(.15, .4, 1.), torch.tensor([2, 0, 0])
    each = net.log_prob(x, c, label=label, sigma=sigma)
    for i in range(3): assert_close(net.log_prob(x[i:i+1], c[i:i+1], label=label[i:i+1], sigma=sigma[i].item()), each[i:i+1], rtol=1e-12, atol=1e-12)
    assert_close(net.log_prob(x, c, label=label, sigma=.4), net.log_prob(x, c, label=label, sigma=five(.4, .4, .4)), rtol=1e-12, atol=1e-12)
    assert ((net.log_prob(x, c, label=label, sigma=.4) - each).abs() > 1e-9).tolist() == [True, False, True]
    assert ((net.log_prob(x, c, label=torch.tensor([2, 1, 0]), sigma=sigma) - each).abs() > 1e-9).tolist() == [False, True, False]
    grad, = torch.autograd.grad(net.log_prob(x, c, label=label, sigma=sigma.requires_grad_()).sum(), sigma)
    h = sigma.detach()*1e-6*five(1, 1, -1)
    with torch.no_grad(): assert_close((net.log_prob(x, c, label=label, sigma=sigma + h) - each)/h, grad, rtol=1e-3, atol=1e-4)

def test_the_stacked_net_tells_the_tall_one():
    net, x, c = make('stacked', size=4, sigma_range=(.1, 1.)), rand(2, 1, (4, 4)), rand(2, 1, (4, 4), seed=1)
    assert net.net.sigma_range == (.1, 1.)
    assert torch.equal(net(x, c, sigma=five(.2, .9)), net.net(torch.cat([c, x], 2), sigma=five(.2, .9))[:, :, 4:])
    assert set(make('stacked', size=4).state_dict()) == {f'net.{k}' for k in PixelCNNpp(**CONFIG).state_dict()}

@both
def test_levels_that_do_not_fit(kind):
    net, x = make(kind, size=4, sigma_range=(.1, 1.)), rand(2, 1, (4, 4))
    for sigma, says in ((.05, r'lie in \[0.1, 1\], got 0.05'), (1.1, r'lie in \[0.1, 1\], got 1.1'), (five(.3, 2.), r'lie in \[0.1, 1\], got 2.0'),
                        (-.3, 'be a number above 0, got -0.3'), (math.nan, 'be a number above 0, got nan'), (five(.3, math.nan), 'be a number above 0, got nan')):
        for f in (net.log_prob, lambda x, c, sigma: net.sample(context=c, sigma=sigma)):
            with pytest.raises(ValueError, match=f'sigma must {says}'): f(x, x, sigma=sigma)
    for f in (lambda: net.log_prob(x, x), lambda: net.sample(context=x), lambda: net.dist(x)):
        with pytest.raises(ValueError, match=r'sigma must be given: this model was made with sigma_range=\(0.1, 1.0\)'): f()
    with pytest.raises(ValueError, match=r'sigma must be one or \(2,\) of them, got \(3,\)'): net.log_prob(x, x, sigma=five(.3, .3, .3))
    with pytest.raises(ValueError, match='sigma must be None'): make(kind, size=4).log_prob(x, x, sigma=.3)
    with pytest.raises(ValueError, match=r'sigma_range must be \(lowest, highest\)'): make(kind, sigma_range=(1., .1))

@both
def test_saved_with_its_levels(kind, tmp_path):
    net, x = make(kind, size=4, sigma_range=(.1, 1.)).float(), rand(2, 1, (4, 4)).float()
    net.save_pretrained(tmp_path)
    back = type(net).from_pretrained(tmp_path).eval()
    assert back.sigma_range == (.1, 1.) and torch.equal(back.log_prob(x, x, sigma=.2), net.log_prob(x, x, sigma=.2))

# a tall network is a second stage

@pytest.mark.parametrize('kw', [dict(), dict(channels=3, head='discretized', n_classes=2, n_resnet=2, dropout=.3, n_mix=3), dict(sigma_range=(.2, .9))], ids=str)
def test_from_tall(kw):
    torch.manual_seed(0)
    tall = PixelCNNpp(**{**CONFIG, 'size': (16, 4), **kw})
    net = StackedPixelCNNpp.from_tall(tall)
    config = {**CONFIG, 'channels': 1, 'head': 'continuous', 'n_classes': 0, 'sigma_range': None, **kw}
    assert net.size == (8, 4) and not net.training and (net.channels, net.head, net.n_mix, net.sigma_range, net.net.n_classes) == tuple(config[k] for k in ('channels', 'head', 'n_mix', 'sigma_range', 'n_classes'))
    assert net.context_channels == net.channels and {m.p for m in net.modules() if isinstance(m, torch.nn.Dropout)} == {config['dropout']}
    assert net.net.state_dict().keys() == tall.state_dict().keys() and all(torch.equal(v, tall.state_dict()[k]) for k, v in net.net.state_dict().items())
    x, c = (quantize(rand(2, net.channels, (8, 4), seed=s).float()) for s in (0, 1))
    cond = dict(label=torch.tensor([0, 1])) if net.net.n_classes else dict(sigma=.4) if net.sigma_range else {}
    tall.eval()
    terms = tall.mixture(tall(torch.cat([c, x], 2), **cond)).log_prob(torch.cat([c, x], 2))
    assert_close(net.log_prob(x, c, **cond), terms[:, 8:].flatten(1).sum(1))
    with torch.no_grad(): tall.out.bias.add_(1.)
    assert not torch.equal(net.net.out.bias, tall.out.bias)                            # a copy

@pytest.mark.parametrize('kw', [dict(size=(12, 8)), dict(size=(4, 8)), dict(size=(16, 8), context_channels=1)], ids=str)
def test_networks_that_are_no_second_stage(kw):
    with pytest.raises(ValueError, match='net must have no context and a height divisible by 8, got channels=1, size='): StackedPixelCNNpp.from_tall(PixelCNNpp(**{**CONFIG, **kw}))
    with pytest.raises(ValueError, match='net must'): StackedPixelCNNpp.from_tall(make('stacked'))
