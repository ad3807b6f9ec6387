"""Write the card of the model in the box, distsmooth/pretrained/digits/README.md: every figure in it is measured here.

    make box                          # trains the three networks, packs them with their recipes and logs, and runs this
    python scripts/card_digits.py     # measures the model in the box again

Likelihoods and errors: the first 500 bundled test digits, IWAE-16 the first 120. Samples: 256 of each kind, by `distsmooth.metrics`. About half an hour on one core.
"""
import math
import torch
import yaml
from distsmooth.data import load_dataset
from distsmooth.denoising import single_step
from distsmooth.metrics import evaluate_samples, extract_features
from distsmooth.pipeline import PRETRAINED, SmoothedModel
from distsmooth.smoothing import GaussianKernel

BOX, LEVELS, DRAWN, N, TIGHT, DRAWS, SAMPLES = PRETRAINED/'digits', (.1, .3, .5, .7, 1.), (.3, .5, .7), 500, 120, 16, 256
METRICS = 'FD', 'KID', 'MIND', 'confidence', 'precision', 'recall'

PLAN = """The runs were planned for 11,250 steps, and shortened to 9,375 after some 2,500 (`--resume --train.steps 9375`): up to there the learning rate fell by the longer plan, some 6 % more than by the shorter one.
The same recipes give figures like these, not the same weights."""

def made():
    "How the networks came about: from the recipes that `pack` put beside them"
    recipes = [yaml.safe_load((BOX/part/'recipe.yaml').read_text(encoding='utf8'))['train'] for part in ('smooth', 'reverse', 'raw')]
    def said(key): return ' / '.join(f'{v:,}' for v in dict.fromkeys(r[key] for r in recipes))
    exact = 'convolutions in bfloat16' if all(r['bf16'] for r in recipes) else 'float32'
    return f"""Made by three runs of `distsmooth train` (recipes `box-smooth`, `box-reverse`, `box-raw`: {said('steps')} steps of {said('batch_size')} of MNIST's 60,000 training images each, seed {said('seed')}, one thread, {exact}),
put together by `distsmooth pack`; `make box` does it all again. The weights are the averaged ones (EMA). Each part's `log.csv` is its log, and `recipe.yaml` says how it was trained.
{PLAN}"""

def seeded(seed=0): return torch.Generator().manual_seed(seed)
def table(head, rows): return '\n'.join(['| ' + ' | '.join(head) + ' |', '|---'*len(head) + '|', *('| ' + ' | '.join(r) + ' |' for r in rows)])
def stated(values, digits=4): return f'{values.mean():.{digits}f} ± {values.std()/len(values)**.5:.{digits}f}'
def in_parts(f, *tensors): return torch.cat([f(*p) for p in zip(*(t.split(50) for t in tensors))])

def bits(sm, log_prob): return -log_prob/sm.smooth.dims/math.log(2)

@torch.no_grad()
def likelihoods(sm, x):
    "A row for each noise level"
    for sigma in LEVELS:
        x_noisy = GaussianKernel(sigma).sample(x, seeded())
        smooth = -in_parts(lambda y: sm.smooth.log_prob(y, sigma=sigma), x_noisy)/sm.smooth.dims
        reverse = bits(sm, in_parts(lambda a, y: sm.reverse.log_prob(a, y, sigma=sigma), x, x_noisy))
        errors = [(in_parts(lambda y: single_step(sm.smooth, y, sigma, score), x_noisy) - x).square().mean() for score in ('joint', 'local')]
        yield [f'{sigma:g}', stated(smooth), f'{.5*math.log(2*math.pi*math.e*sigma**2):.4f}', stated(reverse), f'{(x_noisy - x).square().mean():.4f}', *(f'{e:.4f}' for e in errors)]

@torch.no_grad()
def detours(sm, x, raw):
    "A row for each noise level: bounds of what two steps need, and how much that is above `raw`, digit by digit"
    for sigma in LEVELS:
        found = [bits(sm, in_parts(lambda a: sm.iwae(a, k, generator=gen, sigma=sigma), x[:n])) for k, n, gen in ((1, N, seeded()), (DRAWS, TIGHT, seeded()))]
        yield [f'{sigma:g}', *(cell for f in found for cell in (stated(f), stated(f - raw[:len(f)])))]

