"""Metrics: against closed forms, against other implementations, against each other; and what they refuse."""
import json
import math
import subprocess
import sys
import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import nn
from distsmooth import features
from distsmooth.data import load_dataset
from distsmooth.features import CLASSIFIER, DigitClassifier, Extractor, extract_features, image_batches, load_extractor
from distsmooth.metrics import NAMES, confidence, evaluate_samples, frechet_distance, inception_score, kernel_distance, mind, nearest, neighbourhoods

def gen(seed=0): return torch.Generator().manual_seed(seed)
def normal(*shape, seed=0): return torch.randn(*shape, generator=gen(seed), dtype=torch.float64)

def with_moments(x, mean, cov):
    "Features (n, D) whose mean and covariance are exactly these"
    x = x - x.mean(0)
    white = x @ torch.linalg.inv(torch.linalg.cholesky(x.T@x/(len(x) - 1))).T
    return white @ torch.linalg.cholesky(cov).T + mean

def flat(x): return x.flatten(1)[:, ::49]  # 16 pixels of a digit

@pytest.fixture(scope='module')
def real(): return load_dataset('digits', 'test').x

# -- single metrics --------------------------------------------------------------------------------------------------

def test_frechet_of_gaussians():
    d = 6
    a, b = normal(d, d, seed=1), normal(d, d, seed=2)
    cov_a, cov_b, mean = a@a.T + torch.eye(d), b@b.T + torch.eye(d), normal(d, seed=3)
    x, y = with_moments(normal(50, d), torch.zeros(d), cov_a), with_moments(normal(80, d, seed=4), mean, cov_b)
    truth = mean.square().sum() + (cov_a + cov_b).trace() - 2*sqrtm((cov_a@cov_b).numpy()).real.trace()
    assert frechet_distance(x, y) == pytest.approx(truth.item(), rel=1e-9)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)

def test_frechet_is_float64():
    "A mean that is far away leaves float32 no digits for the covariance"
    x, y = normal(100, 4), normal(100, 4, seed=1)
    assert frechet_distance(x + 1e4, y + 1e4) == pytest.approx(frechet_distance(x, y), rel=1e-4)

def test_kernel_distance_is_unbiased():
    found = torch.tensor([kernel_distance(normal(60, 4, seed=2*s), normal(60, 4, seed=2*s + 1)) for s in range(60)])
    assert abs(found.mean()) < 3*found.std()/60**.5 and (found < 0).any()
    assert kernel_distance(normal(60, 4), normal(60, 4, seed=1) + 1) > 10*found.std()

def test_kernel_distance_by_hand():
    x, y = normal(40, 5), normal(40, 5, seed=1) + .3
    def k(p, q): return (p@q.T/5 + 1)**3
    within = sum((m.sum() - m.trace())/(40*39) for m in (k(x, x), k(y, y)))
    assert kernel_distance(x, y) == pytest.approx((within - 2*k(x, y).mean()).item(), rel=1e-9)

def test_random_subsets_come_from_the_seed():
    x, y = normal(100, 5), normal(100, 5, seed=1)
    before = torch.random.get_rng_state()
    assert kernel_distance(x, y, 30) == kernel_distance(x, y, 30) != kernel_distance(x, y, 30, seed=1)
    assert torch.equal(before, torch.random.get_rng_state())

def test_mind():
    x, delta = normal(300, 8), normal(8, seed=1)
    assert mind(x, x) == 0 and mind(x, x[torch.randperm(300, generator=gen())]) < 1e-20
    assert mind(x, x + delta, 20_000) == pytest.approx(3*delta.square().sum().item(), rel=.05)
    assert mind(x, x + delta) == mind(x + delta, x) and mind(x, x + delta, seed=1) != mind(x, x + delta)

def test_mind_of_one_dimension():
    "There is one direction and its opposite: 3 times the squared Wasserstein distance"
    x, y = normal(50, 1), normal(50, 1, seed=1)*2
    assert mind(x, y, 3) == pytest.approx(3*(x.sort(0).values - y.sort(0).values).square().mean().item())

