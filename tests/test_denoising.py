"Single-step denoising: against closed forms, finite differences and the exact density of a finite data set"
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.testing import assert_close

from distsmooth.denoising import SmoothedDataset, joint_score, local_score, score, single_step
from distsmooth.made import MADE
from distsmooth.pixelcnn import PixelCNNpp
from distsmooth.smoothing import GaussianKernel

SCORE_OF = score  # where an argument has its name

def rand(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

class GaussianChain:
    "`N(0, cov)` as an exact autoregressive distribution"
    def __init__(self, cov): self.L = torch.linalg.cholesky(cov)
    def mixture(self, x):
        mean = x - torch.linalg.solve_triangular(self.L, x[..., None], upper=False)[..., 0]*self.L.diagonal()
        return torch.distributions.Normal(mean, self.L.diagonal())
    def log_prob(self, x): return self.mixture(x).log_prob(x).sum(-1)

def some_cov(n, seed=0):
    a = rand(n, n, seed=seed)
    return a@a.T/n + 0.1*torch.eye(n, dtype=torch.float64)

def tiny(channels=1, **kw):
    torch.manual_seed(0)
    return PixelCNNpp(channels, size=4, n_filters=4, n_resnet=1, n_mix=2, **{'dropout': 0., **kw}).double().eval()

# the joint score is Tweedie's posterior mean

@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 6), sigma=st.floats(0.1, 2), seed=st.integers(0, 1000))
def test_joint_step_is_the_posterior_mean_of_gaussian_data(n, sigma, seed):
    cov, x = some_cov(n, seed), rand(3, n, seed=seed+1)
    q = cov + sigma**2*torch.eye(n, dtype=torch.float64)
    assert_close(single_step(GaussianChain(q), x, sigma), torch.linalg.solve(q, x.T).T@cov)

@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 5), sigma=st.floats(0.1, 2), seed=st.integers(0, 1000))
def test_local_step_is_the_posterior_mean_given_the_past(n, sigma, seed):
    cov, x = some_cov(n, seed), rand(3, n, seed=seed+1)
    q = cov + sigma**2*torch.eye(n, dtype=torch.float64)
    seen = [torch.linalg.solve(q[:i+1, :i+1], x[:, :i+1].T).T@cov[:i+1, i] for i in range(n)]
    assert_close(single_step(GaussianChain(q), x, sigma, 'local'), torch.stack(seen, 1))

@pytest.mark.parametrize('shape', [(1,), (5,), (1, 4, 3), (3, 2, 2)])
@pytest.mark.parametrize('sigma', [0.05, 0.4, 2.])
def test_single_step_on_a_data_set_is_its_posterior_mean(shape, sigma):
    exact, x = SmoothedDataset(rand(7, *shape), sigma), rand(4, *shape, seed=1)
    out = single_step(exact, x, sigma)
    assert out.shape == x.shape
    assert_close(out, exact.denoise(x))

def test_scores_differ_but_for_the_last_pixel():
    chain, x = GaussianChain(some_cov(4)), rand(5, 4, seed=3)
    joint, local = score(chain, x), score(chain, x, 'local')
    assert_close(joint[:, -1], local[:, -1])
    assert ((joint - local)[:, :-1].abs().amax(0) > 1e-2).all()

def test_scores_agree_without_correlation():
    chain, x = GaussianChain(torch.eye(4, dtype=torch.float64)*2), rand(5, 4)
    assert_close(score(chain, x), score(chain, x, 'local'))
    assert_close(score(chain, x), -x/2)

# networks: finite differences

def slopes(f, x, h=1e-6):
    "Central differences of `f` (a number) in every value of `x`"
    out = torch.empty_like(x)
    for i in range(x.numel()):
        e = torch.zeros(x.numel(), dtype=x.dtype); e[i] = h
        e = e.view_as(x)
        out.view(-1)[i] = (f(x + e) - f(x - e))/(2*h)
    return out

@pytest.mark.parametrize('model', [tiny(), tiny(3), MADE((2, 3), (16,), 2).double()], ids=['grey', 'colour', 'made'])
def test_network_scores_match_finite_differences(model):
    x = 0.5*rand(1, model.channels, *model.size, seed=2)
    with torch.no_grad():
        params = model(x)
        joint = slopes(lambda t: model.log_prob(t).item(), x)
        local = slopes(lambda t: model.mixture(params).log_prob(t).sum().item(), x)
    assert_close(score(model, x), joint, atol=1e-6, rtol=1e-5)
    assert_close(score(model, x, 'local'), local, atol=1e-6, rtol=1e-5)
    assert (joint - local).abs().max() > 1e-4
    assert_close((joint - local)[..., -1, -1], torch.zeros(1, model.channels, dtype=x.dtype), atol=1e-6, rtol=0)