@torch.no_grad()
def samples(sm, n=SAMPLES):
    "A row for each kind of sample: its metrics against real test digits, real ones in their place first"
    real, u = extract_features(('digits', 'test')), sm.uniforms(n, seeded())
    def cell(value, error): return f'{value:.3g}' + ('' if error is None else f' ± {error:.1g}')
    def row(name, drawn):
        e = evaluate_samples(drawn, real, metrics=METRICS)
        found = [e[m] for m in METRICS]
        return [name, *(cell(m.value, m.error) for m in found)], ['real digits in their place', *(cell(m.floor, m.floor_error) for m in found)]
    raw, floor = row('raw: without smoothing', sm.raw.sample(uniforms=u[0]))
    yield from (floor, raw)
    for sigma in DRAWN:
        x_noisy = sm.sample(uniforms=u, denoise=None, sigma=sigma)
        yield row(f'sigma {sigma:g}, smoothed', x_noisy)[0]
        yield row(f'sigma {sigma:g}, single step', in_parts(lambda z: sm.denoise(z, 'single_step', sigma=sigma), x_noisy))[0]
        yield row(f'sigma {sigma:g}, two steps', sm.denoise(x_noisy, 'two_step', u[1], sigma))[0]

def card(sm):
    test = load_dataset('digits', 'test')
    x = test.x[:N]
    with torch.no_grad(): raw = bits(sm, in_parts(sm.raw.log_prob, x))
    sizes = [[f'`{name}`', f'`{net.extra_repr().rpartition(":")[0]}`', f'{sum(p.numel() for p in net.parameters()):,}'] for name, net in sm.named_children()]
    return f"""# digits

One smooth and one reverse PixelCNN++ for MNIST at every noise level from 0.1 to 1, and a raw one, of digits as they are, to compare with.
{made()}

{table(['part', 'network', 'parameters'], sizes)}

## How likely test digits are

The first {N} bundled test digits, by noise level. ± is a standard error over digits, for one draw of the noise.

{table(['sigma', 'smooth: nats/dim of smoothed digits (density on [-1, 1], exact)', 'of which the noise', 'reverse: bits/dim given smoothed ones (conditional, not a likelihood of the data)',
        'squared error of smoothed digits', 'after one step, joint score', 'local score'], likelihoods(sm, x))}

## What the detour costs

`raw` needs {stated(raw)} bits/dim for these {N} digits and {stated(raw[:TIGHT])} for the first {TIGHT} of them (8-bit, exact). What the two-step model needs is not known exactly: the ELBO and the tighter
IWAE-{DRAWS} say how much it needs at most. The differences are taken digit by digit, which is why their errors are smaller; below zero, the two steps need less than `raw`.
They have two networks for it, twice the parameters and twice the training.

{table(['sigma', f'two steps: bits/dim (8-bit, elbo, {N} digits)', 'above raw', f'two steps: bits/dim (8-bit, iwae-{DRAWS}, {TIGHT} digits)', 'above raw'], detours(sm, x, raw))}

## How good samples are

{SAMPLES} samples of each kind, the same uniforms at every level, by `distsmooth.metrics.evaluate_samples` on the features of the classifier in the box (`pretrained/classifier`), against
bundled test digits, of which as many as there are samples take their place in the first row. FD-digits, KID-digits and MIND: lower is better. They compare with no FID, and FD and MIND only with others
of as many samples. ± is a standard error: a jackknife over 10 groups of the samples; in the first row, over disjoint sets.

{table(['', 'FD-digits', 'KID-digits', *METRICS[2:]], samples(sm))}

Trained on MNIST (Y. LeCun, C. Cortes, C. J. C. Burges; CC BY-SA 3.0). Limits: small networks and one short run each; some samples are not digits.
"""

if __name__ == '__main__':
    text = card(SmoothedModel.from_pretrained('digits'))
    (BOX/'README.md').write_text(text)
    print(text)