def test_inception_score():
    classes = 50*torch.eye(10).repeat(20, 1)
    assert inception_score(classes) == pytest.approx(10)
    assert inception_score(classes, splits=1) == inception_score(classes*1e9)   # no 0 times infinity
    assert inception_score(torch.zeros(50, 10)) == pytest.approx(1)
    assert inception_score(50*torch.eye(10)[[3]*50]) == pytest.approx(1)
    logits = normal(100, 4)
    p = logits.softmax(1)
    assert inception_score(logits) == pytest.approx((p*(p/p.mean(0)).log()).sum(1).mean().exp().item())

def test_confidence(): assert confidence(torch.zeros(5, 10)) == pytest.approx(.1) and confidence(torch.eye(4)*50) == pytest.approx(1)

def by_hand(a, b, k):
    "Naeem et al.'s definitions, one distance at a time"
    def d(p, q): return np.sqrt(((p - q)**2).sum())
    def radius(x, i): return sorted(d(x[i], x[j]) for j in range(len(x)) if j != i)[k - 1]
    r_a, r_b = ([radius(x, i) for i in range(len(x))] for x in (a, b))
    within = np.array([[d(p, q) <= r for q, r in zip(b, r_b)] for p in a])
    recall = np.array([[d(p, q) <= r for p, r in zip(a, r_a)] for q in b])
    return dict(precision=within.any(1).mean(), recall=recall.any(1).mean(), density=within.sum()/k/len(a), coverage=within.any(0).mean())

@pytest.mark.parametrize('k', [1, 3])
def test_neighbourhoods_by_hand(k):
    a, b = normal(30, 3)*.8, normal(40, 3, seed=1)
    found = neighbourhoods(a, b, k)
    assert found == pytest.approx(by_hand(a.numpy(), b.numpy(), k)) and 0 < found['recall'] < 1

def test_neighbourhoods_by_torch_fidelity():
    prc = pytest.importorskip('torch_fidelity.metric_prc')
    a, b = normal(700, 5)*.7, normal(600, 5, seed=1)
    precision, recall = prc.calculate_precision_recall_full(a, b, 3, 10_000)
    found = neighbourhoods(a, b, 3)
    assert (found['precision'], found['recall']) == pytest.approx((precision, recall)) and .5 < found['recall'] < 1

def test_nearest():
    x, y = normal(20, 2, 3), normal(5000, 2, 3, seed=1)
    y[4500] = x[7]
    d, i = nearest(x, y, 3)
    every = torch.cdist(x.flatten(1), y.flatten(1)).topk(3, largest=False)
    assert torch.equal(i, every.indices) and d[7, 0] == 0 and i[7, 0] == 4500
    torch.testing.assert_close(d, (x[:, None] - y[i]).flatten(2).norm(dim=2))

STREAMING = dict(FD=frechet_distance, KID=kernel_distance, MIND=mind, neighbourhoods=neighbourhoods, nearest=lambda a, b: nearest(torch.cat(list(a)), b, 3)[0].mean().item())
@pytest.mark.parametrize('metric', STREAMING)
def test_a_stream_is_a_batch(metric):
    a, b, f = normal(90, 4), normal(90, 4, seed=1), STREAMING[metric]
    assert f(iter(a.split(17)), iter(b.split(40))) == pytest.approx(f(a if metric != 'nearest' else [a], b), rel=1e-9)

# -- extractors ------------------------------------------------------------------------------------------------------

def right(net, ds):
    with torch.no_grad(): return (torch.cat([net(x) for x in ds.x.split(1000)]).argmax(1) == ds.labels).double().mean().item()

@pytest.fixture(scope='module')
def classifier():
    from safetensors.torch import load_file
    net = DigitClassifier()
    net.load_state_dict(load_file(CLASSIFIER))
    return net.eval()

def test_the_classifier_in_the_box(classifier):
    assert right(classifier, load_dataset('digits', 'test')) >= .989
    assert CLASSIFIER.stat().st_size < 1e6 and all(w.dtype != torch.float16 for w in classifier.state_dict().values())
    card = (CLASSIFIER.parent/'README.md').read_text()
    assert load_extractor('digits').weights_sha256 in card and 'make classifier' in card