def test_context_reaches_the_score():
    model, x = tiny(context_channels=1), rand(2, 1, 4, 4)
    a, b = (single_step(model, x, 0.5, context=rand(2, 1, 4, 4, seed=s)) for s in (1, 2))
    assert (a - b).abs().max() > 1e-8
    with pytest.raises(ValueError, match='context'): single_step(model, x, 0.5)

def test_images_of_a_batch_do_not_mix():
    model, x = tiny(), rand(3, 1, 4, 4)
    for kind in ('joint', 'local'):
        assert_close(single_step(model, x, 0.5, kind), torch.cat([single_step(model, one[None], 0.5, kind) for one in x]))

def test_it_leaves_everything_as_it_was():
    model, x = tiny(dropout=0.5).train(), rand(2, 1, 4, 4)
    before = x.clone()
    with torch.no_grad(): a, b = single_step(model, x, 0.5), single_step(model, x, 0.5)
    assert_close(a, b, rtol=0, atol=0)          # no dropout inside
    assert model.training and not a.requires_grad and not x.requires_grad
    assert_close(x, before, rtol=0, atol=0)
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(ValueError): single_step(model, x, 0.5, context=x)
    assert model.training                        # also after an error

def test_every_part_keeps_its_own_mode():
    "A part that is frozen in evaluation mode while the rest trains, and the other way round"
    for train in (True, False):
        model = tiny(dropout=.5).train(train)
        model.up.train(not train); model.down[1].horizontal[0].dropout.train(not train)
        modes, inside = {m: m.training for m in model.modules()}, []
        model.register_forward_hook(lambda *_: inside.append(any(m.training for m in model.modules())))
        assert len(set(modes.values())) == 2
        for kind in ('joint', 'local'): single_step(model, rand(2, 1, 4, 4), .5, kind)
        model.register_forward_hook(lambda *_: 1/0)
        with pytest.raises(ZeroDivisionError): single_step(model, rand(2, 1, 4, 4), .5)
        assert inside == [False]*3 and {m: m.training for m in model.modules()} == modes

@pytest.mark.parametrize('model, label', [(tiny(), None), (tiny(3, n_classes=3), torch.tensor([0, 2]))], ids=['grey', 'colour, labels'])
def test_the_score_has_one_name_and_one_value(model, label):
    x, dist = 0.5*rand(2, model.channels, 4, 4), model.dist(label=label)
    y = x.clone().requires_grad_()
    want, = torch.autograd.grad(model.log_prob(y, label=label).sum(), y)
    for got in (dist.score(x), score(dist, x), score(dist, x, 'joint'), joint_score(dist, x)): assert torch.equal(got, want)
    assert torch.equal(score(dist, x, 'local'), local_score(dist, x)) and (local_score(dist, x) - want).abs().max() > 1e-6
    if label is None: assert torch.equal(score(model, x), want) and torch.equal(score(model, x, 'local'), local_score(dist, x))

def test_labels_of_the_step():
    model, x = tiny(n_classes=3), 0.5*rand(2, 1, 4, 4)
    each = single_step(model, x, .5, label=torch.tensor([1, 1]))
    for one in (1, torch.tensor(1), torch.tensor([1]), [1, 1]): assert_close(single_step(model, x, .5, label=one), each, rtol=1e-12, atol=1e-12)
    assert ((single_step(model, x, .5, label=torch.tensor([1, 2])) - each).abs().flatten(1).amax(1) > 1e-9).tolist() == [False, True]
    with pytest.raises(ValueError, match='label must be given'): single_step(model, x, .5)
    with pytest.raises(ValueError, match='label must be None'): single_step(tiny(), x, .5, label=1)
    with pytest.raises(ValueError, match=r'label must be one or \(2,\) of them, got \(3,\)'): single_step(model, x, .5, label=[0, 1, 2])
    with pytest.raises(ValueError, match=r'label must be a whole number in \[0, 2\], got 3'): single_step(model, x, .5, label=[0, 3])

