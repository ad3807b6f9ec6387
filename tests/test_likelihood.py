"""Bits/dim: every number says its kind and unit, bounds keep their order, noise does not depend on batches, and misuse says what is wrong."""
import math
import subprocess
import sys
from pathlib import Path
import pytest
import torch
from torch.testing import assert_close
from distsmooth.autoregressive import Autoregressive
from distsmooth.conditional import StackedPixelCNNpp
from distsmooth.data import load_dataset
from distsmooth.likelihood import BitsPerDim, bits_per_dim, dequantize, iwae, log_weights
from distsmooth.logistic import quantize
from distsmooth.made import MADE
from distsmooth.pipeline import SmoothedModel
from distsmooth.pixelcnn import PixelCNNpp
from distsmooth.smoothing import GaussianKernel, LaplaceKernel, UniformKernel

f64 = torch.float64
NET = dict(size=4, n_filters=4, n_resnet=1, n_mix=2)
def seeded(seed=0): return torch.Generator().manual_seed(seed)
def on_levels(n=6, c=1, size=4): return quantize(torch.rand(n, c, size, size, generator=seeded(1))*2 - 1)
def pixels(reverse='encoder', kernel=None, channels=1, **kw):
    net = dict(NET, channels=channels)
    back = {'encoder': lambda: PixelCNNpp(**net, head='discretized', context_channels=channels, **kw), 'stacked': lambda: StackedPixelCNNpp(**net, **kw)}[reverse]()
    return SmoothedModel(PixelCNNpp(**net, **kw), back, kernel or GaussianKernel(.3), PixelCNNpp(**net, head='discretized')).double().eval()
def data(n=6): return on_levels(n).double()

# exact

class Flat:
    "The same height everywhere"
    def __init__(self, height): self.height = height
    def log_prob(self, x): return torch.full_like(x[:, 0], math.log(self.height)*x.shape[1])

class Uniform(Autoregressive):
    "All 256 levels alike; or, continuous, all of their widths"
    def __init__(self, channels=1, size=8, head='discretized'): super().__init__(channels, size, 1, head)
    def forward(self, x): return x.new_zeros(len(x), self.n_out, *self.size)
    def mixture(self, params): return Flat(1/256 if self.head == 'discretized' else 127.5/256)

@pytest.mark.parametrize('channels', [1, 3])
def test_a_uniform_model_needs_eight_bits(channels):
    x = torch.cat([on_levels(5, channels, 8), -torch.ones(1, channels, 8, 8)])
    found = bits_per_dim(Uniform(channels), x)
    assert found.value == pytest.approx(8, abs=1e-6) and found.stderr < 1e-6 and (found.kind, found.n) == ('exact', 6)
    assert str(found) == '8.0000 ± 0.0000 bits/dim (8-bit), exact, n=6'

def test_a_network_of_256_levels_is_uniform_too():
    "PixelCNN++ itself, silenced: one narrow component on every level"
    net = PixelCNNpp(**NET | dict(n_mix=256), head='discretized').double()
    with torch.no_grad():
        net.out.weight_g.zero_()
        net.out.bias.copy_(torch.cat([torch.zeros(256), torch.linspace(-1, 1, 256, dtype=f64), torch.full((256,), -7.)]))
    assert bits_per_dim(net, data()).value == pytest.approx(8, abs=1e-5)

def test_a_flat_density_needs_eight_bits():
    "127.5/256 high: the widths of the outermost levels end half a level outside [-1, 1]"
    x = dequantize(on_levels(size=8), seeded())
    assert bits_per_dim(Uniform(head='continuous'), x).value == pytest.approx(8, abs=1e-6)

def test_exact_is_what_log_prob_says():
    sm, x = pixels(), data()
    for net, y, addend in ((sm.raw, x, 0.), (MADE((4, 4)).double(), dequantize(x, seeded()), math.log2(127.5))):
        found = bits_per_dim(net, y)
        with torch.no_grad(): bits = -net.log_prob(y)/(16*math.log(2)) + addend
        assert_close(found.values, bits, rtol=1e-10, atol=0)
        assert found.value == pytest.approx(bits.mean().item()) and found.stderr == pytest.approx(bits.std().item()/6**.5)
        assert (found.kind, found.unit, found.n, found.of) == ('exact', 'bits/dim (8-bit)', 6, 'images')
    assert torch.equal(bits_per_dim(sm, x).values, bits_per_dim(sm.raw, x).values) and torch.equal(bits_per_dim(sm, x, part='raw').values, bits_per_dim(sm.raw, x).values)

