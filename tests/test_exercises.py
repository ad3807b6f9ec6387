"""The checkers: solutions pass, and wrong answers, written as a student would, get the sentence that helps."""
import json
import math
import re
from pathlib import Path
import pytest
import torch
from torch import nn
from distsmooth.exercises import Exercise, check, without_solutions
from distsmooth.masked import MaskedConv2d, ShiftedConv2d

SHEET = Path(__file__).resolve().parent.parent/'nbs'/'engine'/'exercises.ipynb'
CELLS = json.loads(SHEET.read_text(encoding='utf8'))['cells']

def asked(cells, kind, pattern):
    "(name of the checker, code) in the order of the sheet"
    return [found for c in cells if c['cell_type'] == kind for found in re.findall(pattern, ''.join(c['source']), re.S)]

STUBS = [c for c in CELLS if c['cell_type'] == 'code' and re.search(r'^check\.\w+\(\w+\)$', ''.join(c['source']), re.M)]
SOLUTIONS = asked(CELLS, 'markdown', r'<summary>Solution</summary>.*?```python\n(.*?)```')

def test_every_exercise_has_a_stub_a_solution_and_a_checker():
    names = [re.search(r'^check\.(\w+)\(', ''.join(c['source']), re.M)[1] for c in STUBS]
    assert names == list(vars(check)) and len(names) == len(SOLUTIONS) >= 8
    for c in STUBS: assert not c['outputs'] or 'Not yet' in ''.join(c['outputs'][0]['data']['text/plain'])

def test_all_solutions_pass():
    "Those on the sheet, in its order; each may use the ones before it"
    space = dict(math=math, torch=torch, nn=nn, ShiftedConv2d=ShiftedConv2d)
    for name, stub, code in zip(vars(check), STUBS, SOLUTIONS):
        exec(code, space)
        mine = re.search(r'^check\.\w+\((\w+)\)$', ''.join(stub['source']), re.M)[1]
        verdict = vars(check)[name](space[mine])
        assert verdict and repr(verdict).startswith('Right'), (name, verdict)

def test_stubs_are_not_filled_in():
    for name, stub in zip(vars(check), STUBS):
        space = dict(math=math, torch=torch, nn=nn, ShiftedConv2d=ShiftedConv2d, check=check)
        code, call = ''.join(stub['source']).rsplit('\n', 1)
        exec(code, space)
        assert not eval(call, space), name

EXERCISES = {name: e for name, e in vars(check).items() if isinstance(e, Exercise)}

@pytest.mark.parametrize('name', EXERCISES)
def test_each_known_mistake_has_its_own_sentence(name):
    e = EXERCISES[name]
    assert len(e.mistakes) >= 5
    for sentence, wrong in e.mistakes.items():
        verdict = e(wrong)
        assert not verdict and verdict.why == sentence

def density(x, centres, s):
    return torch.stack([torch.distributions.Normal(c, s).log_prob(x).exp() for c in centres]).mean(0)

def local_step(model, x_noisy, sigma):
    "As published: the network's output is a constant"
    x = x_noisy.clone().requires_grad_()
    nats = model.mixture(model(x).detach()).log_prob(x)
    nats.sum().backward()
    return x_noisy + sigma**2*x.grad

def step_of_loss(model, x_noisy, sigma):
    x = x_noisy.clone().requires_grad_()
    (-model.log_prob(x).sum()).backward()
    return x_noisy + sigma**2*x.grad

def step_with_sigma(model, x_noisy, sigma):
    return x_noisy + sigma*torch.func.grad(lambda x: model.log_prob(x).sum())(x_noisy.clone())

def step_of_mean(model, x_noisy, sigma):
    x = x_noisy.clone().requires_grad_()
    return x_noisy + sigma**2*torch.autograd.grad(model.log_prob(x).mean(), x)[0]

