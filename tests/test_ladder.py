"""The ladder: two rungs are `SmoothedModel` bit for bit; with perfect rungs every bound is exact; the single step steps flows, too."""
import math
import pytest
import torch
from torch import distributions as D
from torch.testing import assert_close
from distsmooth.autoregressive import Autoregressive
from distsmooth.denoising import single_step
from distsmooth.ladder import Ladder, RungMADE, RungMarginal, any_rungs, geometric, rung_context, rung_ends, rung_objective, rungs_of
from distsmooth.made import MADE
from distsmooth.pipeline import SmoothedModel
from distsmooth.pixelcnn import PixelCNNpp
from distsmooth.smoothing import GaussianKernel

def seeded(seed=0): return torch.Generator().manual_seed(seed)

def made(net=MADE, seed=0, **how):
    torch.manual_seed(seed)
    return net(n_hidden=(16, 16), n_mix=2, **how).eval()

def pixelcnn(seed=0, **how):
    torch.manual_seed(seed)
    return PixelCNNpp(size=8, n_filters=4, n_resnet=1, n_mix=2, **how).eval()

PAIRS = {'made': lambda: (made(), made(seed=1, context_channels=1)),
         'pixelcnn': lambda: (pixelcnn(), pixelcnn(1, context_channels=1)),
         'sigma_range': lambda: (pixelcnn(sigma_range=(.1, .9)), pixelcnn(1, context_channels=1, sigma_range=(.1, .9)))}

@pytest.mark.parametrize('sigma', [.3, .07*3])
@pytest.mark.parametrize('pair', PAIRS)
def test_two_rungs_equal_smoothed_model_bit_for_bit(pair, sigma):
    nets = PAIRS[pair]()
    two, paper = Ladder(*nets, [sigma]), SmoothedModel(*nets, GaussianKernel(sigma))
    assert two.kernels == [paper.kernel]
    for ours, theirs in zip(two.uniforms(3, seeded(1)), paper.uniforms(3, seeded(1))): assert torch.equal(ours, theirs)
    for mine, its in (('ladder', 'two_step'), ('single_step', 'single_step'), (None, None)):
        assert torch.equal(two.sample(3, mine, generator=seeded(2)), paper.sample(3, its, generator=seeded(2)))
    local = dict(denoise='single_step', score='local')
    assert torch.equal(two.sample(3, generator=seeded(2), **local), single_step(paper.smooth, paper.sample(3, None, generator=seeded(2)), sigma, 'local'))
    x = torch.rand(4, *paper.smooth.event_shape, generator=seeded(3))*2 - 1
    assert torch.equal(two.elbo(x, seeded(4)), paper.elbo(x, generator=seeded(4)))
    assert torch.equal(two.iwae(x, 3, seeded(5)), paper.iwae(x, 3, seeded(5)))

def test_one_rung_is_a_raw_model():
    raw, x = made(), torch.rand(5, 1, 1, 2, generator=seeded())
    one = Ladder(raw, None, ())
    with torch.no_grad(): assert torch.equal(one.elbo(x), raw.log_prob(x))
    assert torch.equal(one.sample(4, generator=seeded(1)), raw.sample(4, generator=seeded(1)))

class Normal:
    def __init__(self, params): self.noise = D.Normal(params[:, :1], params[:, 1:2])
    def log_prob(self, x): return self.noise.log_prob(x)[:, 0]
    def from_uniforms(self, u, transform): return self.noise.icdf(u[:, 1:].clamp(1e-6, 1 - 1e-6))

class PerfectTop(Autoregressive):
    "Normal data of standard deviation `a`, at `sigma`"
    def __init__(self, a, sigma): super().__init__(1, (1, 2), 1); self.spread = math.hypot(a, sigma)
    def mixture(self, params): return Normal(params)
    def forward(self, x): return torch.cat([0*x, 0*x + self.spread, x], 1)

class PerfectRung(Autoregressive):
    def __init__(self, a): super().__init__(1, (1, 2), 1, context_channels=3); self.a = a
    def mixture(self, params): return Normal(params)
    def forward(self, x, context):
        high, low = rung_ends(context)
        share = (self.a**2 + low**2)/(self.a**2 + high**2)
        return torch.cat([share*context[:, :1], (share*(high**2 - low**2)).sqrt(), x], 1)

@pytest.fixture
def perfect(): return Ladder(PerfectTop(.4, .5), PerfectRung(.4), geometric(.5, .1, 4))

def test_with_perfect_rungs_every_climb_gives_the_exact_likelihood(perfect):
    x = .4*torch.randn(50, 1, 1, 2, generator=seeded())
    exact = D.Normal(0., .4).log_prob(x).flatten(1).sum(1)
    assert_close(perfect.elbo(x, seeded(1)), exact, atol=1e-3, rtol=1e-3)
    assert_close(perfect.iwae(x, 4, seeded(2)), exact, atol=1e-3, rtol=1e-3)

