"Mixtures of logistics against scipy, numerical integration, brute force, and at the extremes"
import itertools, math, subprocess, sys
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from scipy import integrate, optimize, special, stats
from torch.testing import assert_close
from distsmooth.logistic import DiscretizedLogisticMixture, LogisticMixture, log_sigmoid_diff, n_params, quantize

f64 = torch.float64
LEVELS = torch.arange(256, dtype=f64)/127.5 - 1
BOTH = pytest.mark.parametrize('cls', [LogisticMixture, DiscretizedLogisticMixture])

class EightLevels(DiscretizedLogisticMixture):
    "The discretized mixture on 8 levels: 512 colours can be summed"
    half = 1/7

def rand(*shape, seed=0, dtype=f64): return torch.rand(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))
def randn(*shape, seed=0, dtype=f64): return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))
def row(values): return torch.as_tensor(values, dtype=f64).reshape(1, 1, 1, -1)
def one(logits, means, log_scales, n=1, dtype=f64):
    return torch.tensor([*logits, *means, *log_scales], dtype=dtype)[None, :, None, None].expand(1, -1, 1, n)

# slow and independent: loops over components and colours, scipy
def slow_component(x, loc, scale, discretized):
    if not discretized: return stats.logistic.logpdf(x, loc=loc, scale=scale)
    if x < -.999: return stats.logistic.logcdf(x + 1/255, loc=loc, scale=scale)
    if x > .999: return stats.logistic.logsf(x - 1/255, loc=loc, scale=scale)
    d = abs(x - loc)
    near, far = stats.logistic.logsf(d - 1/255, scale=scale), stats.logistic.logsf(d + 1/255, scale=scale)
    return near + np.log(-np.expm1(far - near))

def slow_log_prob(params, x, channels, discretized):
    "One pixel: `params` (P,), `x` (C,)"
    K = len(params)//(3 if channels == 1 else 10)
    logits, rest = special.log_softmax(params[:K]), params[K:].reshape(channels, -1, K)
    terms = []
    for k in range(K):
        a, b, c = np.tanh(rest[:, 2, k]) if channels == 3 else (0, 0, 0)
        m, s = rest[:, 0, k], np.exp(np.maximum(rest[:, 1, k], -7))
        locs = [m[0]] if channels == 1 else [m[0], m[1] + a*x[0], m[2] + b*x[0] + c*x[1]]
        terms.append(logits[k] + sum(slow_component(*t, discretized) for t in zip(x, locs, s)))
    return special.logsumexp(terms)

@BOTH
@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('n_mix', [1, 2, 5])
@pytest.mark.parametrize('log_scale', [-9., -7., -4., -1., 3.])
def test_log_prob_is_the_slow_one(cls, channels, n_mix, log_scale):
    p = randn(2, n_params(channels, n_mix), 3, 2, seed=n_mix)
    p[:, n_mix:].view(2, channels, -1, n_mix, 3, 2)[:, :, 1] += log_scale
    x = quantize(randn(2, channels, 3, 2, seed=1)) if cls is DiscretizedLogisticMixture else 3*randn(2, channels, 3, 2, seed=1)
    want = torch.tensor([[[slow_log_prob(p[b, :, i, j].numpy(), x[b, :, i, j].numpy(), channels, cls is DiscretizedLogisticMixture)
                           for j in range(2)] for i in range(3)] for b in range(2)])
    assert_close(cls(p, channels).log_prob(x), want, rtol=1e-10, atol=1e-10)
    assert_close(cls(p.float(), channels).log_prob(x.float()).double(), want, rtol=1e-3, atol=1e-3)

@pytest.mark.parametrize('scale,far', list(itertools.product((-7., 0., 3.), (1., 30., 1e3, 1e6))))
def test_one_logistic_is_scipys_everywhere(scale, far):
    x = np.array([-far, -1., 0., 1., far])
    m, s = LogisticMixture(one([0.], [.25], [scale], 5)), dict(loc=.25, scale=math.exp(scale))
    assert_close(m.log_prob(row(x)).flatten(), torch.tensor(stats.logistic.logpdf(x, **s)), rtol=1e-13, atol=1e-13)
    assert_close(m.cdf(row(x)).flatten(), torch.tensor(stats.logistic.cdf(x, **s)), rtol=1e-11, atol=0)

