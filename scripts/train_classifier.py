"""Train the classifier whose features digits are compared by, and write it with its card: distsmooth/pretrained/classifier.

    make classifier                            # MNIST in DISTSMOOTH_DATA; seven minutes of one core

MNIST's 60,000 training digits, float32, one thread, seed 0: Adam, 128 digits a step, a learning rate that rises and falls once, each batch moved by up to two pixels.
Then the features are scaled to a mean square of 1, which the kernel of KID is made for.
The same machine writes the same file; another one, with other kernels, rounds otherwise and ends at other weights of about the same accuracy.
"""
import platform, time
from hashlib import sha256
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tqdm import tqdm
from distsmooth.data import load_dataset
from distsmooth.features import CLASSIFIER, DigitClassifier

EPOCHS, BATCH, RATE = 7, 128, 4e-3

def moved(x, by=2):
    "A batch, moved by up to `by` pixels in each direction"
    i, j = torch.randint(2*by + 1, (2,)).tolist()
    return F.pad(x, [by]*4, value=-1)[..., i:i + x.shape[2], j:j + x.shape[3]]

def fit(x, y, epochs=EPOCHS, batch=BATCH, rate=RATE, seed=0):
    "A classifier of digits `x` (N, 1, 28, 28), trained on them"
    torch.manual_seed(seed)
    net = DigitClassifier().to(memory_format=torch.channels_last)
    opt = torch.optim.Adam(net.parameters())
    plan = torch.optim.lr_scheduler.OneCycleLR(opt, rate, epochs*(len(x)//batch), pct_start=.2)
    for epoch in range(epochs):
        for i in tqdm(torch.randperm(len(x)).split(batch)[:len(x)//batch], desc=f'epoch {epoch + 1} of {epochs}', disable=None):
            loss = F.cross_entropy(net(moved(x[i])), y[i])
            opt.zero_grad()
            loss.backward()
            opt.step()
            plan.step()
        print(f'epoch {epoch + 1} of {epochs}: loss of the last batch {loss.item():.4f}', flush=True)
    return net.eval()

@torch.no_grad()
def scaled(net, x):
    "The same classifier, with features of mean square 1 over `x`: what the hidden layer loses, the head gains"
    by = net.features(x).square().mean().sqrt()
    net.hidden[0].weight /= by
    net.hidden[0].bias /= by
    net.head.weight *= by
    return net

@torch.no_grad()
def accuracy(net, x, y): return sum((net(a).argmax(1) == b).sum().item() for a, b in zip(x.split(1000), y.split(1000)))/len(x)

def card(net, digest, test, minutes):
    bundled = load_dataset('digits', 'test')
    return f"""# classifier

The network that `distsmooth.metrics` compares digits by: `DigitClassifier`, {sum(p.numel() for p in net.parameters()):,} parameters, {net.head.in_features} features of mean square 1. What is measured with it is called FD-digits, KID-digits, IS-digits,
never FID: it is no Inception network, and its numbers compare with nothing but each other.

| | |
|---|---|
| made by | `make classifier` (`scripts/train_classifier.py`): MNIST's 60,000 training digits, {EPOCHS} passes, float32, one thread, seed 0 |
| time | {minutes:.1f} minutes of one core |
| right, of MNIST's {len(test):,} test digits | {accuracy(net, test.x, test.labels):.2%} |
| right, of the {len(bundled):,} bundled test digits | {accuracy(net, bundled.x, bundled.labels):.2%} |
| sha256 of `model.safetensors` | `{digest}` |
| torch | {torch.__version__.partition('+')[0]}, Python {platform.python_version()} |

Digits must be (B, 1, 28, 28) in [-1, 1], ink 1, as MNIST has them. Trained on MNIST (Y. LeCun, C. Cortes, C. J. C. Burges; CC BY-SA 3.0). It knows only digits: a high confidence is no proof of one.
"""

def main():
    torch.set_num_threads(1)
    train, test, start = load_dataset('mnist'), load_dataset('mnist', 'test'), time.process_time()
    net = scaled(fit(train.x, train.labels), train.x[:10_000])
    minutes = (time.process_time() - start)/60
    CLASSIFIER.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: w.contiguous() for name, w in net.state_dict().items()}, CLASSIFIER)
    text = card(net, sha256(CLASSIFIER.read_bytes()).hexdigest(), test, minutes)
    (CLASSIFIER.parent/'README.md').write_text(text)
    print(text)

if __name__ == '__main__': main()