def test_parts_say_what_they_are():
    sm, x = pixels(sigma_range=(.1, .8)), data()
    smooth, reverse = (bits_per_dim(sm, x, part=part, sigma=.5, generator=seeded()) for part in ('smooth', 'reverse'))
    assert (smooth.kind, smooth.unit, smooth.of) == ('exact', 'bits/dim (density on [-1, 1])', 'images smoothed at sigma=0.5')
    assert (reverse.kind, reverse.unit, reverse.of) == ('conditional NLL', 'bits/dim (8-bit)', 'images given smoothed ones, sigma=0.5')
    w = log_weights(sm, x, 1, sigma=.5, generator=seeded())
    elbo = bits_per_dim(sm, x, 'elbo', sigma=.5, generator=seeded())
    assert_close(elbo.values, -w[:, 0]/(16*math.log(2))) and elbo.of == 'images by way of sigma=0.5'
    noise = (elbo.values - smooth.values - reverse.values)*16*math.log(2)   # log q: the three parts are of the same draw
    assert noise.mean().item() == pytest.approx(-16*math.log(.5*math.sqrt(2*math.pi*math.e)), rel=.3)
    x_noisy = sm.kernel_at(.5).sample(x, seeded())
    alone = bits_per_dim(sm.smooth, x_noisy, sigma=.5)
    assert alone.of == smooth.of and alone.unit == smooth.unit
    assert bits_per_dim(sm.smooth, x_noisy, sigma=torch.full((6,), .5)).of == 'images smoothed at several sigmas'
    given = bits_per_dim(sm.reverse, x, context=x_noisy, sigma=.5)
    assert (given.kind, given.of) == ('conditional NLL', 'images given a context')
    with torch.no_grad(): assert_close(given.values, -sm.reverse.log_prob(x, x_noisy, sigma=.5)/(16*math.log(2)))
    assert smooth.minus(smooth) == (0., 0.)
    with pytest.raises(ValueError, match=r'other must be in bits/dim \(8-bit\) of the same 6 images, got .*density on'): reverse.minus(smooth)

def test_labels():
    sm, x, y = pixels(n_classes=3), data(), torch.tensor([0, 1, 2, 0, 1, 2])
    found = bits_per_dim(sm, x, 'iwae-3', label=y, generator=seeded(), batch_size=2)
    assert found.of == 'images by way of sigma=0.3 given labels' and str(found).endswith('n=6 images by way of sigma=0.3 given labels')
    other = bits_per_dim(sm, x, 'iwae-3', label=y.flip(0), generator=seeded(), batch_size=2)
    assert (found.values != other.values)[y != y.flip(0)].all()
    assert bits_per_dim(sm, x, label=y).of == 'images'      # raw is not told
    assert bits_per_dim(sm, x, part='smooth', label=y, generator=seeded()).of.endswith('given labels')

def test_a_paired_difference_is_steadier():
    values = torch.arange(100, dtype=f64)
    a, b = (BitsPerDim(v.mean().item(), 0., 'exact', 'u', 100, 'images', v) for v in (values, values + .1))
    assert b.minus(a) == (pytest.approx(.1), pytest.approx(0, abs=1e-9))

# the two-step model

@pytest.mark.parametrize('kernel', [GaussianKernel, LaplaceKernel, UniformKernel])
@pytest.mark.parametrize('reverse', ['encoder', 'stacked'])
def test_bounds_by_hand(reverse, kernel):
    sm, x = pixels(reverse, kernel(.3), sigma_range=(.1, .8)), data(3)
    x = x if reverse == 'encoder' else dequantize(x, seeded(3))
    seeds, k, s = torch.randint(2**62, (3,), generator=seeded()), 5, .6
    bits = []
    for image, seed in zip(x, seeds.tolist()):
        x_noisy, own = [], torch.Generator().manual_seed(seed)
        for _ in range(k): x_noisy.append(kernel(s).sample(image, own))
        y, many = torch.stack(x_noisy), image.expand(k, -1, -1, -1)
        with torch.no_grad(): w = sm.smooth.log_prob(y, sigma=s) + sm.reverse.log_prob(many, y, sigma=s) - kernel(s).log_prob(y, many)
        bits.append(-(w.logsumexp(0) - math.log(k))/(16*math.log(2)))
    addend = 0 if reverse == 'encoder' else math.log2(127.5)
    found = bits_per_dim(sm, x, 'iwae-5', sigma=s, generator=seeded())
    assert_close(found.values, torch.stack(bits) + addend, rtol=1e-9, atol=1e-9)
    assert (found.kind, found.unit) == ('iwae-5', 'bits/dim (8-bit)')