def test_the_threshold_of_softplus_is_gone():
    z = torch.linspace(15, 40, 501, dtype=f64)
    want = torch.tensor(stats.logistic.logpdf(z.numpy()))
    assert (-z - 2*F.softplus(-z) - want).abs().max() < 1e-13 < (z - 2*F.softplus(z) - want).abs().max()
    for sign in (1, -1):
        assert_close(LogisticMixture(one([0.], [0.], [0.], 501)).log_prob(row(sign*z)).flatten(), want, rtol=1e-14, atol=0)

@pytest.mark.parametrize('log_scales', [(-7., .5), (-3., -1.), (0., 3.)])
def test_density_integrates_to_one_and_has_the_mean(log_scales):
    m = LogisticMixture(one([.4, -.3], [.2, -.5], log_scales))
    def p(v): return m.log_prob(row(v)).exp().item()
    cuts = [-900, -60, -5, -.55, -.45, .18, .2, .22, 5, 60, 900]
    def integral(f): return sum(integrate.quad(f, a, b, limit=200)[0] for a, b in itertools.pairwise(cuts))
    assert integral(p) == pytest.approx(1, abs=1e-8)
    assert integral(lambda v: v*p(v)) == pytest.approx(m.mean.item(), abs=1e-7)

def test_colour_density_integrates_to_one():
    "The trapezoidal rule on a cube: exact to many digits, since the scales are wider than the steps"
    side = torch.arange(-14, 14, .35, dtype=f64)
    cube = torch.cartesian_prod(side, side, side).T.reshape(1, 3, 1, -1)
    p = .4*randn(1, 20, 1, 1, seed=17); p[:, 2:].view(1, 3, 3, 2)[:, :, 1] = -.4
    m = LogisticMixture(p.expand(-1, -1, 1, cube.shape[-1]), 3)
    joint = m.log_prob(cube).exp().flatten()*.35**3
    assert joint.sum().item() == pytest.approx(1, abs=1e-7)
    assert_close((joint*cube[0, :, 0]).sum(1), m.mean[0, :, 0, 0], rtol=0, atol=1e-5)

def test_the_joint_is_the_product_of_the_conditionals():
    m, x = LogisticMixture(randn(1, 20, 1, 1, seed=5), 3), randn(1, 3, 1, 1, seed=6)
    J = torch.autograd.functional.jacobian(m.cdf, x)[0, :, 0, 0, 0, :, 0, 0]
    assert_close(J.diagonal().log().sum(), m.log_prob(x).sum(), rtol=1e-10, atol=1e-10)

@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-2, 2), st.floats(-7, 3)), min_size=1, max_size=4))
def test_icdf_inverts_cdf(parts):
    u = torch.tensor([1e-12, 1e-3, .1, .5, .9, .999, 1 - 1e-12], dtype=f64)
    m = LogisticMixture(one(*zip(*parts), n=7))
    x = m.icdf(row(u))
    assert (x.diff() >= 0).all()
    assert_close(m.cdf(x).flatten(), u, rtol=0, atol=1e-11)

@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-2, 2), st.floats(-7, 3)), min_size=1, max_size=3), st.floats(1e-300, 1))
def test_discretized_icdf_is_the_lowest_level_that_reaches_u(parts, u):
    m = DiscretizedLogisticMixture(one(*zip(*parts), n=256))
    cdf = m.cdf(row(LEVELS)).flatten()
    got = ((m.icdf(row([u]*256)).flatten()[0] + 1)*127.5).round().long().item()
    assert cdf[got] >= u - 1e-12
    assert got == 0 or cdf[got-1] <= u + 1e-12

@pytest.mark.parametrize('scale', [-7., 0., 3.])
def test_icdf_at_the_ends_and_with_a_bracket_of_zero_width(scale):
    u = np.array([1e-300, 1e-16, 1e-6, .5, 1 - 1e-6, 1 - 1e-12, 1 - 2**-53])
    m = LogisticMixture(one([0., 1., 2.], [.3]*3, [scale]*3, 7))
    assert_close(m.icdf(row(u)).flatten(), torch.tensor(stats.logistic.ppf(u, loc=.3, scale=math.exp(scale))), rtol=1e-12, atol=1e-12)
    for ends in (torch.zeros(1, 1, 1, 7), torch.ones(1, 1, 1, 7)):
        for dtype in (torch.float32, f64): assert torch.isfinite(m.icdf(ends.to(dtype))).all()

