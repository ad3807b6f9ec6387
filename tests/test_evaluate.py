"""Everything that a folder's networks allow, in one file: each figure is what it says, and nothing depends on where the command was stopped."""
import json
import os
import signal
import time
import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from forks import fork, posix, wait
from distsmooth.cli import main
from distsmooth.conditional import StackedPixelCNNpp
from distsmooth.data import load_dataset
from distsmooth.denoising import single_step
from distsmooth.engine.cells import Cell, as_command, as_png, as_table, as_time, commit, from_png, load_result, run_cells, stated, write_json
from distsmooth.engine.evaluate import Subject, evaluate_model, evaluation_text, likelihood_table, sample_table
from distsmooth.engine.shards import image_uniforms, load_samples
from distsmooth.likelihood import bits_per_dim
from distsmooth.made import MADE
from distsmooth.metrics import evaluate_samples
from distsmooth.pipeline import SmoothedModel, save_parts
from distsmooth.pixelcnn import PixelCNNpp
from distsmooth.smoothing import GaussianKernel, LaplaceKernel
from distsmooth.training import images

NET = dict(channels=3, size=8, n_filters=2, n_resnet=1, n_mix=1)

@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "A folder of 160 images of 8x8 pixels, 16 of them for testing"
    folder, r = tmp_path_factory.mktemp('photos'), np.random.RandomState(0)
    for i in range(160): Image.fromarray((r.rand(8, 8, 3)*r.rand(1, 1, 3)*255).astype('uint8')).save(folder/f'{i:03d}.png')
    return str(folder)

def colours(x): return x.mean((2, 3)), x.flatten(1)[:, :5]  # three features and five classes: an extractor that costs nothing

def saved(folder, parts=('smooth', 'reverse', 'raw'), kernel=GaussianKernel(.5), sigma_range=(.1, 1.), seed=0, **other):
    torch.manual_seed(seed)
    make = dict(smooth=lambda: PixelCNNpp(**NET | other, sigma_range=sigma_range), raw=lambda: PixelCNNpp(**NET | other, head='discretized'),
                reverse=lambda: PixelCNNpp(**NET | other, head='discretized', context_channels=3, sigma_range=sigma_range))
    save_parts(folder, kernel, **{p: make[p]() for p in parts})
    return str(folder)

@pytest.fixture(scope='module')
def model(tmp_path_factory): return saved(tmp_path_factory.mktemp('model')/'m')

def measured(model, photos, **how):
    small = dict(n=8, sigmas=[.3], seeds=[0, 1], iwae=2, images=12, size=8, batch_size=8, extractor=colours, report=lambda text: None, progress=False)
    return evaluate_model(model, **small | dict(data=photos) | how)

@pytest.fixture(scope='module')
def whole(model, photos, tmp_path_factory):
    "A whole evaluation, and its file"
    path = tmp_path_factory.mktemp('whole')/'m.json'
    return measured(model, photos, json=str(path)), path

def strict(path):
    "The contents of a file that is JSON to everybody: no NaN, no Infinity"
    def refuse(word): raise ValueError(word)
    return json.loads(path.read_text(), parse_constant=refuse)

def figures(result): return {c['name']: (c['about'], c['figures']) for c in result['cells']}

# what is in the file

def test_the_file_says_where_it_comes_from(whole, model, photos):
    result, path = whole
    assert strict(path) == result
    assert {'schema', 'kind', 'command', 'version', 'commit', 'date', 'machine', 'earlier', 'seconds', 'seeds', 'sigmas', 'n', 'images', 'iwae', 'model', 'data', 'protocol', 'left_out', 'cells'} <= set(result)
    assert result['kind'] == 'evaluate' and result['machine']['torch'] == torch.__version__ and result['seeds'] == [0, 1] and result['earlier'] == []
    assert result['command'].startswith(f'distsmooth evaluate --model {model} --n 8 --json {path}') and result['commit'] == commit()
    assert set(result['model']['parts']) == {'smooth', 'reverse', 'raw'} and all(len(p['weights_sha256']) == 64 for p in result['model']['parts'].values())
    assert all(c['seconds'] >= 0 for c in result['cells']) and result['seconds'] == pytest.approx(sum(c['seconds'] for c in result['cells']), abs=.06)
    assert result['protocol']['n'] == 8 and result['protocol']['sets'] == 2 and result['protocol']['reference']['n'] == 16

