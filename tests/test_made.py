"MADE: order by Jacobian, densities, sampling, context, saving, and the two-step bound against quadrature."
import math
import pytest, torch
from hypothesis import given, settings, strategies as st
from scipy import integrate
from torch import nn
from distsmooth.made import MADE
from distsmooth.smoothing import GaussianKernel

def made(seed=0, scale=1., **kw):
    torch.manual_seed(seed)
    model = MADE(**{'n_hidden': (16, 16), 'n_mix': 2} | kw).double()
    with torch.no_grad(): [p.mul_(scale) for p in model.parameters()]
    return model

def context_of(model, n=1, seed=3):
    if not model.context_channels: return None
    return torch.randn(n, model.context_channels, *model.size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))

def jacobian(model, by='x'):
    "(D, D'): the largest derivative of a parameter of pixel i with respect to value j"
    c = context_of(model); v = torch.randn(model.dims, dtype=torch.float64)
    if by == 'x': f = lambda v: model(v.view(1, 1, *model.size), c)
    else: f, v = (lambda v: model(torch.zeros(1, 1, *model.size, dtype=torch.float64), v.view_as(c))), c.flatten()
    return torch.autograd.functional.jacobian(lambda v: f(v)[0].flatten(1), v).abs().amax(0)

@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.lists(st.integers(12, 20), min_size=1, max_size=3), st.integers(0, 2), st.integers(1, 3))
def test_order(h, w, n_hidden, context_channels, n_mix):
    "Zero where it must be zero, not zero where it must not; the context is seen by all"
    model = made(size=(h, w), n_hidden=n_hidden, n_mix=n_mix, context_channels=context_channels)
    J, earlier = jacobian(model), torch.ones(h*w, h*w).tril(-1).bool()
    assert (J[~earlier] == 0).all() and (J[earlier] > 0).all()
    if context_channels: assert (jacobian(model, 'context') > 0).all()

def test_narrow_layers_never_look_ahead():
    for n in (1, 3, 5): assert (jacobian(made(size=(3, 4), n_hidden=(n, n))).triu() == 0).all()

@pytest.mark.parametrize('context_channels', [0, 2])
def test_images_of_a_batch_do_not_mix(context_channels):
    model = made(size=(2, 3), context_channels=context_channels); x, c = torch.randn(4, 1, 2, 3, dtype=torch.float64), context_of(model, 4)
    torch.testing.assert_close(model(x, c)[2:3], model(x[2:3], None if c is None else c[2:3]))

@pytest.mark.parametrize('context_channels', [0, 1])
def test_every_parameter_gets_a_gradient(context_channels):
    model = made(size=(2, 2), context_channels=context_channels)
    model.log_prob(torch.randn(8, 1, 2, 2, dtype=torch.float64), context_of(model, 8)).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())

@pytest.mark.parametrize('context_channels', [0, 1])
def test_density_integrates_to_one(context_channels):
    model = made(context_channels=context_channels, scale=.5); line = torch.linspace(-40, 40, 801, dtype=torch.float64)
    points = torch.cartesian_prod(line, line)[:, None, None]
    c = None if not context_channels else context_of(model)
    total = 0.
    with torch.no_grad():
        for chunk in points.split(500_000): total += model.log_prob(chunk, None if c is None else c.expand(len(chunk), -1, -1, -1)).exp().sum().item()
    assert abs(total*(line[1] - line[0]).item()**2 - 1) < 1e-3

def test_masses_sum_to_one():
    model = made(size=(1, 2), head='discretized'); levels = torch.arange(256, dtype=torch.float64)/127.5 - 1
    with torch.no_grad(): log_p = model.log_prob(torch.cartesian_prod(levels, levels)[:, None, None])
    torch.testing.assert_close(log_p.logsumexp(0), torch.tensor(0., dtype=torch.float64), atol=1e-8, rtol=0)

def test_equals_dense_layers_with_masked_weights():
    "A second implementation: `nn.Linear` with the weights zeroed by hand"
    model = made(size=(2, 3), n_mix=3); x = torch.randn(5, 1, 2, 3, dtype=torch.float64)
    layers = []
    for masked in [*model.hidden, model.out]:
        dense = nn.Linear(masked.in_features, masked.out_features).double()
        with torch.no_grad(): dense.weight.copy_(masked.weight*masked.mask); dense.bias.copy_(masked.bias)
        layers += [dense, nn.SiLU()]
    torch.testing.assert_close(model(x), nn.Sequential(*layers[:-1])(x.flatten(1)).view(5, 9, 2, 3))

def test_the_last_parameters_belong_to_the_last_pixels():
    "Pixel (0, 0) depends on nothing: its parameters are the same for every picture, and they are at [:, :, 0, 0]"
    model = made(size=(2, 3)); a, b = torch.randn(2, 4, 1, 2, 3, dtype=torch.float64)
    torch.testing.assert_close(model(a)[:, :, 0, 0], model(b)[:, :, 0, 0])
    assert (model(a)[:, :, 1, 2] != model(b)[:, :, 1, 2]).all()

