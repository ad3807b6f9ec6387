"""Studies: each runs, goes on where it was stopped, and its tables are what its file says, wherever they are shown."""
import json
import math
import re
import shutil
from pathlib import Path
import pytest
import torch
import forks
from distsmooth.cli import main
from distsmooth.data import load_dataset
from distsmooth.engine.cells import load_result
from distsmooth.engine.study import draw, run_study, stale_tables, studies, tables
from distsmooth.engine.study_cost import curves, curves_of_test, training_flop
from distsmooth.engine.study_toys import ToyTruth, energy_distance
from distsmooth.pipeline import SmoothedModel, load_parts, save_parts
from distsmooth.pixelcnn import PixelCNNpp
from distsmooth.smoothing import GaussianKernel
from distsmooth.training import make_generator, smooth_objective

assert forks.os.environ['ACCELERATE_USE_CPU']  # set before anything trains
ROOT = Path(__file__).resolve().parent.parent
NET = dict(size=28, n_filters=2, n_resnet=1, n_mix=1)

@pytest.fixture(scope='module')
def model(tmp_path_factory):
    "A saved model of digits that is as quick as such a model can be"
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp('model')/'m'
    save_parts(folder, GaussianKernel(.5), smooth=PixelCNNpp(**NET, sigma_range=(.1, 1.)), raw=PixelCNNpp(**NET, head='discretized'),
               reverse=PixelCNNpp(**NET, head='discretized', context_channels=1, sigma_range=(.1, 1.)))
    return str(folder)

def quick(name, results, model, **how):
    known = studies()[name].settings
    return run_study(name, results, quick=True, report=how.pop('report', lambda text: None), **dict(model=model) if {'model', 'data'} <= set(known) else {},
                     **dict(one=model) if 'one' in known else {}, **how)

@pytest.fixture(scope='module')
def done(model, tmp_path_factory):
    "The quick run of a study, worked out once"
    folder, known = tmp_path_factory.mktemp('results'), {}
    def run(name):
        if name not in known: known[name] = quick(name, folder, model)
        return known[name], folder
    return run

ROOT = Path(__file__).resolve().parent.parent
ALL = ['table1', 'sigmas', 'drift', 'memorisation', 'kernels', 'mixtures', 'time', 'variants', 'recipe', 'recipe_colour', 'compute', 'ladder', 'ladder_digits', 'one_level', 'bound', 'flow', 'series', 'cifar10']
def test_the_studies(): assert set(studies()) == set(ALL)

@pytest.mark.parametrize('name', ALL)
def test_a_study_runs_and_writes_down_what_it_is(name, done):
    result, folder = done(name)
    assert json.loads((folder/f'{name}-quick.json').read_text()) == result == load_result(f'{name}-quick', folder)
    assert {'schema', 'command', 'version', 'commit', 'date', 'machine', 'seconds', 'seeds', 'settings', 'about', 'cells'} <= set(result)
    assert result['command'].startswith(f'distsmooth study {name} ') and result['about'] == studies()[name].about and studies()[name].cost
    assert (draw(result) is not None) == (folder/f'{name}-quick.png').exists() == (studies()[name].figure is not None)

@pytest.mark.parametrize('name', ALL)
def test_its_tables_are_marked_and_hold_to_the_file(name, done):
    result, folder = done(name)
    page = f'before\n{tables(result)}\nafter'
    assert page.count('<!-- results/') == len(studies()[name].tables(result)) >= 1 and not stale_tables(page, folder)
    number = re.search(r'\| [^|\n]*?(\d\.\d+)', page)
    wrong = page[:number.start(1)] + str(float(number[1]) + 1) + page[number.end(1):]
    assert len(stale_tables(wrong, folder)) == 1

def test_each_figure_of_a_sample_table_is_in_the_file(done):
    from distsmooth.engine.cells import stated
    result, _ = done('table1')
    text = tables(result)
    for c in result['cells']:
        for m in c['figures']['metrics'].values(): assert stated(m['value'], m['error']) in text
    assert '| two step, stacked' in text and 'not trained' in text and any('stacked' in line for line in result['left_out'])

def test_levels_that_the_networks_do_not_know_are_said(model):
    cells, _, more = studies()['sigmas'].cells(model=model, levels=[.05, .5])
    assert 'sigma 0.05: the networks know 0.1 to 1' in more['left_out']
    assert {c.about['sigma'] for c in cells} == {None, .5}