def test_every_cell_that_the_networks_allow(whole):
    assert list(figures(whole[0])) == ['bits-raw-exact-12', 'bits-smooth-0.3-exact-12', 'bits-reverse-0.3-exact-12', 'bits-two_step-0.3-elbo-12', 'bits-two_step-0.3-iwae-2-12', 'error-0.3-12',
                                       'samples-raw-n8-seeds0,1', 'samples-smoothed-0.3-n8-seeds0,1', 'samples-single_step-joint-0.3-n8-seeds0,1', 'samples-single_step-local-0.3-n8-seeds0,1', 'samples-two_step-0.3-n8-seeds0,1']

@torch.no_grad()
def test_likelihoods_are_those_of_the_networks(whole, model, photos):
    f, sm = figures(whole[0]), SmoothedModel.from_pretrained(model)
    x = images(load_dataset(photos, 'test', size=8), torch.arange(12))
    raw = bits_per_dim(sm.raw, x)
    assert f['bits-raw-exact-12'][1] == pytest.approx(dict(value=raw.value, stderr=raw.stderr, n=12))
    x_noisy = Subject(model, photos, size=8, extractor=colours).noisy(x, .3, 0)
    assert (x_noisy - x).std().item() == pytest.approx(.3, abs=.02)
    bits = lambda nats: pytest.approx(-nats.mean().item()/192/np.log(2), rel=1e-5)
    assert f['bits-smooth-0.3-exact-12'][1]['value'] == bits(sm.smooth.log_prob(x_noisy, sigma=.3))
    assert f['bits-reverse-0.3-exact-12'][1]['value'] == bits(sm.reverse.log_prob(x, context=x_noisy, sigma=.3))
    elbo, iwae = (f[f'bits-two_step-0.3-{k}-12'] for k in ('elbo', 'iwae-2'))
    assert elbo[0]['kind'] == 'elbo' and iwae[1]['value'] < elbo[1]['value']
    assert elbo[1]['value'] - raw.value == pytest.approx(elbo[1]['above_raw'])
    assert 'no likelihood of the data' in f['bits-reverse-0.3-exact-12'][0]['of'] and f['bits-reverse-0.3-exact-12'][0]['kind'] == 'conditional NLL'
    assert f['bits-smooth-0.3-exact-12'][0]['unit'] == 'bits/dim (density on [-1, 1])'

def test_errors_are_those_of_the_single_step(whole, model, photos):
    e = Subject(model, photos, size=8, extractor=colours)
    x = images(e.test, torch.arange(12))
    x_noisy, found = e.noisy(x, .3, 0), figures(whole[0])['error-0.3-12'][1]
    assert found['none']['value'] == pytest.approx((x_noisy - x).square().mean().item(), rel=1e-5)
    for score in ('joint', 'local'): assert found[score]['value'] == pytest.approx((single_step(e.parts['smooth'], x_noisy, .3, score) - x).square().mean().item(), rel=1e-5)

def test_all_ways_draw_from_the_same_uniforms(whole, model, photos):
    result, path = whole
    sm, samples = SmoothedModel.from_pretrained(model), path.parent/'m.json.parts'/'samples'
    x = {p.name: load_samples(p)[0] for p in samples.iterdir()}
    u, v = image_uniforms(sm.smooth, 1, 'sample', 0, 8), image_uniforms(sm.reverse, 1, 'two_step', 0, 8)
    assert_close(x['raw-seed1'], sm.raw.sample(uniforms=u), rtol=1e-4, atol=1e-4)
    x_noisy = sm.smooth.sample(uniforms=u, sigma=.3)
    assert_close(x['smoothed-0.3-seed1'], x_noisy, rtol=1e-4, atol=1e-4)
    assert_close(x['single_step-joint-0.3-seed1'], single_step(sm.smooth, x['smoothed-0.3-seed1'], .3), rtol=1e-4, atol=1e-4)
    assert_close(x['two_step-0.3-seed1'], sm.reverse.sample(uniforms=v, context=x['smoothed-0.3-seed1'], sigma=.3), rtol=1e-4, atol=1e-4)
    e, clipped = Subject(model, photos, size=8, extractor=colours), [x[f'two_step-0.3-seed{s}'] for s in (0, 1)]
    reference, floor = e.features(8)
    again = evaluate_samples(clipped, reference, e.extractor, floor=floor).as_dict()['metrics']
    f = figures(result)['samples-two_step-0.3-n8-seeds0,1'][1]
    assert f['metrics'] == again and f['not_finite'] == 0 and from_png(f['picture']).shape == (8, 16*8, 3)