def test_the_classifier_on_all_of_mnist(classifier):
    try: test = load_dataset('mnist', 'test')
    except FileNotFoundError: pytest.skip('needs MNIST in DISTSMOOTH_DATA')
    found = right(classifier, test)
    assert found >= .99 and f'{found:.2%}' in (CLASSIFIER.parent/'README.md').read_text()

def test_digits_features_are_the_last_hidden_layer(real, classifier):
    found, logits = load_extractor('digits')(real[:5])
    assert found.shape == (5, 64)
    torch.testing.assert_close(logits, classifier.head(found).detach())
    torch.testing.assert_close(logits, classifier(real[:5]).detach())

def test_own_extractors(real):
    net = nn.Sequential(nn.AvgPool2d(7), nn.Flatten(), nn.Linear(16, 3))
    mine = load_extractor(net)
    assert mine.name == 'Sequential' and mine(real[:4])[1] is None and not net.training and len(mine.weights_sha256) == 64
    with torch.no_grad(): net[2].weight += 1
    assert load_extractor(net).weights_sha256 != mine.weights_sha256
    e = evaluate_samples(real[:100], real[100:], flat, groups=0)
    assert e['FD'].title == 'FD-flat' and 'IS' not in e.measured and e.protocol['extractor']['features'] == 16
    assert Extractor('wide', flat, short='w').title('KID') == 'KID-w'

def test_only_inception_is_called_fid():
    titles = {e.name: [e.title(n) for n in ('FD', 'KID', 'IS', 'recall')] for e in (Extractor('digits', flat), Extractor('inception', flat), Extractor('x', flat, is_inception=True))}
    assert titles == {'digits': ['FD-digits', 'KID-digits', 'IS-digits', 'recall'], 'inception': ['FD-inception', 'KID-inception', 'IS-inception', 'recall'],
                      'x': ['FID', 'KID', 'IS', 'recall']}
    def digits(x): return flat(x)
    with pytest.raises(ValueError, match="must not have the name of one of ours, got 'digits'"): load_extractor(digits)
    with pytest.raises(ValueError, match="extractor must be one of .* got 'digit': did you mean 'digits'"): load_extractor('digit')

def test_lite0_knows_a_photograph():
    "Class 652 of ImageNet is a military uniform"
    pytest.importorskip('efficientnet_lite_pytorch')
    from matplotlib import cbook
    from PIL import Image
    with cbook.get_sample_data('grace_hopper.jpg') as f: photo = np.array(Image.open(f).convert('RGB'))
    x = torch.from_numpy(photo)[None].permute(0, 3, 1, 2)[..., :512, :].float()/127.5 - 1
    extractor = load_extractor('efficientnet-lite0')
    found, logits = extractor(x)
    assert found.shape == (1, 1280) and logits.argmax() == 652 and logits.softmax(1).max() > .3
    assert extractor.title('FD') == 'FD-lite0' and '224' in extractor.resize
    with pytest.warns(UserWarning, match='grey images through EfficientNet-Lite0'): extractor(x[:, :1])
    with pytest.raises(ValueError, match='3 channels, got 2'): extractor(x[:, :2])

def test_without_the_extra(real):
    code = """
import sys
for name in ('torchmetrics', 'torch_fidelity', 'efficientnet_lite_pytorch'): sys.modules[name] = None
from distsmooth.data import load_dataset
from distsmooth.metrics import evaluate_samples, load_extractor
x = load_dataset('digits', 'test').x
print(evaluate_samples(x[:100], x[100:], metrics=['MIND', 'precision']))
for f in (lambda: evaluate_samples(x[:100], x[100:], metrics=['FD']), lambda: load_extractor('efficientnet-lite0')):
    try: f(); raise SystemExit('no error')
    except ImportError as e: assert 'pip install distsmooth[metrics]' in str(e), e
"""
    subprocess.run([sys.executable, '-c', code], check=True, cwd='/')

def test_nothing_heavy_is_imported():
    code = "import sys, distsmooth.metrics; assert not {'torchmetrics', 'torch_fidelity', 'efficientnet_lite_pytorch'} & set(sys.modules)"
    subprocess.run([sys.executable, '-c', code], check=True, cwd='/')

