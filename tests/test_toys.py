"Toy densities: samples, exactness, smoothing and faults."
import subprocess, sys
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import integrate, stats
from torch.testing import assert_close
from distsmooth.toys import TOYS, NarrowModes, Olympics, Pinwheel, Rings, load_toy

def gen(seed=0): return torch.Generator().manual_seed(seed)

ALL = [NarrowModes(), NarrowModes([0., .5], .1, [1, 3]), Rings(), Rings((.5,), .2), Olympics(), Olympics(.2, .08), Pinwheel(), Pinwheel(3, -6., .4, .2, .1), Pinwheel(arms=1, twist=0.)]
PLANE = [t for t in ALL if t.dims == 2]
name = lambda t: repr(t)

def on_plane(toy, n=701, lim=1.9):
    axis = np.linspace(-lim, lim, n)
    return axis, toy.density(np.stack(np.meshgrid(axis, axis, indexing='ij'), -1))

@pytest.mark.parametrize('toy', [t for t in ALL if t.dims == 1], ids=name)
def test_line_integrates_to_one_and_samples_fit(toy):
    total, _ = integrate.quad(toy.density, -3, 3, points=toy.centres.tolist(), limit=300)
    assert abs(total - 1) < 1e-8
    cdf = lambda x: sum(w*stats.norm.cdf(x, c, toy.width) for w, c in zip(toy.weights.tolist(), toy.centres.tolist()))
    assert stats.kstest(toy.sample(5000, gen()).double().numpy()[:, 0], cdf).pvalue > .01

@pytest.mark.parametrize('toy', PLANE, ids=name)
def test_plane_integrates_to_one(toy):
    axis, p = on_plane(toy)
    assert abs(integrate.simpson(integrate.simpson(p, x=axis), x=axis) - 1) < 1e-6

@pytest.mark.parametrize('toy', PLANE, ids=name)
def test_plane_samples_fit(toy):
    "Chi-square of the counts in 100 cells against the integral of the density"
    axis, p = on_plane(toy)
    cells = p[:-1, :-1].reshape(10, 70, 10, 70).sum((1, 3))*(axis[1] - axis[0])**2 # the density is smooth on the grid: plain sums
    edges = axis[::70]
    shift = (axis[1] - axis[0])/2
    counts, *_ = np.histogram2d(*toy.sample(20000, gen(1)).double().numpy().T, bins=[edges - shift, edges - shift])
    keep = cells*20000 > 10
    chi2 = ((counts - 20000*cells)[keep]**2/(20000*cells)[keep]).sum()
    assert cells[keep].sum() > .99 and stats.chi2.sf(chi2, keep.sum()) > 1e-3

@pytest.mark.parametrize('toy', ALL, ids=name)
def test_toy_contract(toy):
    a, b = toy.sample(50, gen(3)), toy.sample(50, gen(3))
    assert torch.equal(a, b) and a.shape == (50, toy.dims) and a.dtype == torch.float32
    assert not torch.equal(a, toy.sample(50, gen(4)))
    log_p = toy.log_prob(a.double())
    assert log_p.shape == (50,) and log_p.dtype == torch.float64 and log_p.isfinite().all()
    assert toy.log_prob(a).dtype == torch.float32
    assert_close(torch.tensor(toy.density(a.numpy())).flatten(), log_p.exp())

@pytest.mark.parametrize('toy', ALL, ids=name)
def test_toy_score_is_the_gradient(toy):
    x = toy.sample(20, gen()).double()*1.01
    assert torch.autograd.gradcheck(lambda x: toy.log_prob(x), x.requires_grad_(), eps=1e-7, atol=1e-2, rtol=1e-3)

@pytest.mark.parametrize('toy', PLANE, ids=name)
def test_finite_at_the_centre_and_far_away(toy):
    x = torch.tensor([[0., 0.], [50., -70.]], dtype=torch.float64, requires_grad=True)
    log_p = toy.log_prob(x)
    score, = torch.autograd.grad(log_p.sum(), x)
    assert log_p.isfinite().all() and score.isfinite().all() and log_p[1] < -1000

@settings(deadline=None, max_examples=20)
@given(st.floats(.02, .3), st.floats(.2, .9))
def test_ring_is_a_blurred_circle(width, radius):
    "Against the integral around the circle"
    toy, point = Rings((radius,), width), np.array([.4, -.3])
    around = lambda a: stats.multivariate_normal.pdf(point - radius*np.array([np.cos(a), np.sin(a)]), [0, 0], width**2)/(2*np.pi)
    exact, _ = integrate.quad(around, -np.pi, np.pi, points=[np.arctan2(-.3, .4)], epsabs=1e-13, limit=200)
    assert_close(float(toy.density(point)), exact, rtol=1e-6, atol=1e-10)