def test_other_networks_get_their_rows(model, tmp_path, done):
    "A raw network of longer training, the published second network: each beside those of the model, which stay as they are"
    from distsmooth.conditional import StackedPixelCNNpp
    save_parts(tmp_path/'stacked', GaussianKernel(.5), reverse=StackedPixelCNNpp(**NET, head='discretized'))
    save_parts(tmp_path/'longer', GaussianKernel(.5), raw=PixelCNNpp(**NET, head='discretized'))
    result = quick('table1', tmp_path, model, stacked=str(tmp_path/'stacked'), longer=str(tmp_path/'longer'))
    text, ways = tables(result), [c['about']['way'] for c in result['cells']]
    assert ways[-2:] == ['longer', 'stacked'] and 'not trained' not in text and not any('not trained' in line for line in result['left_out'])
    assert text.index('| raw ') < text.index('| raw, compute of both') < text.index('| single step') < text.index('| two step, stacked')
    weights = {way: {part['weights_sha256'] for part in other['parts'].values()} for way, other in result['others'].items()}
    assert set(weights) == {'longer', 'stacked'} and len(set.union(*weights.values())) == 2
    values = {c['about']['way']: {k: m['value'] for k, m in c['figures']['metrics'].items()} for c in result['cells']}
    assert values['longer'] != values['raw'] and values['stacked'] != values['two_step']
    alone = {c['about']['way']: {k: m['value'] for k, m in c['figures']['metrics'].items()} for c in done('table1')[0]['cells']}
    assert alone == {way: v for way, v in values.items() if way in alone}

def test_photographs_have_the_row_too(model, tmp_path):
    save_parts(tmp_path/'longer', GaussianKernel(.5), raw=PixelCNNpp(**NET, head='discretized'))
    text = tables(quick('cifar10', tmp_path, model, longer=str(tmp_path/'longer')))
    assert text.count('| raw, compute of both') == 3  # likelihoods, samples, published

def test_a_study_goes_on_with_the_networks_it_began_with(model, tmp_path):
    def trained(seed):
        torch.manual_seed(seed)
        shutil.rmtree(tmp_path/'longer', ignore_errors=True)
        save_parts(tmp_path/'longer', GaussianKernel(.5), raw=PixelCNNpp(**NET, head='discretized'))
    run = lambda **how: quick('table1', tmp_path, model, longer=str(tmp_path/'longer'), **how)
    trained(0), run(), run(resume=True), trained(1)
    with pytest.raises(ValueError, match='longer.raw: was .*, is'): run(resume=True)

def test_more_draws_bind_closer_and_the_last_bound_is_that_of_its_weights(model, tmp_path):
    "Groups of twice as many draws are pairs of groups, so their bound is never worse; and each is what `bits_per_dim` would make of the same noise"
    from distsmooth.likelihood import bits_per_dim
    from distsmooth.training import images
    result = quick('bound', tmp_path, model, draws=[1, 2, 4], n=3)
    raw, f = (c['figures'] for c in result['cells'])
    bounds = [b['value'] for b in f['bound']]
    assert bounds[0] > bounds[1] > bounds[2] and f['draws'] == [1, 2, 4] and all(b['n'] == 3 for b in f['bound'])
    x, parts = images(load_dataset('digits', 'test'), torch.arange(10)), load_parts(model)
    exact = bits_per_dim(parts['raw'], x).values
    assert raw['value'] == pytest.approx(exact.mean().item()) and raw['n'] == 10
    above = [b['value'] - a['value'] for a, b in zip(f['above_raw'], f['bound'])]
    assert above == pytest.approx([exact[:3].mean().item()]*3)
    whole = SmoothedModel(kernel=parts['kernel'], smooth=parts['smooth'], reverse=parts['reverse'])
    again = bits_per_dim(whole, x[:3], 'iwae-4', sigma=.3, generator=make_generator(0, 'bound', .3, 0))
    assert again.value == pytest.approx(bounds[-1], abs=1e-6)

# stopped and started again

class Stop(Exception): pass
def same(result): return [(c['name'], c['about'], {k: v for k, v in c['figures'].items() if 'seconds' not in k}) for c in result['cells']]