def test_inception_is_never_fetched(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r'never downloaded.*weights-inception-2015-12-05-6726825d.pth'): load_extractor('inception')
    (tmp_path/'other.pth').write_bytes(b'other')
    with pytest.raises(ValueError, match='another file'): load_extractor('inception', tmp_path/'other.pth')

def test_inception_as_torch_fidelity_runs_it(tmp_path, monkeypatch, real):
    "With weights of no meaning, whose sha256 is put in the place of the real one's"
    module = pytest.importorskip('torch_fidelity.feature_extractor_inceptionv3')
    monkeypatch.setattr(module, 'load_state_dict_from_url', lambda *args, **kwargs: pytest.fail('asked the network'))
    made = []
    monkeypatch.setattr(module.FeatureExtractorInceptionV3, 'load_state_dict', lambda self, state: made.append(self), raising=False)
    torch.save({}, tmp_path/'empty.pth')
    module.FeatureExtractorInceptionV3('inception-v3-compat', ['2048'], str(tmp_path/'empty.pth'))
    monkeypatch.undo()
    torch.save(made[0].state_dict(), tmp_path/'inception.pth')
    monkeypatch.setattr(features, 'INCEPTION', f'some-{features._digest(tmp_path/"inception.pth")[:8]}.pth')
    extractor = load_extractor('inception', tmp_path/'inception.pth')
    with pytest.warns(UserWarning, match='grey images through Inception'): found, logits = extractor(real[:2])
    assert found.shape == (2, 2048) and logits.shape == (2, 1008) and extractor.title('FD') == 'FID' and extractor.title('IS') == 'IS'
    torch.testing.assert_close(found, made[0]((real[:2].expand(-1, 3, -1, -1) + 1).mul(127.5).round().byte())[0])

# -- images ----------------------------------------------------------------------------------------------------------

def write_shards(folder, x, size):
    folder.mkdir()
    for k, part in enumerate(x.split(size)): np.savez(folder/f'shard-{k:05d}.npz', x=part.numpy())
    (folder/'settings.json').write_text(json.dumps(dict(what='samples', seed=3)))
    return folder

def test_every_source_gives_the_same(real, tmp_path):
    x, ds = real[:70], torch.utils.data.TensorDataset(real[:70], torch.zeros(70))
    sources = x, x.numpy(), iter(x.split(30)), torch.utils.data.DataLoader(ds, 9), ds, write_shards(tmp_path/'s', x, 16), str(tmp_path/'s')
    for source in sources: assert torch.equal(torch.cat(list(image_batches(source, 20))), x)
    assert max(len(b) for b in image_batches(x, 20)) == 20

def test_shards_are_the_tensor(real, tmp_path):
    a = evaluate_samples(real[:100], real[500:900])
    b = evaluate_samples(write_shards(tmp_path/'s', real[:110], 32), real[500:900], n=100)
    assert a.measured.keys() == b.measured.keys()
    for name, m in a.measured.items():  # other batches, other last bits
        assert [b[name].value, b[name].error] == pytest.approx([m.value, m.error], rel=1e-5, abs=1e-6)
        assert (b[name].floor, b[name].floor_error) == (m.floor, m.floor_error)
    assert b.protocol['samples'] == [dict(name=str(tmp_path/'s'), clamped=0, settings=dict(what='samples', seed=3))]

def test_a_lost_shard_is_missed(real, tmp_path):
    (write_shards(tmp_path/'s', real[:30], 10)/'shard-00001.npz').unlink()
    with pytest.raises(ValueError, match='lacks shard-00001.npz'): evaluate_samples(tmp_path/'s', real)
    with pytest.raises(FileNotFoundError, match='no shard'): evaluate_samples(tmp_path/'nowhere', real)

def test_values_outside_are_clamped_and_said(real):
    x = real[:100].clone()
    x[:50, :, 14] = 7.
    e = evaluate_samples(x, real[500:], metrics=['precision'], groups=0)
    assert e.protocol['samples'][0]['clamped'] == pytest.approx(.5/28) and '1.8% of their values clamped' in str(e)
    assert e.measured == evaluate_samples(x.clamp(-1, 1), real[500:], metrics=['precision'], groups=0).measured

# -- all of it -------------------------------------------------------------------------------------------------------

