"""Which recipe learns most for the same work? Networks of raw digits, one thread, each trained for as many steps as cost what `IMAGES` images cost the first recipe.

    python scripts/study_recipe.py                   # goes on where it stood; all candidates, or those that are named

Writes results/recipe.json: for each candidate what an image costs (against the first, timed in turns), its steps, and bits/dim (8-bit, exact) of the first 1000 MNIST test digits.
"""
import json, sys, time
from pathlib import Path
import torch
from distsmooth.data import load_dataset
from distsmooth.engine.fused import keep_memory
from distsmooth.pixelcnn import PixelCNNpp
from distsmooth.training import TrainConfig, Trainer, raw_objective

FOLDER, IMAGES, N_TEST = Path(__file__).parent.parent/'results', 6000, 1000
NETWORK, TRAIN = dict(n_filters=32, n_resnet=2, n_mix=5, dropout=0., head='discretized'), dict(batch_size=16, lr=.004, ema=.999)
CANDIDATES = {
    'as in 0.1.0': {},
    'lr 0.002': dict(lr=.002), 'lr 0.008': dict(lr=.008),
    'batch 8': dict(batch_size=8), 'batch 32': dict(batch_size=32), 'batch 32, lr 0.006': dict(batch_size=32, lr=.006),
    '1 block': dict(n_resnet=1), '3 blocks': dict(n_resnet=3),
    'width 24': dict(n_filters=24), 'width 48': dict(n_filters=48), 'width 48, 1 block': dict(n_filters=48, n_resnet=1),
    '10 mixtures': dict(n_mix=10),
    'betas 0.9, 0.999': dict(betas=(.9, .999)), 'average 0.99': dict(ema=.99),
}

def make(change, data, steps):
    network = {k: change.get(k, v) for k, v in NETWORK.items()}
    train = TRAIN | {k: v for k, v in change.items() if k not in NETWORK}
    torch.manual_seed(0)
    return Trainer(PixelCNNpp(**network), data, raw_objective, TrainConfig(steps=steps, **train))

def seconds(change, data, steps=4):
    "CPU seconds that an image takes, after a warm-up"
    run = make(change, data, 10**6)
    for _ in range(2): run.advance()
    start = time.process_time()
    for _ in range(steps): run.advance()
    return (time.process_time() - start)/steps/run.n

def cost(change, data): return min(seconds(change, data) for _ in range(3))/min(seconds({}, data) for _ in range(3))

@torch.no_grad()
def bits(model, x): return -torch.cat([model.log_prob(part) for part in x.split(50)])/model.dims/torch.log(torch.tensor(2.))

def candidate(name, data, test):
    "Train one candidate"
    change = CANDIDATES[name]
    work = cost(change, data) if change else 1.
    run = make(change, data, int(IMAGES/work/change.get('batch_size', TRAIN['batch_size'])))
    start = time.process_time()
    for state in run.go(): pass
    b = bits(state.ema, test)
    return dict(change=change, cost=work, steps=state.step, images=state.step*run.n, parameters=sum(p.numel() for p in state.ema.parameters()),
                bits_per_dim=b.mean().item(), stderr=(b.std()/len(b)**.5).item(), cpu_seconds=time.process_time() - start, values=b.tolist())

if __name__ == '__main__':
    torch.set_num_threads(1)
    keep_memory()
    data, test = load_dataset('mnist').x, load_dataset('mnist', 'test').x[:N_TEST]
    for name in sys.argv[1:] or CANDIDATES:
        file = FOLDER/'recipe'/f'{name.replace(" ", "-")}.json'
        if not file.exists():
            row = candidate(name, data, test)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(row))
        row = json.loads(file.read_text())
        print(name, {k: v for k, v in row.items() if k != 'values'}, flush=True)
