"Noise kernels and exact smoothing on the line: against SciPy, closed forms and simulation."
import math, re
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import integrate, signal, stats
from scipy.spatial.distance import cdist
from torch.testing import assert_close
from distsmooth.toys import NarrowModes
from distsmooth.data import load_dataset
from distsmooth.checks import check_sigma, check_sigma_range
from distsmooth.smoothing import GaussianKernel, Kernel, LaplaceKernel, UniformKernel, bias_variance, lipschitz, smooth_density, suggest_sigma

KERNELS = [GaussianKernel, LaplaceKernel, UniformKernel]
SCIPY = {GaussianKernel: lambda s: stats.norm(0, s), LaplaceKernel: lambda s: stats.laplace(0, s/2**.5), UniformKernel: lambda s: stats.uniform(-s*3**.5, 2*s*3**.5)}
GRID = np.linspace(-3, 3, 1201)
HILLS = NarrowModes([-.5, .1, .6], .1, [1, 2, 1])

def gen(seed=0): return torch.Generator().manual_seed(seed)

# --- sigma

@pytest.mark.parametrize('bad', [0, 0., -.1, float('nan'), float('inf'), -float('inf'), None, '0.3', True, [.3], torch.tensor(.3)])
@pytest.mark.parametrize('kind', KERNELS)
def test_bad_sigma(kind, bad):
    with pytest.raises(ValueError, match=f'sigma must be a number above 0, got {re.escape(repr(bad))}'): kind(bad)

def test_the_error_shows_the_value():
    with pytest.raises(ValueError, match='got -0.25'): check_sigma(-.25)

@pytest.mark.parametrize('good', [1, .3, np.float32(.5), np.float64(.5), np.int64(2)])
def test_good_sigma(good): assert check_sigma(good) == float(good) and type(check_sigma(good)) is float

def test_a_range_of_levels():
    assert check_sigma_range(None) is None
    for levels in ((.1, 1), [.1, 1.], (np.float64(.1), np.int64(1))):
        low, high = got = check_sigma_range(levels)
        assert type(got) is tuple and got == (.1, 1.) and type(low) is type(high) is float

@pytest.mark.parametrize('bad, says', [((1., .1), r'sigma_range must be \(lowest, highest\).*got \(1.0, 0.1\)'), ((.3, .3), r'got \(0.3, 0.3\)'), ((.1,), r'sigma_range must be.*got \(0.1,\)'),
    ((.1, .2, .3), 'sigma_range must be'), ((), 'sigma_range must be'), ((0, 1), 'sigma_range must be a number above 0, got 0'), ((-1, 1), 'got -1'), ((.1, math.inf), 'got inf'),
    ((math.nan, 1.), 'got nan'), ((.1, math.nan), 'got nan'), (('.1', 1.), "got '.1'"), ((.1, None), 'got None'), (.5, 'sigma_range must be.*got 0.5'), (0, 'sigma_range must be.*got 0')])
def test_no_range_of_levels(bad, says):
    with pytest.raises(ValueError, match=says): check_sigma_range(bad)

# --- kernels

@pytest.mark.parametrize('kind', KERNELS)
@settings(deadline=None, max_examples=25)
@given(sigma=st.floats(.01, 5), shift=st.floats(-1, 1), seed=st.integers(0, 1000))
def test_log_prob_is_scipys(kind, sigma, shift, seed):
    noise = 2*sigma*(2*torch.rand(3, 4, 2, dtype=torch.float64, generator=gen(seed)) - 1)
    x = torch.full_like(noise, shift)
    reference = SCIPY[kind](sigma).logpdf(noise.numpy()).sum((1, 2))
    assert_close(kind(sigma).log_prob(x + noise, x), torch.tensor(reference), rtol=1e-9, atol=1e-9)

@pytest.mark.parametrize('kind', KERNELS)
@pytest.mark.parametrize('sigma', [.05, .3, 2.])
def test_samples_follow_the_distribution(kind, sigma):
    x = .7*torch.ones(20000, dtype=torch.float64)
    noise = (kind(sigma).sample(x, gen(1)) - x).numpy()
    assert stats.kstest(noise, SCIPY[kind](sigma).cdf).pvalue > .01
    assert abs(noise.std()/sigma - 1) < .03 and abs(noise.mean()) < 4*sigma/math.sqrt(20000)

