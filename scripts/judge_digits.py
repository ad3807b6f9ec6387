"""Judge samples without looking: how sure is a small classifier, and how near do its features come to those of real digits?

    distsmooth demo --out out --n 64
    python scripts/judge_digits.py out/samples.npz

A convolutional network is trained on the bundled training digits (about a minute on two cores), and then asked about every array in the file.
confidence: mean of its largest class probability (it knows only digits: a high value is no proof of one, a low one is a warning).
distance: squared Frechet distance of its 64 features to those of the 2,000 test digits; the row 'real, half against half' is the scale of chance.
"""
import sys
import numpy as np
import torch
import torch.nn.functional as F
from scipy.linalg import sqrtm
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

def frechet(a, b):
    "Squared Frechet distance between the normal fits of two sets of features"
    (ma, ca), (mb, cb) = ((f.mean(0), np.cov(f, rowvar=False)) for f in (a, b))
    return float(((ma - mb)**2).sum() + np.trace(ca + cb - 2*sqrtm(ca@cb).real))

@torch.no_grad()
def judge(net, x):
    "Mean confidence, and the features (N, 64)"
    return net(x).softmax(1).amax(1).mean().item(), net[:-1](x).double().numpy()

def main(path):
    with np.load(path) as f: arrays = {k: torch.as_tensor(f[k]) for k in ('clean', 'smoothed', 'single_step', 'two_step')}
    train, test = load_dataset('digits'), load_dataset('digits', 'test')
    net = fit(train.x, train.labels)
    with torch.no_grad(): print(f'judge: {(net(test.x).argmax(1) == test.labels).float().mean():.1%} of test digits right')
    confidence, real = judge(net, test.x)
    print(f'{"":26} confidence  distance\n{"real (test digits)":26} {confidence:10.3f}')
    print(f'{"real, half against half":26} {"":10} {frechet(real[::2], real[1::2]):9.2f}')
    for name, x in arrays.items():
        confidence, features = judge(net, x)
        print(f'{name + f" ({len(x)})":26} {confidence:10.3f} {frechet(features, real):9.2f}')

if __name__ == '__main__': main(*sys.argv[1:] or ['out/samples.npz'])
