"""Pack the bundled `digits`: the first 1,000 training and 200 test images of each class of MNIST, as distsmooth/digits.npz.

    python scripts/pack_digits.py [ROOT]       # ROOT holds MNIST/raw/*; see distsmooth.data.data_root

MNIST (Y. LeCun, C. Cortes, C. J. C. Burges) is available under the Creative Commons Attribution-ShareAlike 3.0 licence;
so is this part of it. The images are unchanged and in their original order.
"""
import os, sys
import numpy as np
from torchvision.datasets import MNIST
from distsmooth.data import DIGITS, data_root

def first_of_each(dataset, n):
    "The first `n` images of every class, in the order of the data set"
    labels = dataset.targets.numpy()
    keep = np.sort(np.concatenate([np.flatnonzero(labels == c)[:n] for c in range(10)]))
    return dataset.data.numpy()[keep], labels[keep].astype(np.uint8)

def main(root=None):
    train_x, train_y = first_of_each(MNIST(data_root(root), train=True), 1000)
    test_x, test_y = first_of_each(MNIST(data_root(root), train=False), 200)
    part = DIGITS.with_suffix('.part')
    with open(part, 'wb') as f: np.savez_compressed(f, train_x=train_x, train_y=train_y, test_x=test_x, test_y=test_y)
    os.replace(part, DIGITS)
    print(f'{DIGITS}: {len(train_x)} + {len(test_x)} images, {DIGITS.stat().st_size/1e6:.2f} MB')

if __name__ == '__main__': main(*sys.argv[1:])