def test_real_digits_are_near_the_floor_and_noise_is_far(real):
    near = evaluate_samples(real[:300], real[300:])
    far = evaluate_samples(torch.rand(300, 1, 28, 28, generator=gen())*2 - 1, real[300:], groups=0)
    for name in ('FD', 'MIND'):
        assert near[name].value < 2*near[name].floor and far[name].value > 20*far[name].floor
    assert abs(near.KID.value - near.KID.floor) < 5*near.KID.error and far.KID.value > 20*near.KID.error
    assert near.confidence.value > .98 and near.IS.value > 9 and near.precision.value > .7 and near.recall.value > .7
    assert far.precision.value < .1 and far.coverage.value < .1

def test_a_lost_class_is_recall_not_precision(real):
    labels = load_dataset('digits', 'test').labels
    without = evaluate_samples(real[(labels != 1) & (torch.arange(2000) % 2 == 0)], real[1::2], metrics=['precision', 'recall', 'coverage'], n=500, groups=0)
    assert without.precision.value > without.precision.floor - .05 and without.coverage.value < without.coverage.floor - .05

def test_sets_and_seeds(real):
    sets = [real[i*100:(i + 1)*100] for i in range(4)]
    e, each = evaluate_samples(sets, real[400:]), [evaluate_samples(s, real[400:], groups=0) for s in sets]
    for name in NAMES:
        values = torch.tensor([x[name].value for x in each], dtype=torch.float64)
        assert e[name].value == pytest.approx(values.mean().item()) and e[name].error == pytest.approx(values.std().item()/2)
        assert all(x[name].error is None and x[name].floor == e[name].floor for x in each)
    assert e.protocol['error'] == 'standard error over 4 independent sets' and each[0].protocol['error'] == 'none'

def test_the_jackknife_is_about_the_spread_over_sets(real):
    names, reference = ['FD', 'MIND', 'confidence', 'precision'], extract_features(real[1000:])
    sets = [evaluate_samples(x, reference, floor=real, metrics=names) for x in real[:1000].split(100)]
    for name in names:
        spread, error = (torch.tensor([getattr(s[name], what) for s in sets]) for what in ('value', 'error'))
        assert .4 < error.mean()/spread.std() < 2.5, name
    assert sets[0].protocol['error'] == 'jackknife over 10 groups of the one set'

def test_the_floor_is_real_against_real(real):
    e = evaluate_samples(real[:200], real[200:1000], groups=0)   # 2 sets of 200 come out of 800
    assert e.protocol['floor'] == '2 x 200 of reference, which lacks them' and e.protocol['reference']['n'] == 400
    order = torch.randperm(800, generator=gen())
    ref, floors = real[200:1000][order[400:]], [real[200:1000][order[:200]], real[200:1000][order[200:400]]]
    with torch.no_grad(): again = [evaluate_samples(f, ref, floor=real[1000:], groups=0, seed=5).FD.value for f in floors]
    assert e.FD.floor == pytest.approx(sum(again)/2, rel=1e-6)
    given = evaluate_samples(real[:200], real[200:1000], floor=real[1000:], groups=0)
    assert given.protocol['floor'] == '4 x 200 of floor' and given.protocol['reference']['n'] == 800

def test_features_may_be_given(real):
    ref = extract_features(('digits', 'test'))
    a, b = evaluate_samples(real[:100], ref), evaluate_samples(real[:100], ('digits', 'test'))
    assert a.measured == b.measured and a.protocol == b.protocol and a.protocol['reference']['name'] == 'digits test'
    with pytest.raises(ValueError, match='must be of the extractor'): evaluate_samples(real[:100], ref, flat)