def test_perfect_rungs_draw_the_data(perfect):
    x = perfect.sample(4000, generator=seeded())
    assert abs(x.std().item() - .4) < .015 and abs(x.mean().item()) < .02
    levels = [d.std().item() for d in perfect.descend(perfect.uniforms(4000, seeded(1)))]
    assert_close(levels, [math.hypot(.4, s) for s in perfect.levels], atol=.02, rtol=0.)

def test_the_last_single_step_takes_out_what_the_rung_above_said(perfect):
    u = perfect.uniforms(100, seeded())
    path = list(perfect.descend(u[:4]))
    assert_close(perfect.sample(uniforms=u, denoise='single_step'), path[-1]*.16/(.16 + .01), atol=1e-5, rtol=1e-4)
    naive = single_step(perfect.rung(2, path[2]), path[3], .1)
    assert (naive - path[-1]*.16/(.16 + .01)).abs().max() > .01
    marginal = RungMarginal(perfect.rung(2, path[2]), path[2], perfect.kernels[2])
    with pytest.raises(TypeError, match="dist must be an autoregressive model for score='local'"): single_step(marginal, path[3], .1, 'local')

def test_the_last_single_step_goes_through_its_images_in_batches(perfect, monkeypatch):
    u = perfect.uniforms(7, seeded())
    whole = perfect.sample(uniforms=u, denoise='single_step')
    monkeypatch.setattr('distsmooth.autoregressive.BATCH', 4)  # numbers: two points at once
    assert_close(perfect.sample(uniforms=u, denoise='single_step'), whole)

def test_the_single_step_switches_dropout_off_and_back(perfect):
    net = pixelcnn(context_channels=3).train()
    ladder = Ladder(pixelcnn(1), net, [.4, .1])
    first, again = (ladder.sample(2, 'single_step', generator=seeded()) for _ in range(2))
    assert torch.equal(first, again) and net.training

def test_climb_is_a_chain_of_the_right_widths():
    ladder = Ladder(made(), made(RungMADE), [.5, .2, .05])
    x = torch.zeros(20000, 1, 1, 2)
    noisy = ladder.climb(x, seeded())
    assert_close([y.std().item() for y in noisy], [.5, .2, .05], rtol=.02, atol=0.)
    assert_close([(a - b).std().item() for a, b in zip(noisy, noisy[1:])], [math.sqrt(.25 - .04), math.sqrt(.04 - .0025)], rtol=.02, atol=0.)
    correlation = torch.corrcoef(torch.stack([(noisy[0] - noisy[1]).flatten(), noisy[1].flatten()]))[0, 1]
    assert abs(correlation) < .02

def test_rung_context_and_its_ends():
    high, low = torch.tensor([1., .3, .05]), torch.tensor([.5, 0., .049])
    context = rung_context(torch.zeros(3, 1, 2, 2), high, low)
    assert context.shape == (3, 3, 2, 2) and (context[1, 2] == 0).all() and (context[0, 1] == 1).all()
    for end, true in zip(rung_ends(context), (high, low)): assert_close(end[:, 0, 0, 0], true, rtol=1e-5, atol=0.)
    assert rung_context(torch.zeros(2, 3, 4, 4), .5, 0).shape == (2, 5, 4, 4)

def test_rung_made_is_causal_and_in_units_of_the_rung():
    net, x = made(RungMADE).double(), torch.rand(1, 1, 1, 2, generator=seeded(), dtype=torch.float64)
    context = rung_context(x + .1, .3, .1)
    J = torch.autograd.functional.jacobian(lambda v: net(v, context)[0, :, 0].T, x)[:, :, 0, 0, 0]
    assert (J[0] == 0).all() and (J[1, :, 1] == 0).all() and (J[1, :, 0] != 0).any()
    with torch.no_grad():
        for p in net.out.parameters(): p.zero_()
    mixture = net.mixture(net(x, context))
    assert_close(mixture.means, (x + .1)[:, :, None].expand_as(mixture.means), rtol=1e-6, atol=1e-6)
    assert_close(mixture.log_scales, torch.full_like(mixture.log_scales, math.log(math.sqrt(.08))), rtol=1e-5, atol=1e-5)

def test_geometric():
    assert_close(geometric(.8, .1, 4), [.8, .4, .2, .1])
    assert_close(geometric(.4, .1, 1), [.2])
    with pytest.raises(ValueError, match='high must be a number above 0.5'): geometric(.4, .5, 2)