def test_a_number_is_as_exact_as_a_float64_tensor():
    "0.3 is not a float32: rounded to one, it would be 1e-8 off"
    told, plain, data, x = tiny(sigma_range=(.1, 1.)), tiny(), SmoothedDataset(rand(5, 1, 4, 4), .3), 0.5*rand(2, 1, 4, 4)
    for s in (.3, 1/3, .7):
        exact = torch.tensor(s, dtype=torch.float64)
        for model in (told, plain, data): assert torch.equal(single_step(model, x, s), single_step(model, x, exact))
        assert torch.equal(told.log_prob(x, sigma=s), told.log_prob(x, sigma=exact)) and torch.equal(told(x, sigma=s), told(x, sigma=exact))
        assert not torch.equal(told.log_prob(x, sigma=s), told.log_prob(x, sigma=exact.float()))
        assert (single_step(plain, x, s) - single_step(plain, x, exact.float())).abs().max() > 1e-12

def test_it_works_in_inference_mode():
    model, x = tiny(), rand(2, 1, 4, 4)
    with torch.inference_mode(): out = single_step(model, x + 0, 0.5)
    assert_close(out.clone(), single_step(model, x, 0.5))

# the exact density

def test_density_integrates_to_one():
    grid = torch.linspace(-6, 6, 301, dtype=torch.float64)
    at = torch.stack(torch.meshgrid(grid, grid, indexing='ij'), -1).view(-1, 2)
    p = SmoothedDataset(rand(5, 2), 0.5).log_prob(at).exp().view(301, 301)
    assert_close(torch.trapezoid(torch.trapezoid(p, grid), grid), torch.tensor(1., dtype=torch.float64), atol=1e-6, rtol=0)

def test_density_against_torch_distributions():
    x, at = rand(6, 3), rand(9, 3, seed=1)
    each = torch.distributions.Independent(torch.distributions.Normal(x, 0.3), 1)
    mix = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(torch.ones(6, dtype=torch.float64)), each)
    assert_close(SmoothedDataset(x, 0.3).log_prob(at), mix.log_prob(at))

def test_one_point_is_the_kernel():
    x, at = rand(1, 1, 4, 4), rand(3, 1, 4, 4, seed=1)
    exact = SmoothedDataset(x, 0.4)
    assert_close(exact.log_prob(at), GaussianKernel(0.4).log_prob(at, x.expand_as(at)))
    for kind in ('joint', 'local'): assert_close(exact.denoise(at, kind), x.expand_as(at))

@pytest.mark.parametrize('shape', [(4,), (1, 2, 3), (3, 2, 2)])
def test_exact_local_form_is_the_slope_of_own_terms(shape):
    sigma, exact, at = 0.7, SmoothedDataset(rand(5, *shape), 0.7), rand(1, *shape, seed=1)
    C = shape[0] if len(shape) == 3 else 1
    n = at.numel()//C
    pixels = lambda x: x.reshape(len(x), C, n).transpose(1, 2).flatten(1)        # a pixel's channels side by side
    data, x = pixels(exact.x), pixels(at).requires_grad_()
    prefix = lambda k: SmoothedDataset(data[:, :C*k], sigma).log_prob(x[:, :C*k])[0] if k else 0.
    own = [torch.autograd.grad(prefix(i+1) - prefix(i), x)[0][0, C*i:C*i+C] for i in range(n)]
    want = (x.detach() + sigma**2*torch.cat(own)).view(1, n, C).transpose(1, 2).reshape(at.shape)
    assert_close(exact.denoise(at, 'local'), want)
    last = (..., -1, -1) if len(shape) == 3 else (..., -1)
    assert_close(exact.denoise(at, 'local')[last], exact.denoise(at)[last])

@settings(max_examples=30, deadline=None)
@given(sigma=st.floats(0.01, 3), seed=st.integers(0, 1000))
def test_posterior_mean_stays_within_the_data(sigma, seed):
    data, at = rand(5, 3, seed=seed), 5*rand(4, 3, seed=seed+1)
    for kind in ('joint', 'local'):
        out = SmoothedDataset(data, sigma).denoise(at, kind)
        assert (out <= data.amax(0) + 1e-9).all() and (out >= data.amin(0) - 1e-9).all()

def test_limits_of_sigma():
    data, at = rand(6, 3), rand(4, 3, seed=1)
    nearest = data[torch.cdist(at, data).argmin(1)]
    assert_close(SmoothedDataset(data, 1e-3).denoise(at), nearest)
    assert_close(SmoothedDataset(data, 1e4).denoise(at), data.mean(0).expand_as(at), atol=1e-6, rtol=0)

def test_small_sigma_is_exact_in_single_precision():
    "Distances by `a*a - 2*a*b + b*b` fail this"
    data = torch.stack([torch.ones(784), torch.ones(784) + 1e-3])
    out = SmoothedDataset(data, 0.01).denoise(data[:1] + 2e-4)
    double = SmoothedDataset(data.double(), 0.01).denoise(data[:1].double() + 2e-4)
    assert_close(out.double(), double, atol=2e-5, rtol=0)