def test_icdf_keeps_the_upper_tail():
    "The mirror image of a mixture has the mirrored quantiles, to the last digits of 1 - u"
    tail = torch.tensor([1e-15, 1e-13, 1e-10, 1e-6], dtype=f64)
    u = 1 - tail
    right = LogisticMixture(one([0., -2.], [.5, -.2], [-3., -1.], 4)).icdf(row(u))
    left = LogisticMixture(one([0., -2.], [-.5, .2], [-3., -1.], 4)).icdf(row(1 - u))
    assert_close(right, -left, rtol=1e-13, atol=0)

def test_colours_invert_too():
    m, x, u = LogisticMixture(randn(2, 30, 2, 2, seed=3), 3), randn(2, 3, 2, 2, seed=4), rand(2, 3, 2, 2, seed=5)
    assert_close(m.icdf(m.cdf(x)), x, rtol=0, atol=1e-9)
    assert_close(m.cdf(m.icdf(u)), u, rtol=0, atol=1e-12)
    assert torch.isfinite(m.icdf(torch.zeros_like(u))).all() and torch.isfinite(m.icdf(torch.ones_like(u))).all()

@pytest.mark.parametrize('n_mix', [1, 3])
def test_cdf_slope_is_the_density(n_mix):
    x = 2*randn(1, 1, 5, 5, seed=7).requires_grad_()
    m = LogisticMixture(randn(1, 3*n_mix, 5, 5, seed=8))
    slope, = torch.autograd.grad(m.cdf(x).sum(), x)
    assert_close(slope[:, 0], m.log_prob(x).exp(), rtol=1e-10, atol=1e-14)

@pytest.mark.parametrize('cls', [LogisticMixture, EightLevels])
def test_who_sees_whom(cls):
    p = randn(1, 20, 1, 1, seed=9)
    def marginal(c, x): return cls(p, 3).cdf(x)[0, c, 0, 0].item()
    base = quantize(torch.zeros(1, 3, 1, 1, dtype=f64)) if cls is LogisticMixture else torch.full((1, 3, 1, 1), 1/7, dtype=f64)
    for c, other in itertools.permutations(range(3), 2):
        moved = base.clone(); moved[0, other] += 2/7
        assert (marginal(c, moved) != marginal(c, base)) == (other < c), (c, other)

def test_one_shared_indicator():
    "Without coefficients red still tells which component is at work"
    p = torch.zeros(1, 20, 1, 1, dtype=f64)
    p[0, 2:].view(3, 3, 2)[:, 0] = torch.tensor([-.5, .5], dtype=f64)
    p[0, 2:].view(3, 3, 2)[:, 1] = -3
    m, lo, hi = LogisticMixture(p, 3), torch.zeros(1, 3, 1, 1, dtype=f64), torch.zeros(1, 3, 1, 1, dtype=f64)
    lo[0, 0], hi[0, 0] = -.5, .5
    assert m.cdf(lo)[0, 1].item() > .99 and m.cdf(hi)[0, 1].item() < .01

@pytest.mark.parametrize('scale,mean', list(itertools.product((-7., -3., 0., 3.), (-1e3, -1., .0123, 1., 1e3))))
def test_masses_sum_to_one_and_cost_no_negative_bits(scale, mean):
    m = DiscretizedLogisticMixture(one([0., 1.], [mean, .3], [scale, -1.], 256))
    lp = m.log_prob(row(LEVELS)).flatten()
    assert torch.isfinite(lp).all() and lp.max() <= 1e-14
    assert lp.exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert_close(m.cdf(row(LEVELS)).flatten(), lp.exp().cumsum(0), rtol=0, atol=1e-12)
    assert_close(m.mean.flatten()[0], (lp.exp()*LEVELS).sum(), rtol=0, atol=1e-11)

def test_masses_of_all_colours_sum_to_one():
    x = torch.cartesian_prod(*[torch.arange(8, dtype=f64)*2/7 - 1]*3).T.reshape(1, 3, 1, 512)
    for seed in range(5):
        m = EightLevels(2*randn(1, 30, 1, 1, seed=seed).expand(-1, -1, 1, 512), 3)
        assert m.log_prob(x).exp().sum().item() == pytest.approx(1, abs=1e-12)