@pytest.mark.parametrize('context_channels', [0, 1])
def test_samples_repeat_and_follow_the_context(context_channels):
    model = made(context_channels=context_channels); u = model.uniforms(4, torch.Generator().manual_seed(0)); c = context_of(model, 4)
    x = model.sample(uniforms=u, context=c)
    assert x.shape == (4, 1, 1, 2) and torch.equal(x, model.sample(uniforms=u, context=c))
    if c is not None: assert (x != model.sample(uniforms=u, context=c + 1)).all()

def test_fitting_finds_a_line():
    "Points on x2 = -x1 with a little noise: 150 steps bring the likelihood near the entropy"
    torch.manual_seed(0); a = torch.rand(2000, 1)*2 - 1
    x = torch.cat([a, -a + .1*torch.randn(2000, 1)], 1)[:, None, None]
    model = MADE(n_hidden=(32, 32), n_mix=3); optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    before = model.log_prob(x).mean().item()
    for _ in range(150):
        loss = -model.log_prob(x[torch.randint(2000, (256,))]).mean()
        optimizer.zero_grad(); loss.backward(); optimizer.step()
    after, best = model.log_prob(x).mean().item(), -math.log(2) - .5*math.log(2*math.pi*math.e*.01)
    assert before < -1.5 and best - .25 < after < best + .05
    s = model.sample(uniforms=model.uniforms(1000, torch.Generator().manual_seed(0))).flatten(1)
    assert torch.corrcoef(s.T)[0, 1] < -.9

def test_bound_below_exact_two_step_density():
    "ELBO <= IWAE-K <= exact, the exact value by adaptive quadrature over `x_noisy`"
    smooth, reverse, kernel = made(1, size=(1, 1)), made(2, size=(1, 1), context_channels=1), GaussianKernel(.7)
    x = torch.tensor([-.8, 0., .5, 1.5], dtype=torch.float64)[:, None, None, None]
    def joint(z, v):
        z = torch.full((1, 1, 1, 1), z, dtype=torch.float64)
        return (smooth.log_prob(z) + reverse.log_prob(v[None], z)).exp().item()
    exact = torch.tensor([math.log(integrate.quad(joint, -45, 45, args=(v,), limit=300, points=[-3, 0, 3])[0]) for v in x])
    g = torch.Generator().manual_seed(0); z = kernel.sample(x.expand(-1, 4096, -1, -1).reshape(-1, 1, 1, 1), g)
    v = x.expand(-1, 4096, -1, -1).reshape(-1, 1, 1, 1)
    with torch.no_grad(): w = (smooth.log_prob(z) + reverse.log_prob(v, z) - kernel.log_prob(z, v)).view(4, 4096)
    bounds = torch.stack([(w.view(4, -1, k).logsumexp(2) - math.log(k)).mean(1) for k in (1, 16, 256)])
    assert (bounds.diff(dim=0) >= 0).all() and (bounds[-1] < exact + .02).all() and (bounds[0] < exact - .01).all()
    assert (bounds[-1] > bounds[0]).all()

def test_comes_back_from_a_folder(tmp_path):
    model = MADE((2, 3), (8, 8), 2, 'discretized', context_channels=2); model.save_pretrained(tmp_path)
    back, x, c = MADE.from_pretrained(tmp_path), torch.rand(3, 1, 2, 3), torch.randn(3, 2, 2, 3)
    assert (back.size, back.head, back.context_channels) == ((2, 3), 'discretized', 2)
    assert torch.equal(model(x, c), back(x, c)) and not any('mask' in k for k in model.state_dict())

def test_state_dict_names():
    assert set(MADE(context_channels=1, n_hidden=(4, 4)).state_dict()) == {f'{m}.{p}' for m in ('hidden.0', 'hidden.1', 'out', 'context.0', 'context.1') for p in ('weight', 'bias')}

@pytest.mark.parametrize('kw, says', [(dict(n_hidden=64), r'n_hidden must list .* got 64'), (dict(n_hidden=()), 'n_hidden must list'), (dict(n_hidden=(8, 0)), 'n_hidden'),
    (dict(size=(1, 0)), 'size must be'), (dict(n_mix=0), 'n_mix must be'), (dict(head='gauss'), "head must be one of .* got 'gauss'")])
def test_bad_arguments(kw, says):
    with pytest.raises(ValueError, match=says): MADE(**kw)

def test_bad_inputs():
    model, given = made(), made(context_channels=1); x = torch.zeros(3, 1, 1, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r'x must be \(B, 1, 1, 2\), got \(3, 2\)'): model.log_prob(x[:, 0, 0])
    with pytest.raises(ValueError, match=r'got \(3, 1, 2, 1\)'): model.log_prob(x.transpose(2, 3))
    with pytest.raises(ValueError, match='x holds NaN'): model.log_prob(x/0)
    with pytest.raises(ValueError, match='context must be given: this model was made with context_channels=1'): given.log_prob(x)
    with pytest.raises(ValueError, match='context must be None'): model.log_prob(x, x)
    with pytest.raises(ValueError, match=r'context must be \(B, 1, 1, 2\), got \(3, 1, 1, 1\)'): given.sample(context=x[..., :1])
    with pytest.raises(ValueError, match=r'uniforms must be \(B, 2, 1, 2\), got \(3, 1, 1, 2\)'): model.sample(uniforms=x)