@pytest.mark.parametrize('kind', ['elbo', 'iwae-7'])
@pytest.mark.parametrize('batch_size', [1, 2, 3, 7, 20, 64])
def test_the_same_generator_gives_the_same_number_whatever_the_batch(batch_size, kind):
    sm, x = pixels(), data()
    whole = bits_per_dim(sm, x, kind, generator=seeded())
    assert_close(bits_per_dim(sm, x, kind, generator=seeded(), batch_size=batch_size).values, whole.values, rtol=1e-10, atol=1e-10)
    assert (bits_per_dim(sm, x, kind, generator=seeded(1)).values != whole.values).all()

def test_images_and_draws_keep_their_noise():
    "The first images of many, and the first draws of many, are what they are alone"
    sm, x = pixels(), data()
    w = log_weights(sm, x, 6, generator=seeded(), batch_size=4)
    assert w.shape == (6, 6) and w.dtype == f64 and w.unique().numel() == 36
    assert_close(log_weights(sm, x[:2], 3, generator=seeded()), w[:2, :3], rtol=1e-10, atol=1e-10)
    assert torch.equal(bits_per_dim(sm, x, 'iwae-1', generator=seeded()).values, bits_per_dim(sm, x, 'elbo', generator=seeded()).values)

def test_dropout_is_off_and_the_mode_comes_back():
    sm, x = pixels(), data()
    quiet = bits_per_dim(sm, x, 'elbo', generator=seeded())
    sm.train(); sm.reverse.encoder.eval()
    modes = [m.training for m in sm.modules()]
    loud = bits_per_dim(sm, x, 'elbo', generator=seeded())
    assert torch.equal(quiet.values, loud.values) and [m.training for m in sm.modules()] == modes and loud.values.grad_fn is None

# the order of bounds

def quadrature(sm, x, lim, steps):
    "log p(x), the integral of p(x_noisy) p(x | x_noisy), by the trapezoid rule"
    axis, dims = torch.linspace(-lim, lim, steps, dtype=f64), x[0].numel()
    grid = torch.cartesian_prod(*[axis]*dims).view(-1, *x.shape[1:])
    with torch.no_grad():
        smooth = sm.smooth.log_prob(grid)
        assert abs(smooth.logsumexp(0).exp()*(axis[1]-axis[0])**dims - 1) < 1e-3   # the grid is wide and fine enough
        joint = [(smooth + sm.reverse.log_prob(p.expand(len(grid), *p.shape), grid)).logsumexp(0) for p in x]
    return torch.stack(joint) + dims*(axis[1]-axis[0]).log()

@pytest.mark.parametrize('dims, n, k, lim, steps', [(1, 1500, 64*8, 30, 1201), (2, 200, 64*20, 14, 113)])
def test_elbo_iwae_exact(dims, n, k, lim, steps):
    "In this order, and not by luck: every step is more than six standard errors, image by image"
    torch.manual_seed(2)
    net = dict(size=(1, dims), n_hidden=(16, 16), n_mix=2)
    sm = SmoothedModel(MADE(**net), MADE(**net, context_channels=1), GaussianKernel(.8)).double()
    x = 1.5*torch.randn(n, 1, 1, dims, dtype=f64, generator=seeded())
    exact, w = quadrature(sm, x, lim, steps), log_weights(sm, x, k, generator=seeded(), batch_size=4096)
    bounds = [iwae(w, each) for each in (1, 4, 16, 64)]
    assert all((low <= high + 1e-12).all() for low, high in zip(bounds, bounds[1:]))    # Jensen, on the draws themselves
    for low, high in zip(bounds, [*bounds[1:], exact]):
        gap = high - low
        assert gap.mean() > 6*gap.std()/n**.5