def test_no_estimate_beats_the_posterior_mean():
    gen, data = torch.Generator().manual_seed(0), rand(4, 2)
    x = data[torch.randint(4, (20000,), generator=gen)]
    noisy = GaussianKernel(0.6).sample(x, gen)
    exact = SmoothedDataset(data, 0.6)
    error = lambda out: ((out - x)**2).mean().item()
    mean, local = exact.denoise(noisy), single_step(exact, noisy, 0.6)
    assert_close(mean, local)
    nearest = data[torch.cdist(noisy, data).argmin(1)]
    for other in (noisy, nearest, 1.1*mean, exact.denoise(noisy[:2000], 'local')):
        assert error(mean) < error(other) if len(other) == len(x) else ((mean[:2000] - x[:2000])**2).mean() < ((other - x[:2000])**2).mean()

# faults

@pytest.mark.parametrize('sigma', [0, -1., math.nan, math.inf, None, '0.5'])
def test_bad_sigma(sigma):
    with pytest.raises(ValueError, match=f'sigma must be a number above 0, got {sigma!r}'): single_step(tiny(), rand(1, 1, 4, 4), sigma)
    with pytest.raises(ValueError, match=f'sigma must be a number above 0, got {sigma!r}'): SmoothedDataset(rand(2, 2), sigma)

def test_a_data_set_has_one_level():
    with pytest.raises(ValueError, match=r'sigma must be a number above 0, got tensor\(0.5'): SmoothedDataset(rand(2, 2), torch.tensor(.5))

@pytest.mark.parametrize('score', ['', 'Joint', None, 1])
def test_bad_score(score):
    says = rf"score must be one of \['joint', 'local'\], got {score!r}"
    with pytest.raises(ValueError, match=says): single_step(tiny(), rand(1, 1, 4, 4), 0.5, score)
    with pytest.raises(ValueError, match=says): SmoothedDataset(rand(2, 2), 0.5).denoise(rand(1, 2), score)
    with pytest.raises(ValueError, match=says.replace('score', 'kind', 1)): SCORE_OF(tiny(), rand(1, 1, 4, 4), score)

def test_a_misspelt_score():
    with pytest.raises(ValueError, match="did you mean 'joint'"): single_step(tiny(), rand(1, 1, 4, 4), 0.5, 'joints')

@pytest.mark.parametrize('score', ['joint', 'local'])
@pytest.mark.parametrize('x, error', [
    (rand(1, 1, 4, 3), r'x_noisy must be \(B, 1, 4, 4\), got \(1, 1, 4, 3\)'),
    (rand(1, 3, 4, 4), r'x_noisy must be \(B, 1, 4, 4\)'),
    (rand(1, 4, 4), r'x_noisy must be \(B, 1, 4, 4\)'),
    (rand(1, 1, 4, 4)*math.nan, 'x_noisy holds NaN or infinite'),
    (rand(1, 1, 4, 4)/0, 'x_noisy holds NaN or infinite'),
    (torch.zeros(1, 1, 4, 4, dtype=torch.int64), 'x_noisy must be a float tensor'),
    (None, 'x_noisy must be a float tensor, got NoneType')])
def test_bad_x_noisy(x, error, score):
    with pytest.raises((ValueError, TypeError), match=error): single_step(tiny(), x, 0.5, score)

def test_bad_models():
    with pytest.raises(ValueError, match="head='discretized'"): single_step(tiny(head='discretized'), rand(1, 1, 4, 4), 0.5)
    with pytest.raises(TypeError, match="dist must be an autoregressive model for score='local', got SmoothedDataset"): single_step(SmoothedDataset(rand(2, 2), 0.5), rand(1, 2), 0.5, 'local')

def test_bad_data_sets():
    for x, says in ((rand(0, 2), r'x must hold at least one point, got \(0, 2\)'), (rand(3), r'x must hold .* got \(3,\)'),
                    (torch.zeros(2, 2, dtype=torch.int64), 'x must be a float tensor, got torch.int64'), ([[1., 2.]], 'x must be a float tensor, got list')):
        with pytest.raises((ValueError, TypeError), match=says): SmoothedDataset(x, 0.5)
    with pytest.raises(ValueError, match='x holds NaN'): SmoothedDataset(rand(2, 2)*math.nan, 0.5)
    for at, error in ((rand(1, 3), r'x_noisy must be \(B, 2\)'), (rand(2), 'x_noisy must be'), (rand(1, 2)*math.nan, 'x_noisy holds NaN')):
        for call in (lambda e: e.log_prob(at), lambda e: e.denoise(at), lambda e: e.denoise(at, 'local')):
            with pytest.raises(ValueError, match=error): call(SmoothedDataset(rand(2, 2), 0.5))