def test_no_twist_is_a_plain_mixture():
    toy, x = Pinwheel(4, 0., .5, .2, .1), torch.randn(30, 2, dtype=torch.float64, generator=gen())
    D, parts = torch.distributions, []
    for k in range(4):
        along = torch.tensor([np.cos(np.pi*k/2), np.sin(np.pi*k/2)]); across = torch.tensor([-along[1], along[0]])
        cov = .2**2*torch.outer(along, along) + .1**2*torch.outer(across, across)
        parts.append(D.MultivariateNormal(.5*along, cov).log_prob(x))
    assert_close(toy.log_prob(x), torch.logsumexp(torch.stack(parts), 0) - np.log(4))

@pytest.mark.parametrize('toy', [t for t in ALL if not isinstance(t, Pinwheel)], ids=name)
def test_smoothed_toy_is_the_convolution(toy):
    "Mean of the density over many noises, at a few points"
    wide, x = toy.smoothed(.2), toy.sample(5, gen(5)).double()
    noise = .2*torch.randn(40000, toy.dims, dtype=torch.float64, generator=gen(6))
    for point in x:
        p = torch.tensor(toy.density((point - noise).numpy())).flatten()
        error = p.std()/200
        assert abs(p.mean() - wide.log_prob(point[None]).exp()[0]) < 5*error + 1e-9
    assert toy.width != wide.width and wide.smoothed(0.).width == wide.width

@pytest.mark.parametrize('shape', [(), (6,), (2, 3)])
def test_density_keeps_the_shape(shape):
    "On the line numbers of any shape, in the plane pairs of any shape; the same values as one at a time"
    line = np.linspace(-.8, .8, int(np.prod(shape))).reshape(shape)
    plane = np.stack([line, line/2 + .1], -1)
    for toy, points in ((NarrowModes(width=.2), line), (Pinwheel(), plane)):
        p = toy.density(points)
        one = [toy.log_prob(torch.tensor(np.atleast_1d(points[i]))[None]).exp().item() for i in np.ndindex(shape)]
        assert p.shape == shape and p.dtype == np.float64 and np.allclose(p.flatten(), one, rtol=1e-12)

def test_toys_need_no_images():
    "Neither Pillow nor torchvision is imported"
    code = "import sys, distsmooth.toys\nprint({'PIL', 'torchvision'} & set(sys.modules))"
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert out.stdout.strip() == 'set()', out.stdout + out.stderr

def test_toy_faults():
    with pytest.raises(ValueError, match="'moons'"): load_toy('moons')
    with pytest.raises(ValueError, match='Pinwheel'): Pinwheel().smoothed(.1)
    with pytest.raises(ValueError, match=r'weights must be \(4,\), got \(2,\)'): NarrowModes(weights=[1, 2])
    for arms in (0, -1, 2.5):
        with pytest.raises(ValueError, match=f'arms .*{arms}'): Pinwheel(arms=arms)
    for sigma in (-.1, float('nan'), float('inf'), 'a'):
        with pytest.raises(ValueError, match='sigma'): Rings().smoothed(sigma)
    for toy, bad in ((Rings(), torch.zeros(3)), (Rings(), torch.zeros(3, 1)), (NarrowModes(), torch.zeros(3, 2))):
        with pytest.raises(ValueError, match='points must be'): toy.log_prob(bad)
    for n in (0, -1, 2.5):
        with pytest.raises(ValueError, match='n must be'): Rings().sample(n)

@pytest.mark.parametrize('make,word', [(lambda v: NarrowModes(width=v), 'width'), (lambda v: NarrowModes([0.], weights=[v]), 'weights'), (lambda v: Rings((.3, v)), 'radii'),
    (lambda v: Rings(width=v), 'width'), (lambda v: Olympics(v), 'radius'), (lambda v: Pinwheel(length=v), 'length'), (lambda v: Pinwheel(width=v), 'width')])
@pytest.mark.parametrize('value', [0., -1., float('nan'), float('inf')])
def test_toy_parameters(make, word, value):
    with pytest.raises(ValueError, match=word): make(value)

def test_all_toys_by_name():
    assert {type(load_toy(name)) for name in TOYS} == {NarrowModes, Rings, Olympics, Pinwheel}
    assert load_toy('rings', width=.01).width == .01
