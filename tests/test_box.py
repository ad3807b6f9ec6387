"""The models in the box: the files are there, each network is what its recipe makes, and its weights score what its log says."""
import csv
import json
import math
import pytest
import torch
import yaml
from safetensors.torch import load_file
from distsmooth.cli import main
from distsmooth.data import CIFAR10_CLASSES
from distsmooth.pipeline import KERNELS, NETWORKS, PRETRAINED, SmoothedModel, load_parts
from distsmooth.engine.experiment import RECIPES, Data, Log, Network, Recipe, Objective, evaluate, quantity
from distsmooth.training import Trainer, TrainConfig

BOXES = sorted(p.parent for p in PRETRAINED.glob('*/config.json'))
PARTS = sorted(p.parent for p in PRETRAINED.glob('*/*/config.json'))
each_box = pytest.mark.parametrize('box', BOXES, ids=lambda p: p.name)
each_part = pytest.mark.parametrize('part', PARTS, ids=lambda p: f'{p.parent.name}-{p.name}')

def recipe(part):
    "The recipe of a network: beside it, or with the names of its box and its part"
    own = part/'recipe.yaml'
    given = yaml.safe_load((own if own.is_file() else RECIPES/f'{part.parent.name}-{part.name}.yaml').read_text())
    made = dict(data=Data, objective=Objective, network=Network, train=TrainConfig, log=Log)
    return Recipe(**{k: make(**given[k]) for k, make in made.items()})

def log(part): return list(csv.DictReader((part/'log.csv').read_text().splitlines()))
def config(folder): return json.loads((folder/'config.json').read_text())
def network(part): return load_parts(part.parent.name)[part.name]

@pytest.fixture(scope='module')
def scored():
    "Nats/dim of the test images of a run, by its protocol: the same noise and noise levels as in its log; asked once for each network"
    known = {}
    def score(part):
        if part not in known:
            r = recipe(part)
            try: train, test = r.data.load('train'), r.data.load('test')
            except FileNotFoundError as e: pytest.skip(str(e))
            known[part] = evaluate(Trainer(network(part), train, r.objective.make, r.train), test, r.log.test_images)
        return known[part]
    return score

def test_there_is_a_box(): assert {'digits', 'cifar10-16'} == {b.name for b in BOXES} and all({'smooth', 'reverse', 'raw'} == {p.name for p in PARTS if p.parent == b} for b in BOXES)

@each_box
def test_a_box_is_whole(box):
    (kernel, sigma), = (given := config(box)).pop('kernel').items()
    given.pop('sha256', None)  # not told by version 0.1
    assert (box/'README.md').is_file() and kernel in KERNELS and set(given.values()) <= set(NETWORKS)
    assert {p.name for p in PARTS if p.parent == box} == set(given)
    low, high = SmoothedModel.from_pretrained(box.name).smooth.sigma_range or (sigma, sigma)
    assert 0 < low <= sigma <= high < 2     # 2 is from black to white

@each_part
def test_a_network_is_its_recipes(part):
    r, net = recipe(part), network(part)
    assert all((part/f).is_file() for f in ('model.safetensors', 'log.csv')) and config(part)['head'] == r.network.head
    assert net.sigma_range == (None if part.name == 'raw' else r.objective.sigma_range)
    fresh = r.network.make(net.channels, net.size, r.objective)
    assert {k: v.shape for k, v in net.state_dict().items()} == {k: v.shape for k, v in fresh.state_dict().items()}

@each_part
def test_a_log_is_whole(part):
    r, rows = recipe(part), log(part)
    steps = [int(row['step']) for row in rows]
    assert steps == sorted({*range(r.log.every, r.train.steps, r.log.every), r.train.steps}) and rows[-1]['test_nats_per_dim']
    assert {row['of'] for row in rows} == {quantity(part.name, r.network.head)}

@each_part
def test_the_log_tells_of_these_weights(part, scored):
    "To a thousandth of a bit"
    assert abs(scored(part) - float(log(part)[-1]['test_nats_per_dim'])) < 1e-3*math.log(2)

@each_part
def test_an_average_is_no_worse_than_what_it_averages(part, scored):
    "The networks saw each image six times at most, and the last 500 steps moved them little"
    last = [float(row['train_nats_per_dim']) for row in log(part)[-500//recipe(part).log.every:]]
    assert scored(part) < sum(last)/len(last) + .03

COLOUR = PRETRAINED/'cifar10-16'

@pytest.mark.parametrize('part', ['smooth', 'reverse', 'raw'])
def test_colour_is_kept_in_half_precision(part):
    "What that costs, `test_the_log_tells_of_these_weights` says: the log is of the float32 weights"
    assert {w.dtype for w in load_file(COLOUR/part/'model.safetensors').values() if w.is_floating_point()} == {torch.float16}

def test_colour_is_small_and_holds_weights_alone():
    files = [p for p in COLOUR.rglob('*') if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 8e6 and {p.suffix for p in files} == {'.md', '.json', '.csv', '.yaml', '.safetensors'}

def test_a_ship(tmp_path):
    sm = SmoothedModel.from_pretrained('cifar10-16')
    ship = CIFAR10_CLASSES.index('ship')
    x = sm.sample(2, sigma=.2, label=ship, seed=0)
    assert x.shape == (2, 3, 16, 16) and x.abs().max() <= 1 and not torch.equal(x, sm.sample(2, sigma=.2, label=CIFAR10_CLASSES.index('frog'), seed=0))
    main(['sample', '--model', 'cifar10-16', '--out', str(tmp_path/'noisy'), '--n', '2', '--sigma', '.2', '--label', 'ship'])
    main(['denoise', '--model', 'cifar10-16', '--samples', str(tmp_path/'noisy'), '--out', str(tmp_path/'clean')])
    for name in ('noisy', 'clean'): assert json.loads((tmp_path/name/'settings.json').read_text())['label'] == ship
    with pytest.raises(SystemExit, match="label must be one of .*, got 'shop': did you mean 'ship'"): main(['sample', '--model', 'cifar10-16', '--out', str(tmp_path/'x'), '--label', 'shop'])