# a network that is told the noise level

LEVELS = torch.tensor([.15, .4, 1.], dtype=torch.float64)

def by_autograd(model, x, sigma, step, **cond):
    x = x.clone().requires_grad_()
    return x.detach() + step**2*torch.autograd.grad(model.log_prob(x, sigma=sigma, **cond).sum(), x)[0]

@pytest.mark.parametrize('channels', [1, 3])
def test_the_step_of_a_network_that_is_told(channels):
    model, x = tiny(channels, sigma_range=(.1, 1.), n_classes=2), 0.5*rand(3, channels, 4, 4)
    label = torch.tensor([0, 1, 1])
    for s in (.1, .4, 1.): assert_close(single_step(model, x, s, label=label), by_autograd(model, x, s, s, label=label), rtol=1e-12, atol=1e-12)
    each = single_step(model, x, LEVELS, label=label)
    assert_close(each, by_autograd(model, x, LEVELS, LEVELS[:, None, None, None], label=label), rtol=1e-12, atol=1e-12)
    for i, s in enumerate(LEVELS.tolist()): assert_close(single_step(model, x[i:i+1], s, label=label[i:i+1]), each[i:i+1], rtol=1e-12, atol=1e-12)
    for same in (torch.tensor(.4, dtype=torch.float64), torch.full((3,), .4, dtype=torch.float64)): assert_close(single_step(model, x, same, label=label), single_step(model, x, .4, label=label), rtol=1e-12, atol=1e-12)
    assert (single_step(model, x, .4, label=label) - by_autograd(model, x, .8, .4, label=label)).abs().max() > 1e-8   # which level it is told counts

def test_the_local_step_of_a_network_that_is_told():
    model, x = tiny(sigma_range=(.1, 1.)), 0.5*rand(3, 1, 4, 4)
    y = x.clone().requires_grad_()
    own, = torch.autograd.grad(model.mixture(model(x, sigma=LEVELS).detach()).log_prob(y).sum(), y)
    assert_close(single_step(model, x, LEVELS, 'local'), x + LEVELS[:, None, None, None]**2*own, rtol=1e-12, atol=1e-12)

@pytest.mark.parametrize('model', [SmoothedDataset(rand(5, 1, 4, 4, seed=3), .4), tiny()], ids=['data set', 'one level'])
def test_a_model_of_one_level_takes_steps_of_any_size(model):
    x = rand(3, 1, 4, 4)
    each = single_step(model, x, LEVELS)
    assert_close(each, x + LEVELS[:, None, None, None]**2*score(model, x), rtol=1e-12, atol=1e-12)
    for i, s in enumerate(LEVELS.tolist()): assert_close(single_step(model, x, s)[i], each[i], rtol=1e-12, atol=1e-12)

@pytest.mark.parametrize('sigma, says', [
    (.05, r'sigma must lie in \[0.1, 1\]'), (1.5, r'sigma must lie in \[0.1, 1\]'), (torch.tensor([.3, 1.5]), r'sigma must lie in \[0.1, 1\]'), (-.3, 'sigma must be a number above 0, got -0.3'), (math.nan, 'sigma must be a number above 0'),
    (torch.tensor([.3, math.nan]), 'sigma must be a number above 0, got nan'), (torch.tensor([.3, -.2]), 'sigma must be a number above 0'), (torch.tensor(0.), 'sigma must be a number above 0'),
    (torch.tensor([.3, .3, .3]), 'sigma must'), (torch.tensor([]), 'sigma must')], ids=str)
def test_levels_that_do_not_fit(sigma, says):
    with pytest.raises(ValueError, match=says): single_step(tiny(sigma_range=(.1, 1.)), rand(2, 1, 4, 4), sigma)

@pytest.mark.parametrize('sigma', [LEVELS, LEVELS[:2], LEVELS[:0]], ids=len)
def test_as_many_levels_as_images(sigma):
    "one image and three levels don't make three images"
    n = 1 if len(sigma) == 3 else 3
    for model in (tiny(), SmoothedDataset(rand(5, 1, 4, 4), .4)):
        with pytest.raises(ValueError, match='sigma must'): single_step(model, rand(n, 1, 4, 4), sigma)