def test_a_uniform_mass_is_eight_bits():
    p = one([0.]*256, LEVELS, [-7.]*256, 256)
    bits = -DiscretizedLogisticMixture(p).log_prob(row(LEVELS))/math.log(2)
    assert f'{bits.mean():.3f}' == '8.000' and (bits - 8).abs().max() < 1e-4
    assert (-LogisticMixture(p).log_prob(row(LEVELS))/math.log(2) + math.log2(127.5)).max() < 7

def test_the_cdf_of_a_discretized_mixture_is_a_staircase():
    m = DiscretizedLogisticMixture(one([0., 1.], [-1., .3], [-2., -1.], 256))
    at = m.cdf(row(LEVELS))
    for shift in (1e-9, 1/255, 1.99/255): assert_close(m.cdf(row(LEVELS + shift)), at, rtol=0, atol=1e-14)
    assert_close(m.cdf(row(LEVELS - .01/255))[..., 1:], at[..., :-1], rtol=0, atol=1e-14)
    assert (m.cdf(row([-1 - 1e-4]*256)) == 0).all() and (m.cdf(row([-9.]*256)) == 0).all()
    assert at[..., 0].item() > .1 and abs(at[..., -1].item() - 1) < 1e-15 and abs(m.cdf(row([9.]*256))[..., 0].item() - 1) < 1e-15
    assert_close(m.cdf(row((LEVELS.float()))), at, rtol=0, atol=1e-14)

@pytest.mark.parametrize('a,b', [(1., -1.), (1e-9, 0.), (50., 49.), (-49., -50.), (800., 799.), (-799., -800.), (40., -40.)])
def test_log_sigmoid_diff(a, b):
    got = log_sigmoid_diff(torch.tensor(a, dtype=f64), torch.tensor(b, dtype=f64)).item()
    lo, hi = (b, a) if a + b < 0 else (-a, -b)  # count from the nearer tail
    want = stats.logistic.logcdf(hi) + np.log(-np.expm1(stats.logistic.logcdf(lo) - stats.logistic.logcdf(hi)))
    assert got == pytest.approx(want, rel=1e-7, abs=1e-15)

def test_a_width_that_is_known_beats_the_subtraction():
    a, w = torch.tensor(-1e6), torch.tensor(.01)
    assert torch.isinf(log_sigmoid_diff(a, a - w))
    assert log_sigmoid_diff(a, a - w, w).item() == pytest.approx(-1e6 + math.log(-math.expm1(-.01)), rel=1e-6)

@BOTH
@pytest.mark.parametrize('dtype', [torch.float32, f64])
@pytest.mark.parametrize('channels', [1, 3])
def test_values_and_gradients_are_finite_at_the_extremes(cls, dtype, channels):
    for scale, loc in itertools.product((-30., -7., 0., 3.), (0., 1., -1., 30., 1e4, -1e6)):
        p = torch.zeros(1, n_params(channels, 2), 1, 5, dtype=dtype)
        rest = p[:, 2:].view(1, channels, -1, 2, 1, 5)
        rest[:, :, 0, 0], rest[:, :, 0, 1], rest[:, :, 1] = loc, -loc, scale
        x = torch.tensor([-1, -1 + 2/255, 1/255, 1 - 2/255, 1], dtype=dtype).expand(1, channels, 1, 5).clone()
        if cls is LogisticMixture: x[..., 1], x[..., 3] = -50, 50
        p.requires_grad_(), x.requires_grad_()
        lp = cls(p, channels).log_prob(x)
        assert torch.isfinite(lp).all(), (scale, loc)
        for g in torch.autograd.grad(lp.sum(), (p, x)): assert torch.isfinite(g).all(), (scale, loc)

@BOTH
@pytest.mark.parametrize('channels', [1, 3])
def test_gradients_are_right(cls, channels):
    x = quantize(randn(1, channels, 2, 2, seed=11)); x[0, 0, 0, 0], x[0, 0, 0, 1] = -1, 1
    p = randn(1, n_params(channels, 2), 2, 2, seed=10).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: cls(p, channels).log_prob(x), p)
    assert torch.autograd.gradgradcheck(lambda p: cls(p, channels).log_prob(x), p)