def test_tables_say_what_the_file_says(whole):
    result, f = whole[0], figures(whole[0])
    text = evaluation_text(result)
    assert likelihood_table(result) in text and sample_table(result) in text
    raw, two = f['bits-raw-exact-12'][1], f['samples-two_step-0.3-n8-seeds0,1'][1]['metrics']
    assert stated(raw['value'], raw['stderr']) in text and all(stated(m['value'], m['error']) in text for m in two.values())
    assert 'real images' in text and stated(two['KID-colours']['floor'], two['KID-colours']['floor_error']) in text

# stopped and started again

class Stop(Exception): pass

@pytest.mark.parametrize('at', [3, 9])
def test_stopped_anywhere_it_ends_at_the_same(whole, model, photos, tmp_path, at):
    seen = []
    def report(text):
        seen.append(text)
        if len(seen) == at: raise Stop
    with pytest.raises(Stop): measured(model, photos, json=str(tmp_path/'m.json'), report=report)
    assert not (tmp_path/'m.json').exists()
    again = measured(model, photos, json=str(tmp_path/'m.json'), report=lambda text: seen.append(text))
    assert figures(again) == figures(whole[0]) and len(seen) == 12 and seen[at].startswith(f'[{at}/11] ')
    assert again['protocol'] == whole[0]['protocol'] and [e['command'] for e in again['earlier']] == [again['command']]

@posix
def test_killed_at_any_moment(whole, model, photos, tmp_path):
    path = str(tmp_path/'m.json')
    for wait_for in (.4, .8):
        pid = fork(lambda: measured(model, photos, json=path, batch_size=8))
        time.sleep(wait_for)
        os.kill(pid, signal.SIGKILL)
        wait(pid)
    assert figures(measured(model, photos, json=path)) == figures(whole[0])

def test_nothing_is_done_twice(whole, model, photos):
    result, path = whole
    def report(text): raise AssertionError(text)
    assert measured(model, photos, json=str(path), report=report) == result

def test_more_samples_keep_the_ones_there_are(model, photos, tmp_path):
    shard = tmp_path/'o'/'samples'/'raw-seed0'/'shard-00000.npz'
    first = measured(model, photos, out=str(tmp_path/'o'), images=0, seeds=[0], n=8)
    before = shard.stat().st_mtime_ns
    more = measured(model, photos, out=str(tmp_path/'o'), images=0, seeds=[0], n=16)
    assert shard.stat().st_mtime_ns == before and not set(figures(first)) & set(figures(more))
    assert figures(measured(model, photos, images=0, seeds=[0], n=16)) == figures(more)

@pytest.mark.parametrize('how, says', [('weights', 'weights.raw: was'), ('data', 'data.sha256: was'), ('batch', 'batch_size: was 8, is 7')])
def test_another_model_is_refused(how, says, model, photos, tmp_path):
    out = dict(out=str(tmp_path/'o'), n=0)
    measured(model, photos, **out)
    other = {'weights': lambda: measured(saved(tmp_path/'other', seed=1), photos, **out), 'batch': lambda: measured(model, photos, **out, batch_size=7)}
    if how == 'data':
        Image.new('RGB', (8, 8)).save(tmp_path/'black.png')
        other['data'] = lambda: measured(model, str(tmp_path), **out)
    before = sorted((p.name, p.read_bytes()) for p in (tmp_path/'o').iterdir() if p.is_file())
    with pytest.raises(ValueError, match=says): other[how]()
    assert sorted((p.name, p.read_bytes()) for p in (tmp_path/'o').iterdir() if p.is_file()) == before

def test_a_damaged_cell_is_worked_out_again(whole, model, photos, tmp_path):
    measured(model, photos, out=str(tmp_path/'o'), n=0)
    (tmp_path/'o'/'cell-bits-raw-exact-12.json').write_text('{"name": "bi')
    said = []
    again = measured(model, photos, out=str(tmp_path/'o'), n=0, report=said.append)
    assert len(said) == 1 and figures(again)['bits-raw-exact-12'] == figures(whole[0])['bits-raw-exact-12']