# data that do not fit

def test_dequantize():
    x = torch.cat([on_levels(50), torch.ones(1, 1, 4, 4), -torch.ones(1, 1, 4, 4)])
    y = dequantize(x, seeded())
    away = (y - x)*127.5
    assert away.abs().max() <= .5 + 1e-5 and away.mean().abs() < .05 and away.std().item() == pytest.approx(1/12**.5, rel=.1)
    assert_close(quantize(y), x) and y.dtype == x.dtype
    assert torch.equal(y, dequantize(x, seeded())) and not torch.equal(y, dequantize(x, seeded(1)))
    with pytest.raises(ValueError, match=r'x must lie on the 256 levels of \[-1, 1\] .*% does'): dequantize(y)

def test_a_density_of_8_bit_data_is_refused_or_labelled():
    net, x = MADE((4, 4)), on_levels()
    for wrong in (x, torch.where(torch.rand(x.shape) < .2, x, dequantize(x))):
        with pytest.raises(ValueError, match='x must not lie on 8-bit levels .*for a network that gives a density.*dequantize'): bits_per_dim(net, wrong)
        found = bits_per_dim(net, wrong, allow_levels=True)
        assert 'falls without end' in found.unit and 'falls without end' in str(found)
    assert 'falls' not in bits_per_dim(net, dequantize(x), allow_levels=True).unit
    with pytest.raises(ValueError, match='must not lie on 8-bit levels'): bits_per_dim(pixels('stacked'), data(), 'elbo')
    with pytest.raises(ValueError, match='must not lie on 8-bit levels'): bits_per_dim(pixels().smooth, data(), sigma=.3)    # not smoothed

def test_the_number_runs_to_minus_infinity():
    "Black images, one component on black, and no floor under its scale"
    x, net = -torch.ones(2, 1, 4, 4), MADE((4, 4), n_mix=1)
    for p in net.parameters(): p.requires_grad_(False).zero_()
    def bits(log_scale, y):
        net.out.bias.view(3, 16)[1:] = torch.tensor([[-1.], [log_scale]])
        return bits_per_dim(net, y, allow_levels=True).value
    assert [bits(s, x) for s in (-1., -3., -5., -7.)] == pytest.approx([math.log2(127.5) + (s + 2*math.log(2))/math.log(2) for s in (-1., -3., -5., -7.)], abs=1e-5)
    assert min(bits(s, dequantize(x, seeded())) for s in (-1., -3., -5., -6., -7.)) > 0   # the dequantized data have a density: 0 bits is the least

