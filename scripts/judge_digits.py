"""Judge samples without looking: how sure is a small classifier, and how near do its features come to those of real digits?

    distsmooth demo --out out --n 64
    python scripts/judge_digits.py out/samples.npz

A convolutional network is trained on the bundled training digits (about a minute on two cores), and then asked about every array in the file.
confidence: mean of its largest class probability (it knows only digits: a high value is no proof of one, a low one is a warning).
distance: squared kernel distance (the unbiased KID estimate of Binkowski et al. 2018, on this judge's 64 features) to the 2,000 test digits.
It is 0 on average for real digits, scatters around that (below 0 too) for few samples, and is not comparable with a KID on Inception features.
"""
import sys
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from distsmooth.data import load_dataset

def network():
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 32, 5, 2, 2), nn.ReLU(), nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.LazyLinear(64), nn.ReLU(), nn.Linear(64, 10))

def fit(x, y, epochs=6, seed=0):
    torch.manual_seed(seed)
    net = network()
    net(x[:1])
    opt = torch.optim.Adam(net.parameters(), 2e-3)
    for epoch in range(epochs):
        for i in torch.randperm(len(x)).split(64):
            opt.zero_grad()
            F.cross_entropy(net(x[i]), y[i]).backward()
            opt.step()
    return net.eval()

def kernel_distance(a, b):
    "Unbiased squared MMD between features (N, D) and (M, D), with the kernel (a.b/D + 1)^3"
    k = lambda p, q: (p@q.T/p.shape[1] + 1)**3
    within = [(m.sum() - m.trace())/(len(m)*(len(m)-1)) for m in (k(a, a), k(b, b))]
    return (sum(within) - 2*k(a, b).mean()).item()

@torch.no_grad()
def judge(net, x):
    "Mean confidence, and the features (N, 64)"
    return net(x).softmax(1).amax(1).mean().item(), net[:-1](x)

def main(path):
    with np.load(path) as f: arrays = {k: torch.as_tensor(f[k]) for k in ('clean', 'smoothed', 'single_step', 'two_step')}
    train, test = load_dataset('digits'), load_dataset('digits', 'test')
    net = fit(train.x, train.labels)
    with torch.no_grad(): print(f'judge: {(net(test.x).argmax(1) == test.labels).float().mean():.1%} of test digits right')
    _, real = judge(net, test.x)
    print(f'{"":26} confidence  distance')
    for name, x in ({'training digits': train.x[::60]} | arrays).items():
        confidence, features = judge(net, x)
        print(f'{name + f" ({len(x)})":26} {confidence:10.3f} {kernel_distance(features/real.std(), real/real.std()):9.3f}')

if __name__ == '__main__': main(*sys.argv[1:] or ['out/samples.npz'])
