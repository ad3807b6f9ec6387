"""Train the model in the box, distsmooth/pretrained/digits: a smooth and a reverse PixelCNN++ at sigma 0.5.

    python scripts/train_digits.py                  # both parts, one after the other, then the model card
    python scripts/train_digits.py --part smooth    # one part: run both at once on two cores, then --part card

MNIST's 60,000 training images are taken from DISTSMOOTH_DATA, or the bundled 10,000 if it is not there.
One thread and one seed: the same machine gives the same weights.
"""
import argparse, csv, math, os
import torch
from safetensors.torch import load_file, save_file
from distsmooth.data import load_dataset
from distsmooth.pipeline import PRETRAINED, SmoothedModel
from distsmooth.pixelcnn import PixelCNNpp
from distsmooth.smoothing import GaussianKernel
from distsmooth.training import TrainConfig, reverse_task, smooth_task, train

KERNEL, CONFIG, BOX = GaussianKernel(0.5), TrainConfig(), PRETRAINED/'digits'
COMMON = dict(size=28, n_filters=32, n_mix=5, dropout=0.)  # one pass over the data cannot overfit: no dropout
NOTE = """The weights in the box were trained before two small changes to the layers (the row or column that an entry layer shifts in is now zero, as
published, where it was the bias; the initialisation of transposed layers ignores what is cropped). The figures above are those of the present code; running the command again gives a slightly different model."""
PARTS = {  # two blocks for the harder task, one and an encoder for the easier: both files stay under 4 MB
    'smooth': (dict(n_resnet=2), smooth_task(KERNEL)),
    'reverse': (dict(n_resnet=1, head='discretized', context_channels=1), reverse_task(KERNEL)),
}

def network(part):
    torch.manual_seed(CONFIG.seed)
    return PixelCNNpp(**COMMON, **PARTS[part][0])

def digits():
    try: return load_dataset('mnist').x
    except FileNotFoundError as e:
        print(f'{e}\ntraining on the bundled digits instead')
        return load_dataset('digits').x

def fit(part, every=50):
    "Train one part; its averaged weights and its log are written as it goes"
    (BOX/part).mkdir(parents=True, exist_ok=True)
    losses, log = [], []
    for s in train(network(part), digits(), PARTS[part][1], CONFIG, progress=True):
        losses.append(s.loss)
        if s.step % every: continue
        log.append([s.step, f'{sum(losses)/len(losses):.5f}', f'{s.lr:.3g}', f'{s.seconds:.0f}'])
        losses = []
        with open(BOX/part/'log.csv', 'w', newline='') as f: csv.writer(f, lineterminator='\n').writerows([['step', 'nats_per_dim', 'lr', 'seconds'], *log])
        if s.step % 500 == 0:
            save_file({k: v.contiguous() for k, v in s.ema.state_dict().items()}, BOX/part/'part')
            os.replace(BOX/part/'part', BOX/part/'model.safetensors')

@torch.no_grad()
def figures(sm, n=1000):
    "What the card says, measured on test digits"
    x, gen = load_dataset('digits', 'test')[:n][0], torch.Generator().manual_seed(0)
    x_noisy = KERNEL.sample(x, gen)
    mean = lambda f: sum(f(slice(i, i+50)).sum().item() for i in range(0, n, 50))/n
    error = lambda y: (y - x).square().mean().item()
    step = torch.cat([sm.denoise(x_noisy[i:i+50], 'single_step') for i in range(0, n, 50)])
    local = torch.cat([sm.denoise(x_noisy[i:i+50], 'single_step', score='local') for i in range(0, n, 50)])
    return {
        'smooth: nats/dim of smoothed test digits (exact; the noise alone has 0.726)': -mean(lambda i: sm.smooth.log_prob(x_noisy[i]))/784,
        'reverse: bits/dim of test digits given smoothed ones (conditional: not a likelihood of the data)': -mean(lambda i: sm.reverse.log_prob(x[i], x_noisy[i]))/784/math.log(2),
        'two-step: bits/dim of test digits (elbo)': -mean(lambda i: sm.bound(x[i], 1, gen))/784/math.log(2),
        'squared error of smoothed test digits': error(x_noisy),
        'after one step along the joint score': error(step),
        'after one step along the local score': error(local),
    }

def card():
    "Load the parts, write the box whole, and put the card beside it"
    parts = {p: network(p) for p in PARTS}
    for p, net in parts.items(): net.load_state_dict(load_file(BOX/p/'model.safetensors'))
    sm = SmoothedModel(**parts, kernel=KERNEL).eval()
    rows = '\n'.join(f'| {k} | {v:.4f} |' for k, v in figures(sm).items())
    (BOX/'README.md').write_text(f"""# digits

A smooth and a reverse PixelCNN++ for MNIST at sigma {KERNEL.sigma}. Made by `python scripts/train_digits.py`; each part's `log.csv` is its training loss.

| part | network | parameters |
|---|---|---|
""" + ''.join(f'| {p} | `PixelCNNpp({", ".join(f"{k}={v!r}" for k, v in (COMMON | PARTS[p][0]).items())})` | {sum(q.numel() for q in net.parameters()):,} |\n' for p, net in parts.items()) + f"""
Training: `{CONFIG}` on MNIST's 60,000 training images, float32, one thread. The weights are the averaged ones (EMA).

| measured on the first 1000 bundled test digits | |
|---|---|
{rows}

{NOTE}

Trained on MNIST (Y. LeCun, C. Cortes, C. J. C. Burges; CC BY-SA 3.0). Limits: a small network and a short run; some samples are not digits.
""")
    sm.save_pretrained(BOX)
    print((BOX/'README.md').read_text())

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--part', choices=[*PARTS, 'card'])
    part = parser.parse_args().part
    torch.set_num_threads(1)
    for p in ([part] if part in PARTS else [] if part else PARTS): fit(p)
    if part in (None, 'card'): card()