MADE2 = dict(size=(1, 2), n_hidden=(4,), n_mix=1)
def bound_of_toy(**kw): return bits_per_dim(SmoothedModel(MADE(**MADE2), MADE(**MADE2, context_channels=1)), torch.zeros(3, 1, 1, 2), **kw)
BAD = {
    'kind': (lambda: bound_of_toy(kind='iwae'), r"kind must be 'exact', 'elbo', or 'iwae-K' .*, got 'iwae'"),
    'no draws': (lambda: bound_of_toy(kind='iwae-0'), "got 'iwae-0'"),
    'exact of two steps': (lambda: bound_of_toy(), "kind='exact' needs a network 'raw' and this model has none; the two-step likelihood is an integral"),
    'bound without reverse': (lambda: bits_per_dim(SmoothedModel(MADE()), torch.zeros(1, 1, 1, 2), 'elbo'), "kind='elbo' needs a network 'reverse' and this model has none"),
    'bound of one network': (lambda: bits_per_dim(MADE(), torch.zeros(1, 1, 1, 2), 'elbo'), "kind must be 'exact' for one network.*got 'elbo'"),
    'bound of one part': (lambda: bits_per_dim(pixels(), data(), 'elbo', part='smooth'), "kind must be 'exact' for one part, got 'elbo'"),
    'part': (lambda: bits_per_dim(pixels(), data(), part='rough'), r"part must be one of \['smooth', 'reverse', 'raw'\], got 'rough'"),
    'raw at a sigma': (lambda: bits_per_dim(pixels(), data(), sigma=.3), 'sigma must be None: raw is a network of images without noise, got 0.3'),
    'sigma': (lambda: bits_per_dim(pixels(), data(), 'elbo', sigma=.4), 'sigma must be 0.3, the only noise level'),
    'sigma not told': (lambda: bits_per_dim(pixels(sigma_range=(.1, 1.)).smooth, data() + .001), 'sigma must be given'),
    'no context': (lambda: bits_per_dim(pixels().reverse, data()), 'context must be given: this model was made with context_channels=1'),
    'context of the whole': (lambda: bits_per_dim(pixels(), data(), 'elbo', context=data()), 'context must be None'),
    'shape': (lambda: bits_per_dim(pixels(), data()[:, :, 1:], 'elbo'), r'x must be \(n, 1, 4, 4\), got \(6, 1, 3, 4\)'),
    'nan': (lambda: bits_per_dim(pixels(), data()*math.nan), 'x holds NaN'),
    'not levels': (lambda: bits_per_dim(pixels(), data() + .002), r'x must lie on the 256 levels of \[-1, 1\]'),
    'not levels, bound': (lambda: bits_per_dim(pixels(), data() + .002, 'elbo'), r'x must lie on the 256 levels of \[-1, 1\]'),
    'batch size': (lambda: bits_per_dim(pixels(), data(), batch_size=0), 'batch_size must be a whole number of at least 1, got 0'),
    'labels': (lambda: bits_per_dim(pixels(), data(), 'elbo', label=torch.zeros(6).long()), 'label must be None: neither smooth nor reverse'),
    'labels, few': (lambda: bits_per_dim(pixels(n_classes=2), data(), 'elbo', label=torch.zeros(5).long()), 'label must be one or .6,. of them, got 5'),
    'draws': (lambda: iwae(torch.zeros(2, 4), 5), r'k must be a whole number in \[1, 4\], got 5'),
}
@pytest.mark.parametrize('call, says', BAD.values(), ids=BAD)
def test_bad_input(call, says):
    with pytest.raises(ValueError, match=says): call()

@pytest.mark.parametrize('value, error, says', [(math.nan, FloatingPointError, r'log p\(x\) of Broken is NaN for 1 of \d images'), (-math.inf, ValueError, 'log_prob must be finite, got -inf for image {}')])
def test_log_probs_that_are_not_finite_are_refused(value, error, says):
    x = data()
    class Broken(PixelCNNpp):
        def mixture(self, params):
            mix = super().mixture(params)
            mix.logits[-1, :, 2, 2] = value
            return mix
    net = Broken(**NET, head='discretized').double()
    with pytest.raises(error, match=says.format(5)): bits_per_dim(net, x)
    with pytest.raises(error, match=says.format(3)): bits_per_dim(net, x, batch_size=4)

# memory

def test_memory_is_that_of_one_batch():
    "8 draws of 4 digits need what 2 draws do, if `batch_size` is the same; 64 at once need more, and less than the 5 MB each that the notebook names"
    code = """
import torch
from pathlib import Path
from distsmooth.data import load_dataset
from distsmooth.likelihood import bits_per_dim
from distsmooth.pipeline import SmoothedModel
torch.set_num_threads(1)
sm, x = SmoothedModel.from_pretrained('digits'), load_dataset('digits', 'test')[:4][0]
def peak(): return int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])
for kind, batch_size in ('elbo', 1), ('iwae-2', 8), ('iwae-8', 8), ('iwae-16', 64):
    bits_per_dim(sm, x, kind, batch_size=batch_size)
    print(peak())
"""
    if not Path('/proc/self/status').exists(): pytest.skip('asks Linux for the peak of its memory')
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    before, few, many, at_once = map(int, out.split())
    assert many - before < 1.5*(few - before) + 10_000 and 3*(many - before) < at_once - before < 64*5_000, out

def test_the_box():
    "The figures of the model card, of fewer digits"
    sm, x = SmoothedModel.from_pretrained('digits'), load_dataset('digits', 'test')[:32][0]
    raw, elbo, four = bits_per_dim(sm, x), bits_per_dim(sm, x, 'elbo', sigma=.3, generator=seeded()), bits_per_dim(sm, x, 'iwae-4', sigma=.3, generator=seeded())
    assert .7 < raw.value < 1.4 and raw.kind == 'exact' and 0 < raw.stderr < .1
    assert four.value < elbo.value < raw.value + .1
    assert four.minus(raw)[1] < raw.stderr/2