@pytest.mark.parametrize('kind', KERNELS)
def test_density_integrates_to_one(kind):
    k = kind(.3)
    total, _ = integrate.quad(lambda e: float(k.log_prob(torch.tensor([[e]], dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)).exp()), -6, 6, points=[-.3*3**.5, 0, .3*3**.5], limit=200)
    assert abs(total - 1) < 1e-7

@pytest.mark.parametrize('kind', KERNELS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_shapes_and_types(kind, dtype):
    x = torch.zeros(3, 1, 5, 4, dtype=dtype)
    noisy = kind(.3).sample(x, gen())
    assert noisy.shape == x.shape and noisy.dtype == dtype
    log_q = kind(.3).log_prob(noisy, x)
    assert log_q.shape == (3,) and log_q.dtype == dtype and log_q.isfinite().all()
    assert kind(.3).log_prob(noisy[:, 0, 0, 0], x[:, 0, 0, 0]).shape == (3,)

@pytest.mark.parametrize('kind', KERNELS)
def test_noise_can_be_drawn_again_and_is_independent(kind):
    x = torch.zeros(200, 50)
    a, b, c = (kind(.5).sample(x, gen(s)) for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
    correlation = np.corrcoef(a.numpy().T)
    assert np.abs(correlation - np.eye(50)).max() < .35 # 50 pixels, 200 images: all pairs near 0

@pytest.mark.parametrize('kind', KERNELS)
def test_noise_scales_with_sigma(kind):
    x = torch.zeros(1000, dtype=torch.float64)
    assert_close(kind(.6).sample(x, gen()), 3*kind(.2).sample(x, gen()))

def test_uniform_noise_is_bounded_and_never_impossible():
    k, bound = UniformKernel(.05), .05*3**.5
    x = load_dataset('digits', 'test').x[:1500]
    noisy = k.sample(x, gen())
    assert (noisy - x).abs().max() <= bound + 1e-6
    assert_close(k.log_prob(noisy, x), torch.full((1500,), -784*math.log(2*bound)), rtol=1e-5, atol=0)
    edge = torch.tensor([[bound*1.001]]); far = torch.tensor([[1., .3]])
    assert k.log_prob(edge, torch.zeros(1, 1)) == -math.inf and k.log_prob(far, torch.zeros(1, 2)) == -math.inf

@pytest.mark.parametrize('kind', KERNELS)
def test_every_dimension_counts(kind):
    "`log_prob` sums over dimensions and not over the batch: a change of one image leaves the others' values"
    x = torch.zeros(4, 1, 3, 3, dtype=torch.float64)
    noisy = kind(.4).sample(x, gen())
    log_q = kind(.4).log_prob(noisy, x)
    alone = torch.cat([kind(.4).log_prob(noisy[i:i+1], x[:1]) for i in range(4)])
    assert torch.equal(log_q, alone)
    assert_close(log_q, sum(kind(.4).log_prob(noisy[:, 0, r, c], x[:, 0, r, c]) for r in range(3) for c in range(3)))

def test_gaussian_score():
    x, noisy = torch.zeros(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64, generator=gen()).requires_grad_()
    score, = torch.autograd.grad(GaussianKernel(.3).log_prob(noisy, x).sum(), noisy)
    assert_close(score, -noisy.detach()/.3**2)

def test_kernel_faults():
    k = GaussianKernel(.3)
    with pytest.raises(ValueError, match=r'x_noisy must be \(1, 3\), got \(2, 3\)'): k.log_prob(torch.zeros(2, 3), torch.zeros(1, 3))
    for dtype in (torch.uint8, torch.int64, torch.bool):
        with pytest.raises(TypeError, match='x must be a float tensor, got torch'): k.sample(torch.zeros(3, dtype=dtype))

def test_equality_and_repr():
    assert GaussianKernel(.3) == GaussianKernel(.3) != GaussianKernel(.4) and GaussianKernel(.3) != LaplaceKernel(.3)
    assert len({GaussianKernel(.3), GaussianKernel(.3), LaplaceKernel(.3)}) == 2
    assert [repr(k(.3)) for k in KERNELS] == ['GaussianKernel(sigma=0.3)', 'LaplaceKernel(sigma=0.3)', 'UniformKernel(sigma=0.3)']
    assert all(issubclass(k, Kernel) for k in KERNELS)

# --- exact smoothing

@pytest.mark.parametrize('sigma', [.03, .1, .5])
def test_gaussian_smoothing_has_a_closed_form(sigma):
    q = smooth_density(HILLS.density, GaussianKernel(sigma), GRID)
    np.testing.assert_allclose(q, HILLS.smoothed(sigma).density(GRID), atol=1e-7)

@pytest.mark.parametrize('kind', KERNELS)
@pytest.mark.parametrize('sigma', [.05, .2])
def test_smoothing_against_adaptive_quadrature(kind, sigma):
    q, noise = smooth_density(HILLS.density, kind(sigma), GRID), SCIPY[kind](sigma)
    for i in (500, 601, 690):
        at = GRID[i]
        breaks = [*HILLS.centres.tolist(), at, at - sigma*3**.5, at + sigma*3**.5]
        exact, _ = integrate.quad(lambda x: noise.pdf(at - x)*float(HILLS.density(x)), -2, 2, points=breaks, limit=300)
        assert abs(q[i] - exact) < 5e-4*max(q)

@pytest.mark.parametrize('kind', KERNELS)
def test_smoothing_against_a_discrete_convolution(kind):
    step, noise = GRID[1] - GRID[0], SCIPY[kind](.2).pdf(GRID)
    reference = signal.fftconvolve(HILLS.density(GRID), noise, mode='same')*step
    np.testing.assert_allclose(smooth_density(HILLS.density, kind(.2), GRID), reference, atol=.01)

@pytest.mark.parametrize('kind', KERNELS)
@settings(deadline=None, max_examples=5)
@given(sigma=st.floats(.03, .4))
def test_mass_mean_and_variance(kind, sigma):
    "Noise of mean 0 keeps the mass and the mean and adds its variance"
    moments = lambda p: [float(integrate.simpson(p*GRID**k, x=GRID)) for k in range(3)]
    (m0, m1, m2), (q0, q1, q2) = moments(HILLS.density(GRID)), moments(smooth_density(HILLS.density, kind(sigma), GRID))
    assert abs(m0 - 1) < 1e-6 and abs(q0 - 1) < 2e-3 and abs(q1 - m1) < 2e-3 and abs(q2 - m2 - sigma**2) < 4e-3

@pytest.mark.parametrize('kind', KERNELS)
@pytest.mark.parametrize('sigma', [.02, .1, .4])
def test_smoothing_never_steepens(kind, sigma):
    q = smooth_density(HILLS.density, kind(sigma), GRID)
    assert lipschitz(q, GRID) < lipschitz(HILLS.density(GRID), GRID) and q.min() > -1e-9

def test_uniform_slope_is_the_difference_of_the_density():
    "q' = (p(x + a) - p(x - a)) / (2a)"
    a = .2*3**.5
    q = smooth_density(HILLS.density, UniformKernel(.2), GRID)
    exact = (HILLS.density(GRID + a) - HILLS.density(GRID - a))/(2*a)
    np.testing.assert_allclose(np.gradient(q, GRID), exact, atol=.02)

def test_support_may_differ_from_the_grid():
    coarse = np.linspace(-1, 1, 7)
    for kind in KERNELS:
        fine = smooth_density(HILLS.density, kind(.2), GRID)
        np.testing.assert_allclose(smooth_density(HILLS.density, kind(.2), coarse, support=GRID), np.interp(coarse, GRID, fine), atol=2e-3)

@pytest.mark.parametrize('grid,word', [(GRID[::-1], 'ascending'), (GRID[:2], 'at least 3'), (GRID[None], 'shape'), (np.array([0, 0, 1.]), 'ascending'), (np.linspace(-1, 1, 5), 'too coarse for sigma=0.1')])
def test_bad_grids(grid, word):
    with pytest.raises(ValueError, match=word): smooth_density(HILLS.density, GaussianKernel(.1), grid)

def test_bad_support_is_named():
    with pytest.raises(ValueError, match='support'): smooth_density(HILLS.density, GaussianKernel(.1), GRID, support=GRID[::-1])

# --- slopes

def test_lipschitz_of_known_functions():
    assert_close(lipschitz(-2.5*GRID + 1, GRID), 2.5)
    assert lipschitz(np.ones_like(GRID), GRID) == 0
    assert abs(lipschitz(np.sin(GRID), GRID) - 1) < 1e-5
    uneven = np.array([0., 1., 1.5]); assert lipschitz(np.array([0., 1., 3.]), uneven) == 4.

@settings(deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=3, max_size=20), st.floats(.1, 10))
def test_lipschitz_scales(values, factor):
    grid = np.arange(len(values), dtype=float)
    assert_close(lipschitz(factor*np.array(values), grid), factor*lipschitz(values, grid))
    assert_close(lipschitz(values, factor*grid), lipschitz(values, grid)/factor)

def test_lipschitz_grows_with_the_grid():
    slopes = [lipschitz(HILLS.density(g), g) for g in (GRID[::16], GRID[::4], GRID)]
    assert slopes == sorted(slopes)

def test_lipschitz_faults():
    with pytest.raises(ValueError, match='values'): lipschitz(GRID[:-1], GRID)
    with pytest.raises(ValueError, match='ascending'): lipschitz(GRID, GRID[::-1])

# --- bias and variance

@pytest.mark.parametrize('kind', KERNELS)
def test_bias_variance_against_simulation(kind):
    n, repeats, look, k = 20, 300, np.linspace(-2.5, 2.5, 401), kind(.15)
    points = HILLS.sample(n*repeats, gen()).double().numpy().reshape(repeats, n)
    curves = np.stack([SCIPY[kind](.15).pdf(look[:, None] - p).mean(1) for p in points])
    errors = integrate.simpson((curves - HILLS.density(look))**2, x=look, axis=1)
    bias, variance = bias_variance(HILLS.density, k, n, look)
    assert abs(bias + variance - errors.mean()) < 4*errors.std()/math.sqrt(repeats) + 1e-3
    spread = integrate.simpson(curves.var(0, ddof=1), x=look)
    assert abs(variance/spread - 1) < .2

def test_gaussian_bias_and_variance_have_closed_forms():
    "One normal mode of width w under noise s: everything is an integral of products of normal densities"
    w, s, n = .3, .2, 7
    overlap = lambda a, b: 1/math.sqrt(2*math.pi*(a*a + b*b)) # integral of N(0, a^2) N(0, b^2)
    wide = math.hypot(w, s)
    bias, variance = bias_variance(NarrowModes([0.], w).density, GaussianKernel(s), n, GRID)
    assert_close(bias, overlap(wide, wide) - 2*overlap(wide, w) + overlap(w, w), rtol=1e-6, atol=1e-9)
    assert_close(variance, (overlap(s, s) - overlap(wide, wide))/n, rtol=1e-6, atol=1e-9)

def test_trade_off():
    t = np.array([bias_variance(HILLS.density, GaussianKernel(s), 100, GRID) for s in (.02, .05, .1, .2, .4)])
    assert (np.diff(t[:, 0]) > 0).all() and (np.diff(t[:, 1]) < 0).all() and 0 < t.sum(1).argmin() < 4
    b1, v1 = bias_variance(HILLS.density, GaussianKernel(.1), 10, GRID)
    b2, v2 = bias_variance(HILLS.density, GaussianKernel(.1), 40, GRID)
    assert b1 == b2 and abs(v1/v2 - 4) < 1e-9

@pytest.mark.parametrize('n', [0, -3, 2.5, None])
def test_bad_n(n):
    with pytest.raises(ValueError, match='n must be'): bias_variance(HILLS.density, GaussianKernel(.1), n, GRID)

# --- a rule for sigma

@settings(deadline=None, max_examples=20)
@given(st.integers(2, 30), st.integers(1, 20), st.integers(0, 999))
def test_suggest_sigma_is_half_the_mean_distance(n, d, seed):
    x = torch.randn(n, d, dtype=torch.float64, generator=gen(seed))
    distances = cdist(x, x)[np.triu_indices(n, 1)]
    assert_close(suggest_sigma(x), distances.mean()/2/math.sqrt(d))
    assert_close(suggest_sigma(x + 5), suggest_sigma(x), rtol=1e-6, atol=1e-9)
    assert_close(suggest_sigma(.1*x), .1*suggest_sigma(x))
    assert_close(suggest_sigma(x[:, None, :].repeat(1, 3, 1)), suggest_sigma(x))

def test_suggest_sigma_of_noise():
    "Two noise vectors of level s are s*sqrt(2D) apart: the rule says s/sqrt(2)"
    assert abs(suggest_sigma(.4*torch.randn(200, 1000, generator=gen())) - .4/math.sqrt(2)) < .002

def test_suggest_sigma_for_the_digits():
    "Below the published 0.5"
    assert .34 < suggest_sigma(load_dataset('digits').x[:500]) < .38

@pytest.mark.parametrize('x', [torch.zeros(1, 4), torch.zeros(4), torch.zeros(0, 3), torch.tensor([[0., math.nan], [1., 2.]]), torch.tensor([[0., math.inf], [1., 2.]])])
def test_suggest_sigma_faults(x):
    with pytest.raises(ValueError, match='x must hold|x holds NaN'): suggest_sigma(x)
