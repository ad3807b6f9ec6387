"""Write the card of the model in the box, distsmooth/pretrained/digits/README.md: every figure in it is measured here.

    make box                                   # trains the three networks, packs them, and runs this

    distsmooth train --recipe digits-smooth --data.name mnist --out runs/digits-smooth        # and -reverse, and -raw
    distsmooth pack --parts '[runs/digits-smooth, runs/digits-reverse, runs/digits-raw]' --out distsmooth/pretrained/digits
    python scripts/card_digits.py runs         # also copies the logs of the three runs, if their folder is given

Likelihoods and errors: the first 500 bundled test digits. Samples: 256 of each kind, asked of `judge_digits.py`. About ten minutes on two cores.
"""
import math, shutil, sys
from pathlib import Path
import torch
from distsmooth.data import load_dataset
from distsmooth.denoising import single_step
from distsmooth.pipeline import PRETRAINED, SmoothedModel
from distsmooth.smoothing import GaussianKernel
from judge_digits import fit, judge, kernel_distance

BOX, LEVELS, DRAWN, N, SAMPLES = PRETRAINED/'digits', (.1, .3, .5, .7, 1.), (.3, .5, .7), 500, 256

NOTE = """
These weights come from the loop of `distsmooth.training` with the settings of the recipes, before its element-wise functions were fused, and the logs' test column holds the end alone. `make box` takes the same steps with other rounding: expect figures like these, not the same weights.
"""

def seeded(seed=0): return torch.Generator().manual_seed(seed)
def table(head, rows): return '\n'.join(['| ' + ' | '.join(head) + ' |', '|---'*len(head) + '|', *('| ' + ' | '.join(r) + ' |' for r in rows)])
def in_parts(f, *tensors): return torch.cat([f(*p) for p in zip(*(t.split(50) for t in tensors))])

@torch.no_grad()
def likelihoods(sm, x):
    "A row for each noise level"
    for sigma in LEVELS:
        kernel, gen = GaussianKernel(sigma), seeded()
        x_noisy = kernel.sample(x, gen)
        smooth = -in_parts(lambda y: sm.smooth.log_prob(y, sigma=sigma), x_noisy).mean()/784
        reverse = -in_parts(lambda a, y: sm.reverse.log_prob(a, y, sigma=sigma), x, x_noisy).mean()/784/math.log(2)
        elbo = -in_parts(lambda a: sm.bound(a, 1, gen, sigma), x).mean()/784/math.log(2)
        errors = [(in_parts(lambda y: single_step(sm.smooth, y, sigma, score), x_noisy) - x).square().mean() for score in ('joint', 'local')]
        yield [f'{sigma:g}', f'{smooth:.4f}', f'{.5*math.log(2*math.pi*math.e*sigma**2):.4f}', f'{reverse:.4f}', f'{elbo:.4f}',
               f'{(x_noisy - x).square().mean():.4f}', *(f'{e:.4f}' for e in errors)]

@torch.no_grad()
def samples(sm, x, y):
    "A row for each kind of sample: the judge's confidence, and its distance to real digits"
    with torch.enable_grad(): net = fit(load_dataset('digits').x, load_dataset('digits').labels)
    real = judge(net, x)[1]
    def row(name, drawn):
        sure, features = judge(net, drawn.clamp(-1, 1))
        return [name, f'{sure:.3f}', f'{kernel_distance(features/real.std(), real/real.std()):.3f}']
    u = sm.uniforms(SAMPLES, seeded())
    yield row('real test digits', x[:SAMPLES])
    yield row('raw: without smoothing', sm.raw.sample(uniforms=u[0]))
    for sigma in DRAWN:
        x_noisy = sm.sample(uniforms=u, denoise=None, sigma=sigma)
        yield row(f'sigma {sigma:g}, smoothed', x_noisy)
        yield row(f'sigma {sigma:g}, single step', in_parts(lambda z: sm.denoise(z, 'single_step', sigma=sigma), x_noisy))
        yield row(f'sigma {sigma:g}, two steps', sm.denoise(x_noisy, 'two_step', u[1], sigma))
    print('judge: {:.1%} of test digits right'.format((net(x).argmax(1) == y).float().mean()))

def card(sm):
    test = load_dataset('digits', 'test')
    x = test.x[:N]
    raw = -in_parts(sm.raw.log_prob, x).mean()/784/math.log(2)
    sizes = [[f'`{name}`', f'`{net.extra_repr().rpartition(":")[0]}`', f'{sum(p.numel() for p in net.parameters()):,}'] for name, net in sm.named_children()]
    return f"""# digits

One smooth and one reverse PixelCNN++ for MNIST at every noise level from 0.1 to 1, and a raw one, of digits as they are, to compare with.
Made by `make box`: three runs of `distsmooth train` on MNIST's 60,000 training images (recipes `digits-smooth`, `digits-reverse`, `digits-raw`: 3750 steps of 16 images
each, one pass, seed 0, float32, one thread), put together by `distsmooth pack`. The weights are the averaged ones (EMA). Each part's `log.csv` is its log.
{NOTE}
{table(['part', 'network', 'parameters'], sizes)}

## How likely test digits are

`raw` needs {raw:.4f} bits/dim for the first {N} bundled test digits (8-bit, exact). For the others, by noise level:

{table(['sigma', 'smooth: nats/dim of smoothed digits (density on [-1, 1], exact)', 'of which the noise', 'reverse: bits/dim given smoothed ones (conditional, not a likelihood of the data)',
        'two steps: bits/dim (8-bit, elbo)', 'squared error of smoothed digits', 'after one step, joint score', 'local score'], likelihoods(sm, x))}

## How good samples are

{SAMPLES} samples of each kind, the same uniforms at every level. `scripts/judge_digits.py` trains a small classifier on the bundled digits; confidence is the mean of its largest class
probability, distance a squared kernel distance between its features and those of 2,000 real test digits (0 on average for real ones; not comparable with a KID on Inception features).

{table(['', 'confidence', 'distance'], samples(sm, test.x, test.labels))}

Trained on MNIST (Y. LeCun, C. Cortes, C. J. C. Burges; CC BY-SA 3.0). Limits: small networks and one short run each; some samples are not digits.
"""

if __name__ == '__main__':
    for part in ('smooth', 'reverse', 'raw') if len(sys.argv) > 1 else ():
        shutil.copy(Path(sys.argv[1])/f'digits-{part}'/'log.csv', BOX/part/'log.csv')
    text = card(SmoothedModel.from_pretrained('digits'))
    (BOX/'README.md').write_text(text)
    print(text)