@pytest.mark.parametrize('channels', [1, 3])
def test_samples_pass_a_ks_test_and_a_wrong_model_fails_it(channels):
    p = randn(1, n_params(channels, 3), 1, 1, seed=12).expand(-1, -1, 1, 40_000)
    u = rand(1, channels+1, 1, 40_000, seed=13)
    m = LogisticMixture(p, channels)
    for x in (m.from_uniforms(u), m.icdf(u[:, 1:])):
        for c in range(channels): assert stats.kstest(m.cdf(x)[0, c, 0].numpy(), 'uniform').pvalue > 1e-3
    worse = p.clone(); worse[:, 3:6] += .2
    assert stats.kstest(LogisticMixture(worse, channels).cdf(m.from_uniforms(u))[0, 0, 0].numpy(), 'uniform').pvalue < 1e-6
    assert (m.mean[..., 0] - m.from_uniforms(u).mean(-1)).abs().max() < .1

def test_discretized_colour_samples_have_the_right_frequencies():
    "Counts of all 512 colours of an 8-level mixture; rounding to 8 levels takes the place of `quantize`"
    class Settled(EightLevels):
        def _to_support(self, x): return ((x.clamp(-1, 1) + 1)*3.5).round()/3.5 - 1
    p, n = randn(1, 20, 1, 1, seed=14), 60_000
    x = Settled(p.expand(-1, -1, 1, n), 3).from_uniforms(rand(1, 4, 1, n, seed=15))
    y = Settled(p.expand(-1, -1, 1, n), 3).icdf(rand(1, 3, 1, n, seed=16))
    colours = torch.cartesian_prod(*[torch.arange(8, dtype=f64)*2/7 - 1]*3).T.reshape(1, 3, 1, 512)
    want = n*EightLevels(p.expand(-1, -1, 1, 512), 3).log_prob(colours).exp().flatten()
    for values in (x, y):
        i = ((values + 1)*3.5).round().long()[0, :, 0]
        counts = torch.bincount(i[0]*64 + i[1]*8 + i[2], minlength=512)
        often = want > 5
        assert stats.chi2.sf(((counts - want)**2/want)[often].sum().item(), int(often.sum())) > 1e-3

@BOTH
@pytest.mark.parametrize('channels', [1, 3])
def test_a_sample_is_drawn_from_uniforms(cls, channels):
    "The same generator, the same sample; shape and type of the params; without a generator torch's own seed counts"
    p, g = randn(2, n_params(channels, 2), 3, 4), lambda seed=0: torch.Generator().manual_seed(seed)
    for dtype in (torch.float32, f64):
        m = cls(p.to(dtype), channels)
        x = m.sample(generator=g())
        assert x.shape == m.shape and x.dtype == dtype
        assert torch.equal(x, m.from_uniforms(torch.rand(2, channels+1, 3, 4, dtype=dtype, generator=g())))
        assert torch.equal(x, m.sample(generator=g())) and not torch.equal(x, m.sample(generator=g(1)))
        torch.manual_seed(7); a = m.sample()
        torch.manual_seed(7); assert torch.equal(a, m.sample()) and not torch.equal(a, m.sample())

@pytest.mark.parametrize('channels', [1, 3])
def test_what_sample_draws_passes_a_ks_test(channels):
    p = randn(1, n_params(channels, 3), 1, 1, seed=12).expand(-1, -1, 1, 20_000)
    m = LogisticMixture(p, channels)
    x = m.sample(generator=torch.Generator().manual_seed(3))
    for c in range(channels): assert stats.kstest(m.cdf(x)[0, c, 0].numpy(), 'uniform').pvalue > 1e-3
    assert stats.kstest(LogisticMixture(p + .2, channels).cdf(x)[0, 0, 0].numpy(), 'uniform').pvalue < 1e-6

@BOTH
def test_same_uniforms_same_sample(cls):
    m, u = cls(randn(2, 20, 3, 3), 3), rand(2, 4, 3, 3)
    assert torch.equal(m.from_uniforms(u), m.from_uniforms(u.clone())) and not torch.equal(m.from_uniforms(u), m.from_uniforms(1 - u))
    for ends in (torch.zeros_like(u), torch.ones_like(u)): assert torch.isfinite(m.from_uniforms(ends)).all()
    if cls is DiscretizedLogisticMixture: assert_close(m.from_uniforms(u), quantize(m.from_uniforms(u)), rtol=0, atol=1e-15)