# other folders

def cells(result, start): return [c['name'] for c in result['cells'] if c['name'].startswith(start)]

@pytest.mark.parametrize('parts, bits, samples, missing', [
    (('smooth',), 1, 3, ['reverse', 'raw']), (('reverse',), 1, 0, ['smooth', 'raw']), (('raw',), 1, 1, ['smooth', 'reverse']), (('smooth', 'raw'), 2, 4, ['reverse']), (('smooth', 'reverse'), 4, 4, ['raw'])])
def test_some_networks(parts, bits, samples, missing, photos, tmp_path):
    result = measured(saved(tmp_path/'m', parts), photos, n=6, seeds=[0])
    assert len(cells(result, 'bits-')) == bits and len(cells(result, 'samples-')) == samples and len(cells(result, 'error-')) == ('smooth' in parts)
    assert result['left_out'] == [f'all that needs the network {p}: there is none' for p in missing] and evaluation_text(result)

def test_a_stacked_way_back_of_one_noise_level(photos, tmp_path):
    torch.manual_seed(0)
    save_parts(tmp_path/'m', GaussianKernel(.4), smooth=PixelCNNpp(**NET), reverse=StackedPixelCNNpp(**NET, head='discretized'))
    result = measured(str(tmp_path/'m'), photos, n=6, seeds=[0], sigmas=None)
    assert result['sigmas'] == [.4] and len(cells(result, 'bits-')) == 4 and len(cells(result, 'samples-')) == 4

def test_other_noise_has_no_single_step(photos, tmp_path):
    result = measured(saved(tmp_path/'m', ('smooth', 'reverse'), LaplaceKernel(.5)), photos, n=6, seeds=[0])
    assert not cells(result, 'error-') and [c['about']['way'] for c in result['cells'] if 'way' in c['about']] == ['smoothed', 'two_step']
    assert any('Gaussian noise alone' in line for line in result['left_out'])

def test_a_density_of_clean_images_is_of_dequantized_ones(photos, tmp_path):
    torch.manual_seed(0)
    save_parts(tmp_path/'m', GaussianKernel(.5), smooth=PixelCNNpp(**NET), raw=PixelCNNpp(**NET), reverse=PixelCNNpp(**NET, context_channels=3))
    f = figures(measured(str(tmp_path/'m'), photos, n=0, sigmas=None))
    assert [f[n][0]['of'].startswith('dequantized ') for n in ('bits-raw-exact-12', 'bits-smooth-0.5-exact-12', 'bits-reverse-0.5-exact-12', 'bits-two_step-0.5-elbo-12')] == [True, False, True, True]
    assert all(np.isfinite(figure['value']) for _, figure in f.values() if 'value' in figure)

def test_networks_that_are_told_labels(photos, tmp_path):
    result = measured(saved(tmp_path/'m', n_classes=2), photos, n=6)
    assert len(cells(result, 'bits-')) == 5 and len(cells(result, 'samples-')) == 5 and not any('label' in line for line in result['left_out'])

def test_fewer_test_images_to_compare_samples_with(model, photos):
    whole, few = (Subject(model, photos, size=8, extractor=colours, reference=r) for r in (None, 8))
    assert [len(e.features(6)[0]) for e in (whole, few)] == [len(whole.test), 8] and whole.settings != few.settings

def test_levels_that_a_model_knows(model, photos, tmp_path):
    assert Subject(model, photos, size=8, extractor=colours).levels() == [.3, .5, .7]
    narrow = saved(tmp_path/'m', sigma_range=(.35, .6), kernel=GaussianKernel(.4))
    assert Subject(narrow, photos, size=8, extractor=colours).levels() == [.4, .5]
    with pytest.raises(ValueError, match='sigma must lie in'): measured(narrow, photos, sigmas=[.3])

def test_few_samples_allow_few_metrics(model, photos):
    wide = lambda x: x.flatten(1)[:, :20]
    result = measured(model, photos, n=8, images=0, seeds=[0], extractor=wide)
    assert 'FD-<lambda>: 8 samples are too few for it' in [line.replace('FD:', 'FD-<lambda>:') for line in result['left_out']]
    assert 'KID-<lambda>' in result['cells'][0]['figures']['metrics']