def test_protocol_and_table(real):
    e = evaluate_samples(real[:100], ('digits', 'train'), floor=('digits', 'test'))
    d = json.loads(json.dumps(e.as_dict()))
    assert set(d['metrics']) == {'FD-digits', 'KID-digits', 'IS-digits', 'MIND', 'confidence', 'precision', 'recall', 'density', 'coverage'}
    assert set(d['metrics']['FD-digits']) == {'title', 'value', 'error', 'floor', 'floor_error', 'better'}
    p = d['protocol']
    assert p['n'] == 100 and p['reference']['name'] == 'digits train' and p['reference']['n'] == 10_000 and p['floor'] == '4 x 100 of digits test'
    assert p['extractor']['weights_sha256'] == features._digest(CLASSIFIER) and p['extractor']['resize'] == 'none' and 'float64' in p['dtype'] and p['versions']['torchmetrics']
    table = str(e)
    assert 'FD-digits' in table and 'FID' not in table and '±' in table and 'digits train' in table and e['FD-digits'] is e.FD is e['FD']
    assert e.protocol == evaluate_samples(real[:100], ('digits', 'train'), floor=('digits', 'test')).protocol

def test_a_small_set_has_no_jackknife_of_fd(real):
    e = evaluate_samples(real[:66], real[100:])
    assert e.FD.error is None and e.MIND.error > 0 and not math.isnan(e.KID.error)

REFUSED = {
    'bytes': (lambda x: evaluate_samples((x*127.5 + 127.5).byte(), x), r'samples must be in \[-1, 1\].*0 to 255'),
    'levels as floats': (lambda x: evaluate_samples(x*127.5 + 127.5, x), r'samples must be in \[-1, 1\].*\[0, 255\]'),
    'reference of levels': (lambda x: evaluate_samples(x[:100], x*127.5 + 127.5), r'reference must be in \[-1, 1\]'),
    'not finite': (lambda x: evaluate_samples(x[:100]/0, x), 'samples holds NaN or infinite'),
    'another shape': (lambda x: evaluate_samples(x[:, :, 1:], x), r'samples must be \(B, 1, 28, 28\)'),
    'nothing': (lambda x: evaluate_samples(iter([]), x), 'samples must hold images'),
    'no sets': (lambda x: evaluate_samples([], x), 'samples must be one set or several'),
    'sets of two sizes': (lambda x: evaluate_samples([x[:100], x[:99]], x), r'one size, got \[100, 99\]'),
    'n too large': (lambda x: evaluate_samples(x[:100], x, n=101), 'n must be at most 100, the images of samples, got 101'),
    'FD': (lambda x: evaluate_samples(x[:64], x), r'n=64 samples are too few.*FD takes 65.*one more than features'),
    'neighbours': (lambda x: evaluate_samples(x[:8], x, metrics=['recall'], k=8), 'recall takes 9'),
    'small reference': (lambda x: evaluate_samples(x[:1001], x), '1001 samples take 1001 images of the reference.*floor='),
    'small floor': (lambda x: evaluate_samples(x[:100], x, floor=x[:99]), 'there are 2000 and 99'),
    'unknown metric': (lambda x: evaluate_samples(x[:100], x, metrics=['FID']), "metrics must be one of .* got 'FID'"),
    'no classes': (lambda x: evaluate_samples(x[:100], x, flat, metrics=['IS']), 'IS needs an extractor that tells classes, flat does not'),
    'groups': (lambda x: evaluate_samples(x[:100], x, groups=-1), 'groups must be'),
    'k': (lambda x: evaluate_samples(x[:100], x, k=0), 'k must be'),
    'rank': (lambda x: frechet_distance(normal(5, 5), normal(9, 5)), 'n must be at least 6 for FD, got 5'),
    'subset': (lambda x: kernel_distance(normal(50, 5), normal(90, 5), 60), 'n must be at least 60 for KID, got 50'),
    'unequal': (lambda x: mind(normal(5, 5), normal(6, 5)), 'equally many'),
    'k of neighbourhoods': (lambda x: neighbourhoods(normal(5, 5), normal(9, 5)), 'n must be at least 6 for precision'),
    'k of nearest': (lambda x: nearest(normal(5, 5), normal(2, 5), 3), 'n must be at least 3 for nearest, got 2'),
    'splits': (lambda x: inception_score(normal(5, 5), splits=3), 'n must be at least 6 for IS'),
}
@pytest.mark.parametrize('case', REFUSED)
def test_refused(case, real):
    f, words = REFUSED[case]
    with pytest.raises(ValueError, match=words): f(real)

def test_images_in_0_1_are_doubted(real):
    with pytest.warns(UserWarning, match=r'not in \[0, 1\]'): extract_features(real[:10]/2 + .5, flat)