def test_objectives():
    x = torch.zeros(20000, 1, 1, 2)
    target, told = rung_objective(rungs_of([.4, .1]))(x, seeded())
    high, low = (e[:, 0, 0, 0] for e in rung_ends(told['context']))
    upper = high > .2
    assert abs(upper.float().mean() - .5) < .02
    assert_close(target[upper].std().item(), .1, rtol=.03, atol=0.)
    assert (target[~upper] == 0).all()
    gap = told['context'][:, :1] - target
    assert_close(gap[upper].std().item(), math.sqrt(.16 - .01), rtol=.03, atol=0.)
    assert_close(gap[~upper].std().item(), .1, rtol=.03, atol=0.)
    high, low = any_rungs((.05, .5), .25)(20000, seeded(1))
    assert (high > low).all() and high.max() <= .5005 and abs((low == 0).float().mean() - .25) < .02
    assert low[low > 0].min() >= .05

@pytest.mark.parametrize('how, says', [
    (dict(sigmas=[.1, .3]), 'sigmas must fall'), (dict(sigmas=[.3, 0.]), 'sigmas must be a number above 0'),
    (dict(reverse=made(context_channels=1), sigmas=[.3, .1]), r'context_channels in \(3,\), got .*1'),
    (dict(reverse=None, sigmas=[.3, .1]), r'reverse must draw images'),
    (dict(reverse=made(size=(1, 3), context_channels=1), sigmas=[.3]), r'reverse must draw images \(1, 1, 2\)')])
def test_refusals(how, says):
    with pytest.raises(ValueError, match=says): Ladder(made(), **{'reverse': made(RungMADE), **how})

def test_without_a_reverse_network_the_single_step_is_left():
    ladder = Ladder(made(), None, [.3])
    assert ladder.sample(3, 'single_step', generator=seeded()).shape == (3, 1, 1, 2)
    with pytest.raises(ValueError, match="use 'single_step'"): ladder.sample(3)
    with pytest.raises(ValueError, match='denoise must be one of'): ladder.sample(3, 'two_step')

def test_gradients_reach_every_weight_of_the_rungs():
    net, x = made(RungMADE), torch.rand(64, 1, 1, 2, generator=seeded())
    target, told = rung_objective(rungs_of([.4, .1]))(x, seeded())
    net.log_prob(target, **told).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())

class Shifted(torch.nn.Module):
    "No relative of `Autoregressive`: a normal density with a covariance, as a flow has it"
    def __init__(self, S): super().__init__(); self.S, self.event_shape = S, (1, 1, 2)
    def log_prob(self, x): return D.MultivariateNormal(torch.zeros(2, dtype=x.dtype), self.S).log_prob(x.flatten(1))

def test_the_single_step_of_a_flow_against_its_closed_form():
    "An affine autoregressive flow that is exactly the smoothed normal density steps exactly to the posterior mean"
    pytest.importorskip('zuko')
    from distsmooth.engine.study_flow import Flow
    S, sigma = torch.tensor([[.25, .15], [.15, .16]]), .3
    smoothed = S + sigma**2*torch.eye(2)
    L = torch.linalg.cholesky(smoothed)
    torch.manual_seed(0)
    flow = Flow((1, 1, 2), 1, ())
    x = torch.randn(200, 2, generator=seeded(1))@L.T
    fit_exactly(flow, L)
    expected = x@torch.linalg.solve(smoothed, S)
    images = x[:, None, None]
    assert_close(flow.log_prob(images), Shifted(smoothed).log_prob(images), atol=1e-3, rtol=1e-3)
    assert_close(single_step(flow, images, sigma).flatten(1), expected, atol=1e-3, rtol=1e-3)
    with pytest.raises(TypeError, match="dist must be an autoregressive model for score='local', got Flow"): single_step(flow, images, sigma, 'local')

def fit_exactly(flow, L):
    "LBFGS in a moment: with points of this very covariance, and each with its mirror image, the optimum is exact"
    x = torch.randn(2000, 2, generator=seeded(2))
    x = torch.cat([x, -x])
    x = (x@torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T@L.T)[:, None, None]
    optimizer = torch.optim.LBFGS(flow.parameters(), max_iter=300, line_search_fn='strong_wolfe', tolerance_change=1e-12)
    def closure():
        optimizer.zero_grad()
        loss = -flow.log_prob(x).mean()
        loss.backward()
        return loss
    optimizer.step(closure)

def test_a_wave_goes_on_as_completion_does():
    from distsmooth.engine.study_drift import Wave, go_on, two_tones
    torch.manual_seed(0)
    net, x = Wave(24, sigma_range=(.01, .2)).eval(), two_tones(3, 24, seeded())
    u, known = net.uniforms(3, seeded(1)), torch.arange(24)[None] < 18
    with torch.no_grad(): fast = go_on(net, x[..., :18], u, .1)
    assert_close(fast, net.dist(sigma=.1).from_uniforms(u, method='naive', known=x, mask=known), rtol=1e-5, atol=1e-5)
    J = torch.autograd.functional.jacobian(lambda v: net(v, sigma=.1)[0, 0, 0, 20], x)[0, 0, 0]
    assert J.abs().nonzero().flatten().tolist() == list(range(20 - net.reach, 20))