@pytest.mark.parametrize('at', [1, 3, 5])
def test_stopped_anywhere_it_ends_at_the_same(at, done, model, tmp_path):
    seen = []
    def report(text):
        seen.append(text)
        if len(seen) == at: raise Stop
    with pytest.raises(Stop): quick('kernels', tmp_path, model, report=report)
    assert not (tmp_path/'kernels-quick.json').exists()
    if at > 1:
        with pytest.raises(FileExistsError, match='holds cells of this study: resume it'): quick('kernels', tmp_path, model)
    again = quick('kernels', tmp_path, model, resume=True, report=seen.append)
    assert same(again) == same(done('kernels')[0]) and len(seen) == 6 and len(again['earlier']) == 1

def test_other_settings_are_refused(done, model):
    _, folder = done('kernels')
    before = (folder/'kernels-quick.json').read_bytes()
    with pytest.raises(ValueError, match='settings.steps: was 20, is 21'): quick('kernels', folder, model, resume=True, steps=21)
    assert (folder/'kernels-quick.json').read_bytes() == before

def test_wrong_names(done, model, tmp_path):
    with pytest.raises(ValueError, match="name must be one of .*did you mean 'kernels'"): run_study('kernel', tmp_path)
    with pytest.raises(TypeError, match="study 'kernels' has no option 'step': did you mean 'steps'"): quick('kernels', tmp_path, model, step=3)
    with pytest.raises(ValueError, match="only must be one of ..toys...*got 'toy'"): tables(done('kernels')[0], 'toy')

def test_the_command(tmp_path, capsys):
    main(['study', 'kernels', '--quick', 'true', '--results', str(tmp_path), '--n', '100', '--settings', '{"steps": 5}'])
    said, result = capsys.readouterr().out, load_result('kernels-quick', tmp_path)
    assert tables(result) in said and f'wrote {tmp_path}/kernels-quick.json' in said and result['settings']['n'] == 100 and result['settings']['steps'] == 5
    with pytest.raises(SystemExit, match='distsmooth: .* holds cells of this study'): main(['study', '--name', 'kernels', '--quick', 'true', '--results', str(tmp_path)])
    main(['study', 'all'])
    said = capsys.readouterr().out
    assert all(name in said for name in ALL)

# what is measured

def test_measures_of_points():
    g = torch.Generator().manual_seed(0)
    a, b, c = torch.randn(2000, 2, generator=g), torch.randn(2000, 2, generator=g), torch.randn(2000, 2, generator=g) + 1
    assert abs(energy_distance(a, b)) < .01 < .3 < energy_distance(a, c)
    one = lambda m: energy_distance(torch.zeros(9, 1) + m, torch.zeros(7, 1))
    assert one(0.) == 0 and one(3.) == pytest.approx(6.)
    truth = ToyTruth('rings', 1000)
    assert truth.floor()['off'] < .01 and truth.measure(torch.zeros(50, 2) + 1.)['off'] == 1.

def write_run(folder, part, steps, nats, test_step, test_nats):
    "A log as a run writes it, and its recipe"
    folder.mkdir(parents=True)
    lines = ['step,epoch,train_nats_per_dim,test_nats_per_dim,test_bits_per_dim,lr,images_per_second,of']
    lines += [f'{s},1,{n},{test_nats if s == test_step else ""},,0.1,1,{part}' for s, n in zip(steps, nats)]
    (folder/'log.csv').write_text('\n'.join(lines) + '\n')
    (folder/'recipe.yaml').write_text(json.dumps(dict(objective=dict(part=part, sigma=.5, sigma_range=[.1, 1.]), train=dict(batch_size=4, seed=3), log=dict(test_images=60))))

