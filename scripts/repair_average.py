"""Take the first step out of the averaged weights in the box: how those of version 0.1.0 were repaired.

    python scripts/repair_average.py    # MNIST in DISTSMOOTH_DATA, the weights of 0.1.0 in place; a few minutes

A record of what was done; the card of the model tells it in short. It needs the parameter names of 0.1.0
(`level` for today's `sigma_embedding`, PyTorch's `parametrizations.weight.original0` for `weight_g`), so it
runs at the commit that added it: `git log --diff-filter=A -- scripts/repair_average.py`. Today it finds
weights that are repaired already, and changes nothing.

What was wrong. An average with a constant decay d, begun at the weights w1 after the first step, holds
d^(T-1) of them after T steps. The loop that trained the box averaged so, with d = 0.999 and T = 3750:
2.35 % of the average were weights that had taken a single step. A reverse network at 0.67 nats/dim
became one at 0.79.

What is done. That share is known, and w1 follows from the recipe and its seed, so
w = (average - d^(T-1) w1)/(1 - d^(T-1)) is the same average of the other steps. The gains and the
directions of weight-normed layers were averaged one by one, so they are repaired one by one.

What is checked, before anything is written. The weights found are those of 0.1.0, and score what their
log says. The repaired ones score lower on the log's 500 test digits; and on the very batches of the
log's last line, with the same noise, within 0.02 nats/dim of that line: its learning rate is below
1e-6, so that the weights stood still.

The log's test column, which told of the old weights, then tells of the repaired ones. Run again, the
script finds other weights than it repairs, and changes nothing.
"""
import csv, hashlib, io, math, sys, tempfile
import torch
import yaml
from safetensors.torch import load_file
from distsmooth.engine.checkpoint import write_whole
from distsmooth.data import load_dataset
from distsmooth.pipeline import PRETRAINED, load_parts, save_parts
from distsmooth.engine.experiment import RECIPES, Data, Experiment, Log, Network, Recipe, Objective, evaluate
from distsmooth.training import TrainConfig

BOX, DECAY, STEPS, EVERY, TEST_DIGITS, NEAR = PRETRAINED/'digits', .999, 3750, 25, 500, .02
SHARE = DECAY**(STEPS - 1)
FOUND = {  # sha256 of model.safetensors, as version 0.1.0 had them
    'smooth': '8691af0de0f2aa687bc38b3fcc9c9108193e56ca5b17adf2ba94fbb7d2c9408a',
    'reverse': 'ff15a75267dd34f672c167886ce883c939dff7c7bbe08639ed4236a4c5503eb2',
    'raw': '50d320ab640838c33588584443799a61f52bf61bbbe8e08c102850967b722c85',
}

def recipe(part):
    "What the box was trained by: the recipe of that part, on MNIST"
    given = yaml.safe_load((RECIPES/f'digits-{part}.yaml').read_text())
    given['data']['name'] = 'mnist'
    made = dict(data=Data, objective=Objective, network=Network, train=TrainConfig, log=Log)
    return Recipe(**{k: make(**given[k]) for k, make in made.items()})

def first_step(part):
    "The run of a part after one step"
    with tempfile.TemporaryDirectory() as out: run = Experiment(recipe(part), out).run
    run.advance()
    return run

def without(average, first):
    "The average without its share of the first weights, name by name; float64 between"
    return {k: ((w.double() - SHARE*first[k].double())/(1 - SHARE)).to(w.dtype) for k, w in average.items()}

def on_test(run, weights):
    "Nats/dim, by the test protocol of the log"
    run.ema.module.load_state_dict(weights)
    return evaluate(run, load_dataset('digits', 'test'), TEST_DIGITS)

@torch.no_grad()
def on_last_line(run, weights):
    "Nats/dim of the batches that the last line of the log is the mean of"
    run.model.load_state_dict(weights)
    losses = []
    for run.step in range(STEPS - EVERY, STEPS):
        target, conditions = run.batch()
        losses.append(run.losses(target, **conditions).mean())
    return torch.stack(losses).mean().item()

def need(true, what):
    if not true: sys.exit(f'nothing was changed: {what}')

def read_log(part): return list(csv.DictReader((BOX/part/'log.csv').read_text().splitlines()))

def write_log(part, nats):
    "The log of a part, with another score of test digits at its end"
    rows, text = read_log(part), io.StringIO()
    rows[-1] |= dict(test_nats_per_dim=f'{nats:.6g}', test_bits_per_dim=f'{nats/math.log(2):.6g}')
    writer = csv.DictWriter(text, list(rows[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    write_whole(BOX/part/'log.csv', lambda f: f.write(text.getvalue().encode()))

def check(part, test, line):
    "Stop unless the scores (before, after) on test digits and on the last line's batches are what the log lets expect"
    last = read_log(part)[-1]
    logged, trained = (float(last[k]) for k in ('test_nats_per_dim', 'train_nats_per_dim'))
    print('{:8} test digits {:.4f} -> {:.4f},'.format(part, *test), end=' ')
    print('batches of the last line {:.4f} -> {:.4f}, the log says {:.4f}'.format(*line, trained), flush=True)
    need(abs(test[0] - logged) < 1e-3, f'{part} scores {test[0]:.4f} on test digits, its log says {logged:.4f}')
    need(test[1] < test[0], f'{part} would score {test[1]:.4f} on test digits, no better than {test[0]:.4f}')
    need(abs(line[1] - trained) < NEAR, f"{part} would score {line[1]:.4f} on its last line's batches, not {trained:.4f}")

def repaired(part):
    "The repaired weights of a part, and what they score on test digits; nothing is written"
    average, run = load_file(BOX/part/'model.safetensors'), first_step(part)
    both = average, without(average, run.model.state_dict())
    test, line = ([score(run, w) for w in both] for score in (on_test, on_last_line))
    check(part, test, line)
    return both[1], test[1]

def main():
    for part, expected in FOUND.items():
        digest = hashlib.sha256((BOX/part/'model.safetensors').read_bytes()).hexdigest()
        need(digest == expected, f'{part} holds other weights than those of 0.1.0: repaired already, or trained anew '
                                 f'(sha256 {digest[:12]}..., not {expected[:12]}...)')
    found, model = {part: repaired(part) for part in FOUND}, load_parts('digits')
    for part, (weights, nats) in found.items():
        model[part].load_state_dict(weights)
        write_log(part, nats)
    save_parts(BOX, model.pop('kernel'), **model)

if __name__ == '__main__': main()