def full_row(size, kind):
    mask = torch.ones(size, size)
    mask[size//2 + 1:] = 0
    return mask

def sees_itself(size, kind):
    return torch.tensor([[float((r, c) <= (size//2, size//2)) for c in range(size)] for r in range(size)])

def transposed(size, kind):
    mask, mid = torch.zeros(size, size), size//2
    mask[:, :mid], mask[:mid, mid], mask[mid, mid] = 1, 1, kind == 'B'
    return mask

def shifted_bits(lp, dims): return -lp/dims/math.log(2)
def of_unit_interval(lp, dims): return -lp/dims/math.log(2) + 8
def reverse_only(smooth, reverse, kernel, x, x_noisy): return reverse.log_prob(x, context=x_noisy)
def no_entropy(smooth, reverse, kernel, x, x_noisy): return smooth.log_prob(x_noisy) + reverse.log_prob(x, x_noisy)
def swapped(smooth, reverse, kernel, x, x_noisy):
    return smooth.log_prob(x_noisy) + reverse.log_prob(x_noisy, x) - kernel.log_prob(x_noisy, x)

def one_pass(model, u):
    mean, scale = model(torch.zeros(u.shape))
    return mean + scale*torch.log(u/(1 - u))

def no_scale(model, u):
    x = torch.zeros_like(u)
    for i in range(u.shape[1]): x[:, i] = model(x)[0][:, i]
    return x

def backwards(model, u):
    x = torch.zeros_like(u)
    for i in reversed(range(u.shape[1])):
        mean, scale = model(x)
        x[:, i] = (mean + scale*torch.logit(u))[:, i]
    return x

def published(log_prob, batches):
    total = 0.
    for i, x in enumerate(batches): total += -log_prob(x).mean()/x.shape[1]
    return total/i

def half_repaired(log_prob, batches):
    return sum(-log_prob(x).mean()/x.shape[1] for x in batches)/len(batches)

def still_one_short(log_prob, batches):
    means = torch.cat([-log_prob(x)/x.shape[1] for x in batches]).mean()
    return means*len(batches)/(len(batches) - 1)

def closed_mass(x, m, s):
    cdf = lambda y: 1/(1 + torch.exp(-(y - m)/s.exp()))
    return cdf(x + 1/255) - cdf(x - 1/255)

def wide_mass(x, m, s):
    cdf = lambda y: torch.sigmoid((y - m)/s.exp())
    upper, lower = cdf(x + 2/255), cdf(x - 2/255)
    upper[x > .999], lower[x < -.999] = 1, 0
    return upper - lower

def nearest(x, points, sigma): return points[torch.cdist(x[None], points)[0].argmin()]
def no_half(x, points, sigma): return torch.softmax(-(points - x).pow(2).sum(1)/sigma**2, 0)@points

WRONG = [
    ('smoothed_density', lambda x, c, w, s: density(x, c, w + s), 'variances do'),
    ('smoothed_density', lambda x, c, w, s: density(x, c, w), 'without noise'),
    ('smoothed_density', lambda x, c, w, s: 3*density(x, c, (w*w + s*s)**.5), 'integrates to K'),
    ('logistic_cdf', lambda x, m, s: torch.sigmoid((x - m)/s), 'log scale was taken for a scale'),
    ('logistic_cdf', lambda x, m, s: torch.distributions.Normal(m, s.exp()).cdf(x), 'Gaussian'),
    ('level_mass', closed_mass, 'outermost'), ('level_mass', wide_mass, 'twice too far'),
    ('mask', sees_itself, 'lets a pixel see itself'), ('mask', full_row, 'whole row'), ('mask', transposed, 'rows come first'),
    ('sample_order', one_pass, 'given zeros'), ('sample_order', backwards, 'last to first'), ('sample_order', no_scale, 'these are the means'),
    ('posterior_mean', nearest, 'nearest point'), ('posterior_mean', no_half, 'lacks the factor 1/2'),
    ('tweedie', local_step, 'this is the local score'), ('tweedie', step_of_loss, 'downhill'), ('tweedie', step_with_sigma, 'sigma instead of sigma squared'),
    ('tweedie', step_of_mean, 'size of the batch'),
    ('bits_per_dim', shifted_bits, 'constant is missing'), ('bits_per_dim', of_unit_interval, 'log2(256)'),
    ('elbo', reverse_only, 'conditional alone'), ('elbo', no_entropy, 'log q(x_noisy | x) is missing'), ('elbo', swapped, 'turned round'),
    ('iwae', lambda lw: lw.mean(1), 'the ELBO'), ('iwae', lambda lw: torch.log(torch.exp(lw).sum(1)/lw.shape[1]), 'logsumexp'),
    ('iwae', lambda lw: torch.logsumexp(lw, 1), 'log of the sum'),
    ('bug', published, 'both mistakes'), ('bug', half_repaired, 'last batch has fewer'), ('bug', still_one_short, 'what is `i`')]

@pytest.mark.parametrize('name,wrong,words', WRONG, ids=[f'{name}-{i}' for i, (name, *_) in enumerate(WRONG)])
def test_a_wrong_answer_is_told_what_is_wrong(name, wrong, words):
    verdict = vars(check)[name](wrong)
    assert not verdict and words in verdict.why, verdict

def test_at_least_two_wrong_answers_an_exercise():
    counts = {name: sum(n == name for n, *_ in WRONG) for name in EXERCISES}
    assert min(counts.values()) >= 2, counts

class Stack(nn.Module):
    "One stream of masked convolutions, with its blind spot"
    def __init__(self, depth, first='A'):
        super().__init__()
        self.layers = nn.Sequential(MaskedConv2d(1, 4, 3, first), *(MaskedConv2d(4, 4, 3, 'B') for _ in range(depth - 1)))
    def forward(self, x): return self.layers(x)

class Two(nn.Module):
    "Two streams, of which something can be left out"
    def __init__(self, depth, join=True, shift=True, rows=True):
        super().__init__()
        n = [1] + [6]*depth
        conv = lambda i, direction, kernel: ShiftedConv2d(n[i], n[i+1], direction, kernel, shift=i == 0 and (shift or direction == 'down'))
        self.v = nn.ModuleList(conv(i, 'down', (2, 3)) for i in range(depth))
        self.h = nn.ModuleList(conv(i, 'right', (1, 2)) for i in range(depth))
        self.join, self.rows = join, rows
    def forward(self, x):
        v = h = x
        for down, right in zip(self.v, self.h):
            v = torch.tanh(down(v))
            h = torch.tanh((right(h) if self.rows else 0) + (v if self.join else 0))
        return h

class Plain(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))
    def forward(self, x): return self.layers(x)

@pytest.mark.parametrize('make,words', [
    (Stack, 'a blind spot above, to the right'), (lambda d: Stack(d, 'B'), 'sees itself'), (Plain, 'not drawn yet'),
    (lambda d: Two(d, shift=False), 'sees itself'), (lambda d: Two(d, join=False), 'its own row alone'),
    (lambda d: Two(d, rows=False), 'pixels to the left are not seen'), (lambda d: Two(1), 'pixels to the left'),
    (lambda d: nn.Identity(), 'no parameters')])
def test_what_a_network_sees(make, words):
    assert words in check.two_streams(make).why

def test_two_streams_that_see_all(): assert check.two_streams(Two)

def test_what_no_known_mistake_explains_is_shown_by_its_numbers():
    said = check.bits_per_dim(lambda lp, dims: -lp/dims).why
    assert 'case 1' in said and 'should be' in said
    assert 'its shape is (), wanted is (3,)' in check.bits_per_dim(lambda lp, dims: (-lp/dims).mean()).why
    assert 'it stops with ZeroDivisionError' in check.bits_per_dim(lambda lp, dims: 1/0).why
    assert 'it returns nothing' in check.bits_per_dim(lambda lp, dims: None).why
    assert 'it returns a str' in check.bits_per_dim(lambda lp, dims: 'much').why
    assert 'NaN or infinity' in check.bits_per_dim(lambda lp, dims: lp*math.nan).why

def test_an_answer_may_change_what_it_is_given():
    def in_place(lp, dims): return lp.neg_().div_(dims*math.log(2)).add_(math.log2(127.5))
    assert check.bits_per_dim(in_place)

def test_a_name_that_is_none():
    with pytest.raises(AttributeError, match="did you mean 'tweedie'"): check.tweedy
    assert all(name in repr(check) for name in EXERCISES)

def test_without_solutions_keeps_the_rest():
    nb = dict(cells=[dict(cell_type='markdown', source='a\n<details>b</details>\n\nc\n<details>d</details>'), dict(cell_type='code', source='"<details>e</details>"')], metadata={})
    new = without_solutions(nb)
    assert ''.join(new['cells'][0]['source']) == 'a\nc' and new['cells'][1] == nb['cells'][1] and '<details>b' in nb['cells'][0]['source']