def test_pixels_and_images_are_independent():
    p, x, u = randn(3, 30, 4, 5), randn(3, 3, 4, 5, seed=1), rand(3, 4, 4, 5)
    m, part = LogisticMixture(p, 3), LogisticMixture(p[1:2, :, 2:3, 4:], 3)
    assert_close(m.log_prob(x)[1:2, 2:3, 4:], part.log_prob(x[1:2, :, 2:3, 4:]))
    assert_close(m.from_uniforms(u)[1:2, :, 2:3, 4:], part.from_uniforms(u[1:2, :, 2:3, 4:]))

def test_quantize():
    assert_close(quantize(LEVELS), LEVELS, rtol=0, atol=0)
    assert torch.equal(quantize(torch.arange(256).float()/127.5 - 1), torch.arange(256).float()/127.5 - 1)
    assert quantize(torch.tensor([-7., 7.])).tolist() == [-1, 1]

@pytest.mark.parametrize('call,words', [
    (lambda: n_params(2, 5), r'channels must be one of \[1, 3\], got 2'),
    (lambda: n_params(1, 0), 'n_mix must be a whole number of at least 1, got 0'),
    (lambda: LogisticMixture(torch.zeros(1, 7, 2, 2)), r'params must be \(B, 3\*n_mix, H, W\), got \(1, 7, 2, 2\)'),
    (lambda: LogisticMixture(torch.zeros(1, 9, 2, 2), 3), r'params must be \(B, 10\*n_mix, H, W\)'),
    (lambda: LogisticMixture(torch.zeros(1, 0, 2, 2)), r'got \(1, 0, 2, 2\)'),
    (lambda: LogisticMixture(torch.zeros(6, 2, 2)), r'got \(6, 2, 2\)'),
    (lambda: LogisticMixture(torch.zeros(1, 6, 2, 2)).log_prob(torch.zeros(1, 3, 2, 2)), r'x must be \(1, 1, 2, 2\), got \(1, 3, 2, 2\)'),
    (lambda: LogisticMixture(torch.zeros(1, 6, 2, 2)).cdf(torch.zeros(1, 1, 2)), r'x must be \(1, 1, 2, 2\), got \(1, 1, 2\)'),
    (lambda: LogisticMixture(torch.zeros(1, 6, 2, 2)).icdf(torch.zeros(1, 2, 2, 2)), 'u must be'),
    (lambda: LogisticMixture(torch.zeros(1, 6, 2, 2)).icdf(torch.full((1, 1, 2, 2), 1.5)), r'u must lie in \[0, 1\], found 1.5'),
    (lambda: LogisticMixture(torch.zeros(1, 6, 2, 2)).icdf(torch.full((1, 1, 2, 2), torch.nan)), 'u holds NaN or infinite values'),
    (lambda: LogisticMixture(torch.zeros(1, 6, 2, 2)).from_uniforms(torch.zeros(1, 1, 2, 2)), r'uniforms must be \(1, 2, 2, 2\), got \(1, 1, 2, 2\)'),
])
def test_errors_name_the_argument(call, words):
    with pytest.raises(ValueError, match=words): call()

def test_other_errors():
    with pytest.raises(TypeError, match='params must be a float tensor, got torch.int64'): LogisticMixture(torch.zeros(1, 6, 2, 2).long())
    with pytest.raises(NotImplementedError, match='no closed form'): DiscretizedLogisticMixture(torch.zeros(1, 10, 2, 2), 3).mean
    assert repr(LogisticMixture(torch.zeros(1, 6, 4, 2))) == 'LogisticMixture(shape=(1, 1, 4, 2), n_mix=2)'

def test_a_clean_process_has_every_name():
    code = 'from distsmooth.logistic import *; m = LogisticMixture(__import__("torch").zeros(1, 6, 1, 1)); print(m.icdf(m.mean*0 + .5).item(), DiscretizedLogisticMixture(__import__("torch").zeros(1, 6, 1, 1)).mean.item())'
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert abs(float(out.stdout.split()[0])) < 1e-6 and abs(float(out.stdout.split()[1])) < 1e-6

# one uniform, one sample: transforms and temperature

def random_mixture(kind, channels, n_mix=4, n=500, seed=0):
    g = torch.Generator().manual_seed(seed)
    params = torch.randn(2, n_params(channels, n_mix), 1, n, dtype=torch.float64, generator=g)
    params[:, n_mix:] *= .5
    return kind(params, channels), torch.rand(2, channels+1, 1, n, dtype=torch.float64, generator=g)