# what is refused

@pytest.mark.parametrize('how, says', [(dict(n=5), 'n must lie in'), (dict(n=17), 'n must lie in .6, 16'), (dict(images=1), 'images must be'), (dict(seeds=[]), 'seeds must be'), (dict(seeds=[0, 0]), 'seeds must be'),
                                       (dict(iwae=-1), 'iwae must be'), (dict(batch_size=0), 'batch_size must be'), (dict(json='nowhere/at/all.json'), 'json must be a file in a folder that exists')])
def test_wrong_arguments(how, says, model, photos):
    with pytest.raises((ValueError, FileNotFoundError), match=says): measured(model, photos, **how)

def test_networks_of_points_are_refused_by_name(photos, tmp_path):
    save_parts(tmp_path/'m', GaussianKernel(.3), smooth=MADE())
    with pytest.raises(ValueError, match=r'model must draw images \(3, 8, 8\) like the data .*, got \(1, 1, 2\) of a MADE'): measured(str(tmp_path/'m'), photos)

def test_the_command(model, photos, tmp_path, capsys):
    args = ['evaluate', '--model', model, '--data', photos, '--size', '8', '--n', '0', '--sigmas', '[0.3]', '--images', '12', '--iwae', '0', '--json', str(tmp_path/'m.json')]
    main(args)
    said = capsys.readouterr().out
    assert likelihood_table(strict(tmp_path/'m.json')) in said and f'wrote {tmp_path/"m.json"}' in said and '[1/5] bits-raw-exact-12 (perhaps' in said
    with pytest.raises(SystemExit, match='distsmooth: n must lie in'): main([*args[:7], '--n', '3'])

# cells

def test_names_of_cells_must_differ(tmp_path):
    with pytest.raises(ValueError, match='different names'): run_cells(tmp_path, [Cell('a b', dict), Cell('a/b', dict)], {}, {})

def test_a_cell_of_other_networks_stands_apart(tmp_path):
    "Its own name, its own folder, all else that it is about; what the first one keeps is not what it finds"
    def work(folder):
        folder.mkdir()  # fails if it is there
        return dict(folder=str(folder.relative_to(tmp_path)))
    cell = Cell('samples 1', work, dict(way='raw', n=3), 5.)
    other = cell.apart('longer', way='longer')
    rows, _ = run_cells(tmp_path, [cell, other], {}, {}, lambda text: None)
    assert [r['name'] for r in rows] == ['samples 1', 'samples 1-longer'] and other.cost == 5. and cell.about == dict(way='raw', n=3)
    assert rows[1]['about'] == dict(way='longer', n=3) and [r['figures']['folder'] for r in rows] == ['samples-1', 'longer/samples-1']

def test_pictures_and_numbers():
    x = torch.rand(3, 3, 4, 4)*2 - 1
    assert (from_png(as_png(x, 2))[4:, :4] == ((x[2] + 1)*127.5).round().permute(1, 2, 0).numpy()).all()
    assert as_table(['a', 'b'], [[.5, None]]).splitlines() == ['| a   | b |', '|-----|---|', '| 0.5 |   |']
    assert [as_time(s) for s in (5, 100, 7200)] == ['5 s', '2 min', '2.0 h'] and as_command('x', a=None, b=[1], c='d e') == "distsmooth x --b '[1]' --c 'd e'"
    assert [stated(*v) for v in ((1.5, None), (123.456, .0321), (-.0001, .5), (7., 0.))] == ['1.5', '123.456 ± 0.032', '-0.00 ± 0.50', '7']

def test_results_are_found_or_asked_for(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match='distsmooth study cats'): load_result('cats')
    write_json(tmp_path/'cats.json', dict(schema=99, command='distsmooth study cats'))
    with pytest.raises(ValueError, match='must be of schema 1, it is of 99'): load_result('cats', tmp_path)
    (tmp_path/'results').mkdir(), (tmp_path/'below').mkdir()
    write_json(tmp_path/'results'/'dogs.json', dict(schema=1, found=float('nan')))
    monkeypatch.chdir(tmp_path/'below')
    assert load_result('dogs') == dict(schema=1, found=None)