def test_two_logs_give_the_bound_of_both(model, tmp_path):
    "The noise that is drawn again is the noise of the run: what the logs give together is the ELBO of the networks"
    shutil.copytree(model, tmp_path/'m')
    parts, x = load_parts(model), load_dataset('digits', 'test').x[:60]
    make, sums = smooth_objective(GaussianKernel(.5), (.1, 1.)), torch.zeros(3, dtype=torch.float64)
    with torch.no_grad():
        for i, batch in enumerate(x.split(50)):
            x_noisy, told = make(batch, make_generator(3, 'test', i))
            noise = (x_noisy - batch)/told['sigma'][:, None, None, None]
            log_q = GaussianKernel(1.).log_prob(noise, torch.zeros_like(noise)) - 784*told['sigma'].log()
            nats = parts['smooth'].log_prob(x_noisy, **told), parts['reverse'].log_prob(batch, context=x_noisy, **told), log_q
            sums += torch.stack([n.double().sum() for n in nats])
    smooth, reverse, log_q = (sums/60/784).tolist()
    steps = list(range(1, 21))
    for part, test in (('smooth', -smooth), ('reverse', -reverse), ('raw', 5.)): write_run(tmp_path/f'm-{part}', part, steps, [1.]*20, 20, test)
    result = run_study('compute', tmp_path/'r', report=lambda text: None, model=str(tmp_path/'m'), runs=str(tmp_path))
    (step, flop, bits), = curves_of_test(result)['two step']
    assert step == 20 and flop == 20*4*sum(training_flop(parts[p]) for p in ('smooth', 'reverse'))/1e15 and bits == pytest.approx(-(smooth + reverse - log_q)/math.log(2), rel=1e-5)
    assert [s for s, *_ in curves(result)['two step']] == [10, 20] and set(curves(result)) == {'raw', 'two step'}
    write_run(tmp_path/'longer', 'raw', list(range(1, 41)), [1.]*40, 40, 4.)
    result = run_study('compute', tmp_path/'r2', report=lambda text: None, model=str(tmp_path/'m'), runs=str(tmp_path), longer=str(tmp_path/'longer'))
    (step, flop, bits), = curves_of_test(result)['raw, compute of both']
    assert step == 40 and flop == 40*4*training_flop(parts['raw'])/1e15 and bits == pytest.approx(4/math.log(2)) and curves_of_test(result)['raw'][0][0] == 20

def test_the_cost_of_a_network_that_is_told_classes():
    told, not_told = (PixelCNNpp(**NET, n_classes=n) for n in (3, 0))
    assert training_flop(told) >= training_flop(not_told) > 0

# what the repository shows

def results(): return sorted((ROOT/'results').glob('*.json')) if (ROOT/'results').is_dir() else []

@pytest.mark.parametrize('path', results(), ids=lambda p: p.stem)
def test_a_kept_result_names_its_makers_and_still_reads(path):
    result = load_result(path.stem, path.parent)
    assert result['kind'] == f'study {path.stem}' and result['command'].startswith(f'distsmooth study {path.stem}')
    assert result['commit'] and result['machine'] and result['date'] and tables(result) and path.stat().st_size < 500_000

def pages():
    "Everything a reader sees: pages, cards, and the outputs of notebooks"
    for p in [*ROOT.glob('*.md'), *(ROOT/'distsmooth').rglob('*.md')]: yield p.name, p.read_text(encoding='utf8')
    for p in sorted((ROOT/'nbs').rglob('*.ipynb')):
        if '.ipynb_checkpoints' in p.parts: continue
        for c in json.loads(p.read_text(encoding='utf8'))['cells']:
            for o in c.get('outputs', []): yield p.name, ''.join(o.get('data', {}).get('text/markdown', '')) + ''.join(o.get('text', ''))

def test_every_table_shown_is_what_the_results_say():
    shown = [(name, text) for name, text in pages() if 'results/' in text and '-quick.json' not in text]
    assert not [(name, stale) for name, text in shown for stale in stale_tables(text)]

# what is printed

@pytest.mark.parametrize('path', ['README.md', *sorted(str(p.relative_to(ROOT)) for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)])
def test_printed_tables_are_those_of_the_files(path):
    text = (ROOT/path).read_text(encoding='utf8')
    if path.endswith('.ipynb'):
        cells = json.loads(text)['cells']
        shown = [''.join(o.get('data', {}).get('text/markdown', '')) for c in cells for o in c.get('outputs', [])]
        text = '\n'.join([*shown, *(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')])
    kept = re.sub(r'<!-- results/[\w-]+-quick\.json.*?<!-- end -->', '', text, flags=re.S)
    assert not stale_tables(kept, ROOT/'results')

def test_the_first_screen_and_the_results_show_tables():
    assert len(re.findall('<!-- results/table1.json', (ROOT/'README.md').read_text())) == 1
    assert (ROOT/'nbs'/'course'/'15_results.ipynb').read_text().count('<!-- results/') >= 4