KINDS = [(LogisticMixture, 1), (LogisticMixture, 3), (DiscretizedLogisticMixture, 1), (DiscretizedLogisticMixture, 3)]

@pytest.mark.parametrize('kind, channels', KINDS)
def test_icdf_transform_is_the_quantile(kind, channels):
    mix, u = random_mixture(kind, channels)
    x = mix.from_uniforms(u, 'icdf')
    assert torch.equal(x, mix.icdf(u[:, 1:]))
    assert torch.equal(x, mix.from_uniforms(torch.cat([1 - u[:, :1], u[:, 1:]], 1), 'icdf'))    # the first uniform has no say
    if kind is LogisticMixture: assert_close(mix.cdf(x), u[:, 1:], rtol=0, atol=1e-12)

@pytest.mark.parametrize('sharp', [-7., -4., -1.])
@pytest.mark.parametrize('dtype, atol', [(torch.float32, 2e-6), (torch.float64, 1e-13)])
def test_icdf_against_scipys_root_finder(sharp, dtype, atol):
    "Needles beside hills, where Newton's method alone gets lost"
    g, K, n = torch.Generator().manual_seed(1), 5, 40
    logits, means = torch.randn(K, n, generator=g, dtype=torch.float64)*2, torch.rand(K, n, generator=g, dtype=torch.float64)*2 - 1
    scales = sharp + torch.rand(K, n, generator=g, dtype=torch.float64)*3
    u = torch.rand(1, 1, 1, n, generator=g, dtype=torch.float64)*.98 + .01
    mix = LogisticMixture(torch.cat([logits, means, scales])[None, :, None].to(dtype))
    found = mix.icdf(u.to(dtype)).flatten().double()
    w = logits.softmax(0)
    for k in range(n):
        f = lambda v: float((w[:, k]*torch.sigmoid((v - means[:, k])*torch.exp(-scales[:, k]))).sum() - u[0, 0, 0, k])
        root = optimize.brentq(f, -40, 40, xtol=1e-15, rtol=1e-14)
        slope = (f(root + 1e-6) - f(root - 1e-6))/2e-6
        assert abs(found[k] - root) < atol*(1 + 1/max(slope, 1e-3))

def test_icdf_is_monotone_and_continuous_in_the_parameters():
    mix, u = random_mixture(LogisticMixture, 1)
    lower = mix.icdf(u[:, 1:]*.999)
    assert (mix.icdf(u[:, 1:]) >= lower - 1e-14).all()
    T = [1 + 1e-6*k for k in range(3)]
    steps = torch.stack([mix.tempered(t).from_uniforms(u, 'icdf') for t in T]).diff(dim=0).abs()
    assert steps.max() < 1e-3 and steps.max() > 0

@pytest.mark.parametrize('kind, channels', KINDS)
@pytest.mark.parametrize('temperature', [.1, .7, 1., 2.])
def test_tempered_weights_and_scales(kind, channels, temperature):
    mix, u = random_mixture(kind, channels)
    new = mix.tempered(temperature)
    assert type(new) is kind and new.shape == mix.shape
    weights = mix.logits.exp()**(1/temperature)
    assert_close(new.logits.exp(), weights/weights.sum(1, keepdim=True))
    assert_close(new.log_scales.exp(), mix.log_scales.exp()*temperature)
    assert torch.equal(new.means, mix.means)
    if temperature == 1: assert torch.equal(mix.from_uniforms(u), new.from_uniforms(u))
    if kind is LogisticMixture and channels == 1: assert stats.kstest(new.cdf(new.from_uniforms(u)).flatten(), 'uniform').pvalue > 1e-3

@pytest.mark.parametrize('bad', [0, -1., math.inf, math.nan])
def test_bad_temperatures(bad):
    with pytest.raises(ValueError, match=f'temperature must be a number above 0, got {bad}'): random_mixture(LogisticMixture, 1)[0].tempered(bad)

def test_unknown_transform():
    mix, u = random_mixture(LogisticMixture, 1)
    with pytest.raises(ValueError, match=r"transform must be one of \['choice', 'icdf'\], got 'magic'"): mix.from_uniforms(u, 'magic')
