"""What is left of a run: every promise of `write_whole` and `Checkpoints`, with real processes that are killed."""
import errno
import hashlib
import json
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict, namedtuple
from pathlib import Path
import numpy as np
import pytest
import torch
from distsmooth.engine import checkpoint
from distsmooth.engine.checkpoint import Checkpoints, lock_folder, read_together, write_together, write_whole

posix = pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
SETTINGS = {'lr': 1e-3, 'net': {'n_mix': 5, 'size': (32, 32), 'deep': {'p': .1}}}

def names(folder): return sorted(p.name for p in Path(folder).iterdir())

def fork(work):
    "Trainer `work()` in a forked child; its number"
    pid = os.fork()
    if pid: return pid
    code = 1
    try: work(); code = 0
    except BaseException: sys.excepthook(*sys.exc_info())
    finally: os._exit(code)

def wait(pid): return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def wait_for(ready, seconds=10):
    end = time.time() + seconds
    while not ready():
        assert time.time() < end, 'the child did not get there'
        time.sleep(.001)

def state_of(step, n=50_000): return {'w': torch.full((n,), float(step)), 'more': [{'n': torch.tensor(step), 'step': step}]}

def assert_state_of(state, step):
    assert state['w'].shape == (50_000,) and (state['w'] == step).all()
    assert state['more'][0]['n'] == step and state['more'][0]['step'] == step

# write_whole

def test_write_whole_writes_and_replaces(tmp_path):
    for text in (b'one', b'the second'):
        write_whole(str(tmp_path/'a'), lambda f: f.write(text))
        assert (tmp_path/'a').read_bytes() == text and names(tmp_path) == ['a']

def test_file_is_complete_and_synced_before_it_gets_its_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    def watch_fsync(fd): calls.append(('folder' if os.path.isdir(f'/proc/self/fd/{fd}') else os.fstat(fd).st_size)); fsync(fd)
    def watch_replace(a, b): calls.append(('rename', Path(a).parent == Path(b).parent, Path(a).name[0], Path(a).read_bytes())); replace(a, b)
    monkeypatch.setattr(os, 'fsync', watch_fsync)
    monkeypatch.setattr(os, 'replace', watch_replace)
    write_whole(tmp_path/'a', lambda f: f.write(b'12345'))
    assert calls == [5, ('rename', True, '.', b'12345'), 'folder']

@pytest.mark.parametrize('error', [ValueError('mine'), KeyboardInterrupt(), OSError(errno.EIO, 'broken'), SystemExit(3)])
def test_any_error_leaves_the_old_file_alone(tmp_path, error):
    (tmp_path/'a').write_bytes(b'old')
    def write(f): f.write(b'new'*10_000); raise error
    with pytest.raises(type(error)) as e: write_whole(tmp_path/'a', write)
    assert e.value is error
    assert names(tmp_path) == ['a'] and (tmp_path/'a').read_bytes() == b'old'

@pytest.mark.parametrize('code', [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_no_room_says_which_file_how_much_and_what_to_do(tmp_path, code):
    def write(f): raise OSError(code, 'short')
    with pytest.raises(OSError, match=r'no room for .*file\.bin \(.*[\d,]+ MB are free there.*untouched; make room or take another folder') as e:
        write_whole(tmp_path/'file.bin', write)
    assert e.value.errno == code and names(tmp_path) == []

class Breaks:
    "A file that `torch.save` can't finish: the error of its archive hides the first one"
    def __init__(self, error): self.error = error
    def write(self, b):
        if len(b) > 1000: raise self.error
        return len(b)
    def flush(self): pass

def test_errors_that_torch_hides_come_out(tmp_path):
    big = torch.zeros(1000)
    with pytest.raises(RuntimeError): torch.save(big, Breaks(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt): write_whole(tmp_path/'a', lambda f: torch.save(big, Breaks(KeyboardInterrupt())))
    with pytest.raises(OSError, match='no room') as e: write_whole(tmp_path/'a', lambda f: torch.save(big, Breaks(OSError(errno.ENOSPC, 'full'))))
    assert e.value.errno == errno.ENOSPC and names(tmp_path) == []

@posix
def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path):
    "And nothing else: not what a process that runs is writing, nor files of other names"
    def die(f): f.write(b'half'); f.flush(); os.kill(os.getpid(), signal.SIGKILL)
    for name in ('log.csv', 'log.csv.bak', 'xlog.csv', '[a].csv'): assert wait(fork(lambda: write_whole(tmp_path/name, die))) == -signal.SIGKILL
    running = f'.log.csv.{os.getppid()}.part'
    for name in (running, '.log.csv.mine.part', '.log.csv.part'): (tmp_path/name).write_bytes(b'whose?')
    before = names(tmp_path)
    write_whole(tmp_path/'log.csv', lambda f: f.write(b'whole'))
    gone = set(before) - set(names(tmp_path))
    assert len(gone) == 1 and gone.pop().startswith('.log.csv.') and {running, '.log.csv.mine.part', '.log.csv.part', 'log.csv'} < set(names(tmp_path))
    write_whole(tmp_path/'[a].csv', lambda f: f.write(b'whole'))
    assert not list(tmp_path.glob('.[[]a].csv.*')) and len(list(tmp_path.glob('.*.part'))) == 5

def test_an_older_error_is_not_taken_for_the_reason(tmp_path):
    "Trying again in an `except` block: the second failure is its own"
    try: raise OSError(errno.ENOSPC, 'the first try')
    except OSError:
        with pytest.raises(ZeroDivisionError): write_whole(tmp_path/'a', lambda f: 1/0)

@posix
def test_real_limit_on_the_disk(tmp_path):
    "With a limit on file sizes the kernel itself refuses: nothing old is lost, nothing half is left"
    import resource
    c = Checkpoints(tmp_path)
    c.save(1, state_of(1))
    size = (tmp_path/'step-000000001.pt').stat().st_size
    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        for limit in (1, 1000, 50_000, size//2, size - 1):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            with pytest.raises(OSError, match='no room for .*step-000000002.pt .* MB are free') as e: c.save(2, state_of(2))
            assert e.value.errno == errno.EFBIG and names(tmp_path) == ['step-000000001.pt']
    assert wait(fork(work)) == 0
    assert_state_of(c.load()[1], 1)

# saving and loading

def test_round_trip_to_the_last_bit(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    opt = torch.optim.AdamW(net.parameters(), lr=1e-3)
    net(torch.randn(5, 3)).square().sum().backward(); opt.step()
    nan = torch.tensor([float('nan'), -0., float('inf'), 1e-45])
    tensors = {'bf16': torch.randn(7).bfloat16(), 'f64': torch.randn(3, 2, dtype=torch.float64), 'f16': torch.randn(3).half(), 'i64': torch.tensor([2**62, -1]),
               'i32': torch.tensor(3, dtype=torch.int32), 'bool': torch.tensor([True, False]), 'u8': torch.get_rng_state(), 'none': torch.empty(0, 3), 'nan': nan}
    plain = {'a': 1, 'b': .1 + .2, 'c': None, 'd': True, 'e': 'text', 'f': [1, (2, 3), {4: 'four'}], 'g': 2**80, 'h': b'\0\xff', 'i': torch.float32, 'j': torch.Size([2]), 'k': {}}
    state = {'tensors': tensors, 'plain': plain, 'net': net.state_dict(), 'opt': opt.state_dict()}
    c = Checkpoints(tmp_path)
    c.save(12, state)
    step, again = Checkpoints(tmp_path).load()
    assert step == 12 and again['plain'] == plain and type(again['plain']['f'][1]) is tuple
    for k, t in tensors.items():
        got = again['tensors'][k]
        assert got.dtype == t.dtype and got.shape == t.shape and got.device.type == 'cpu'
        assert got.contiguous().flatten().view(torch.uint8).equal(t.contiguous().flatten().view(torch.uint8)) if t.ndim else got == t
    assert isinstance(again['net'], OrderedDict)
    torch.testing.assert_close(dict(again['net']), dict(net.state_dict()), rtol=0, atol=0)
    torch.testing.assert_close(again['opt']['state'], opt.state_dict()['state'], rtol=0, atol=0)
    assert again['opt']['param_groups'] == opt.state_dict()['param_groups']

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_what_was_on_a_gpu_comes_back_on_the_cpu(tmp_path):
    c, w = Checkpoints(tmp_path), torch.randn(5, device='cuda')
    c.save(1, {'w': w})
    assert c.load()[1]['w'].device.type == 'cpu' and c.load()[1]['w'].equal(w.cpu())

def test_rotation_keeps_the_newest(tmp_path):
    c = Checkpoints(tmp_path/'made'/'here', keep=2)
    assert c.steps == []
    for step in (5, 90, 1000, 10**9, 10**10):
        c.save(step, state_of(step))
        assert_state_of(c.load()[1], step)
    assert c.steps == [10**9, 10**10] and names(c.folder) == ['step-1000000000.pt', 'step-10000000000.pt']
    assert [c.load(s)[0] for s in c.steps] == c.steps
    assert len(Checkpoints(tmp_path).steps) == 0 and Checkpoints(tmp_path/'x').keep == 3

def test_saving_a_step_again_replaces_it(tmp_path):
    c = Checkpoints(tmp_path, keep=2)
    for step, w in ((1, 1), (2, 2), (2, 3)): c.save(step, {'w': w})
    assert c.steps == [1, 2] and c.load() == (2, {'w': 3})

@pytest.mark.parametrize('keep, left', [(1, [15]), (2, [15, 30]), (3, [15, 20, 30]), (5, [10, 15, 20, 30]), (9, [10, 15, 20, 30])])
def test_the_new_one_is_never_deleted(tmp_path, keep, left):
    "A run that went back to step 10 saves step 15, older than some that are there"
    many = Checkpoints(tmp_path, keep=9)
    for step in (10, 20, 30): many.save(step, {})
    Checkpoints(tmp_path, keep=keep).save(15, {})
    assert many.steps == left

def test_old_ones_go_after_the_new_one_is_complete(tmp_path, monkeypatch):
    c = Checkpoints(tmp_path, keep=1)
    c.save(1, {'w': 1})
    seen, replace = [], os.replace
    def watch(a, b): seen.append(c.steps); replace(a, b); seen.append(c.steps)
    monkeypatch.setattr(os, 'replace', watch)
    c.save(2, {'w': 2})
    assert seen == [[1], [1, 2]] and c.steps == [2]

def test_foreign_names_are_left_alone(tmp_path):
    foreign = ['notes.txt', 'step-5.pt', 'step-000000005.pt.bak', 'xstep-000000005.pt', 'step-00000000a.pt', '.mine.part']
    for n in foreign: (tmp_path/n).write_text('x')
    (tmp_path/'step-000000077.pt').mkdir()
    c = Checkpoints(tmp_path, keep=1)
    assert c.steps == []
    for step in (1, 2): c.save(step, {})
    assert c.steps == [2] and names(tmp_path) == sorted([*foreign, 'step-000000077.pt', 'step-000000002.pt'])

def test_part_files_of_killed_runs_are_removed_before_room_is_needed(tmp_path, monkeypatch):
    part = tmp_path/'.step-000000005.pt.4711.part'
    part.write_bytes(b'half')
    seen = []
    monkeypatch.setattr(checkpoint, 'write_whole', lambda *a: seen.append(names(tmp_path)))
    Checkpoints(tmp_path).save(9, {})
    assert seen == [[]]

@pytest.mark.parametrize('value, name', [(np.float64(1), 'numpy.float64'), (np.zeros(2), 'numpy.ndarray'), (Path('x'), 'Path'), ({1}, 'builtins.set'),
                                         (namedtuple('P', 'x')(1), '.P'), (torch.nn.Linear(1, 1), 'Linear'), (1j, 'complex')])
def test_what_could_not_be_loaded_is_not_saved(tmp_path, value, name):
    c = Checkpoints(tmp_path)
    with pytest.raises(ValueError, match=rf'state\.a\.1\.b is a .*{name}: only tensors and plain values'): c.save(1, {'a': [0, {'b': value}]})
    assert c.steps == []

def test_keys_are_checked_too(tmp_path):
    with pytest.raises(ValueError, match='a key of state.a is a numpy.int64'): Checkpoints(tmp_path).save(1, {'a': {np.int64(1): 2}})

@pytest.mark.parametrize('step', [-1, 1., '1', None, True, np.int64(3)])
def test_bad_step(tmp_path, step):
    with pytest.raises(ValueError, match='step must be an int from 0 on, got'): Checkpoints(tmp_path).save(step, {})
    assert names(tmp_path) == []

@pytest.mark.parametrize('keep', [0, -1, 2.5, None, True])
def test_bad_keep(tmp_path, keep):
    with pytest.raises(ValueError, match='keep must be an int from 1 on, got'): Checkpoints(tmp_path/'new', keep=keep)
    assert names(tmp_path) == []

def test_folder_that_is_a_file(tmp_path):
    (tmp_path/'f').write_text('x')
    with pytest.raises(ValueError, match="folder must be a folder, '.*f' is a file"): Checkpoints(tmp_path/'f')

def test_bad_settings(tmp_path):
    for bad in ({'device': torch.device('cpu')}, {'x': {'y': torch.zeros(1)}}, {(1, 2): 3}):
        with pytest.raises(ValueError, match='settings must be plain values'): Checkpoints(tmp_path/'new', settings=bad)

def test_no_checkpoint(tmp_path):
    c = Checkpoints(tmp_path)
    with pytest.raises(FileNotFoundError, match=f'no checkpoint in {tmp_path}.*start a new run'): c.load()
    for step in (4, 6): c.save(step, {})
    with pytest.raises(FileNotFoundError, match=r'no checkpoint of step 5 in .*one of \[4, 6\]'): c.load(5)
    assert c.load(4)[0] == 4

# files that can't be trusted

@pytest.fixture
def three(tmp_path):
    c = Checkpoints(tmp_path)
    for step in (1, 2, 3): c.save(step, state_of(step))
    return c

def path_of(c, step): return c.folder/f'step-{step:09d}.pt'

def refused(c, what, older=2, step=None):
    way = rf'Step {older} before it is whole: delete this file or move it away to go on from there, or ask for load\({older}\)' if older else 'No step before it is whole: delete'
    with pytest.raises(ValueError, match=rf'step-00000000\d\.pt {what}.*\. {way}') as e: c.load(step)
    assert str(path_of(c, step or 3)) in str(e.value)
    return e.value

def test_cut_short_anywhere(three):
    whole = path_of(three, 3).read_bytes()
    lengths = [0, 1, 2, 3, 4, 5, 30, 64, 1000, len(whole)//2, *range(len(whole) - 1200, len(whole), 53), len(whole) - 22, len(whole) - 1]
    for n in lengths:
        path_of(three, 3).write_bytes(whole[:n])
        refused(three, 'is damaged or cut short')
    path_of(three, 3).write_bytes(whole)
    assert_state_of(three.load()[1], 3)

def test_zeros_after_a_power_cut(three):
    path_of(three, 3).write_bytes(bytes(5000))
    refused(three, 'is damaged or cut short')

def test_a_flipped_bit_in_the_numbers(three):
    whole = path_of(three, 3).read_bytes()
    at = whole.index(torch.full((9,), 3.).numpy().tobytes())
    for i in random.Random(0).sample(range(4*50_000), 20):
        b = bytearray(whole); b[at + i] ^= 1 << (i % 8)
        path_of(three, 3).write_bytes(b)
        refused(three, 'is damaged or cut short')

@pytest.mark.parametrize('part', ['data.pkl', 'byteorder', 'data/0', 'version', '.data/serialization_id'])
def test_a_flag_in_the_table_of_contents(three, part):
    "The parts' own check sums know nothing of it; `torch.load` then takes numbers from anywhere"
    b = bytearray(path_of(three, 3).read_bytes())
    entry, = [m.start() for m in re.finditer(b'PK\1\2', b) if re.match(rb'[^/]+/' + re.escape(part.encode()) + b'(?![0-9])', b[m.start() + 46:])]
    b[entry + 38] ^= 0x10
    path_of(three, 3).write_bytes(b)
    refused(three, 'is damaged or cut short')

def test_any_flipped_bit_outside_the_numbers(three):
    whole = path_of(three, 3).read_bytes()
    at = whole.index(torch.full((9,), 3.).numpy().tobytes())
    places = [*range(0, at, 3), *range(at + 200_000, len(whole), 3)]
    for i in [*places, *range(len(whole) - 73, len(whole))]:
        b = bytearray(whole); b[i] ^= 1 << (i % 8)
        path_of(three, 3).write_bytes(b)
        with pytest.raises(ValueError, match='is damaged or cut short. Step 2 before it is whole'): three.load()

def test_the_last_line_is_the_check_sum_of_the_rest(three):
    whole = path_of(three, 3).read_bytes()
    assert whole[-73:] == f'\nsha256 {hashlib.sha256(whole[:-73]).hexdigest()}\n'.encode()
    torch.testing.assert_close(torch.load(path_of(three, 3), weights_only=True)['state']['w'], state_of(3)['w'])   # PyTorch reads it as before
    path_of(three, 3).write_bytes(whole[:-73])
    refused(three, 'is damaged or cut short')

def test_checkpoints_of_the_version_before_still_load(three):
    torch.save(dict(format='distsmooth checkpoint 1', step=3, settings={'a': 1}, state=state_of(3)), path_of(three, 3))
    assert_state_of(three.load()[1], 3)
    with pytest.raises(ValueError, match='a: was 1, is 2'): Checkpoints(three.folder, settings={'a': 2}).load()
    whole = path_of(three, 3).read_bytes()
    for cut in (1, 22, 73, 1000):
        path_of(three, 3).write_bytes(whole[:-cut])
        refused(three, 'is damaged or cut short')

def test_the_step_to_go_back_to_is_whole_itself(three):
    for step in (3, 2): path_of(three, step).write_bytes(path_of(three, step).read_bytes()[:-5])
    refused(three, 'is damaged', older=1)
    refused(three, 'is damaged', older=1, step=2)
    three.save(2, state_of(2))
    path_of(three, 1).write_bytes(b'')
    refused(three, 'is damaged', older=None, step=1)
    path_of(three, 2).write_bytes(b'')
    refused(three, 'is damaged', older=None)
    path_of(three, 3).unlink(); path_of(three, 2).unlink()
    refused(three, 'is damaged', older=None, step=1)

def test_the_way_out_works(three):
    path_of(three, 3).write_bytes(b'PK')
    refused(three, 'is damaged')
    assert_state_of(three.load(2)[1], 2)
    path_of(three, 3).unlink()
    assert three.load()[0] == 2
    three.save(3, state_of(3))
    assert_state_of(three.load()[1], 3)

@pytest.mark.parametrize('content', [{'weight': torch.zeros(2)}, [1, 2], torch.zeros(3), {'format': torch.zeros(2)}, {'format': 'other', 'step': 3, 'state': {}}])
def test_whole_files_that_are_not_ours(three, content):
    torch.save(content, path_of(three, 3))
    refused(three, 'was not written by `Checkpoints`')

def test_texts_and_old_pickles_are_not_ours(three):
    for content in (b'hello world', pickle.dumps({'w': 1}), b'\x80\x02}.'):
        path_of(three, 3).write_bytes(content)
        refused(three, 'was not written by `Checkpoints`')

class Surprise:
    def __init__(self, path): self.path = str(path)
    def __reduce__(self): return os.mkdir, (self.path,)

def test_nothing_in_a_file_is_run(three, tmp_path):
    made = tmp_path/'made'
    evil = dict(format=checkpoint._FORMAT, step=3, settings=None, state=Surprise(made))
    torch.save(evil, path_of(three, 3))
    e = refused(three, 'was not written by `Checkpoints`, or holds more than tensors and plain values')
    assert 'Weights only load failed' in str(e.__cause__)
    path_of(three, 3).write_bytes(pickle.dumps(evil))
    refused(three, 'was not written by `Checkpoints`')
    assert not made.exists()
    torch.save(evil, path_of(three, 3)); torch.load(path_of(three, 3), weights_only=False)
    assert made.exists(), 'the surprise itself works'

def test_a_renamed_file(three):
    path_of(three, 2).rename(path_of(three, 7))
    with pytest.raises(ValueError, match='step-000000007.pt was renamed: it holds step 2. Step 3 before it is whole'): three.load()

# settings

def changed(tmp_path, was, now):
    Checkpoints(tmp_path, settings=was).save(1, {'w': 1})
    try: assert Checkpoints(tmp_path, settings=now).load() == (1, {'w': 1})
    except ValueError as e:
        head, *lines, way = str(e).split('\n')
        assert head == f'{path_of(Checkpoints(tmp_path), 1)} was made with other settings:'
        assert way == 'Go on with the old settings, or take another folder for the new ones'
        return lines
    return []

@pytest.mark.parametrize('was, now, lines', [
    (SETTINGS, SETTINGS, []),
    (SETTINGS, json.loads(json.dumps(SETTINGS)), []),
    (SETTINGS, None, []), (None, None, []), ({}, {}, []), (None, {}, []),
    ({'a': (1, [2, (3,)])}, {'a': [1, (2, [3])]}, []),
    ({'x': float('nan')}, {'x': float('nan')}, []), ({'x': float('inf')}, {'x': float('inf')}, []),
    ({'a': 1, 'b': 2}, {'b': 2, 'a': 1}, []),
    ({'lr': 1}, {'lr': 1.}, []),
    ({'lr': .3}, {'lr': .1 + .2}, ['  lr: was 0.3, is 0.30000000000000004']),
    ({'a': {'b': {'c': 1, 'd': 2}}, 'e': 'x'}, {'a': {'b': {'c': 3, 'd': 2}}, 'e': 'y'}, ['  a.b.c: was 1, is 3', "  e: was 'x', is 'y'"]),
    ({'size': (32, 32)}, {'size': (32, 28)}, ['  size: was [32, 32], is [32, 28]']),
    ({'a': None}, {}, ['  a: was None, is not set']),
    ({}, {'a': {'b': 0}}, ['  a.b: was not set, is 0']), (None, {'a': 0}, ['  a: was not set, is 0']),
    ({'a': {}}, {}, ['  a: was {}, is not set']),
    ({'a': '1'}, {'a': 1}, ["  a: was '1', is 1"]),
    ({'a': True}, {'a': False}, ['  a: was True, is False']),
])
def test_settings(tmp_path, was, now, lines): assert changed(tmp_path, was, now) == lines

def test_settings_of_every_checkpoint_count(tmp_path):
    Checkpoints(tmp_path, settings={'a': 1}).save(1, {})
    Checkpoints(tmp_path, settings={'a': 2}).save(2, {})
    assert Checkpoints(tmp_path, settings={'a': 1}).load(1)[0] == 1 and Checkpoints(tmp_path, settings={'a': 2}).load()[0] == 2
    with pytest.raises(ValueError, match='a: was 1, is 2'): Checkpoints(tmp_path, settings={'a': 2}).load(1)

def test_settings_are_those_of_the_start(tmp_path):
    "Changing the dict afterwards changes nothing"
    settings = {'net': {'n': [1]}}
    c = Checkpoints(tmp_path, settings=settings)
    settings['net']['n'].append(2)
    c.save(1, {})
    assert Checkpoints(tmp_path, settings={'net': {'n': [1]}}).load()[0] == 1

# killed processes

@posix
@pytest.mark.parametrize('keep', [1, 3])
def test_killed_at_random_moments(tmp_path, keep):
    "Whenever a run dies, the newest checkpoint is complete and belongs to its step"
    c, rng, torn = Checkpoints(tmp_path, keep=keep), random.Random(keep), 0
    c.save(0, state_of(0))
    def work():
        step = c.load()[0]
        while True:
            step += 1
            c.save(step, state_of(step))
    for _ in range(25):
        before = c.steps[-1]
        pid = fork(work)
        wait_for(lambda: c.steps[-1] > before)
        time.sleep(rng.random()*.02)
        os.kill(pid, signal.SIGKILL)
        assert wait(pid) == -signal.SIGKILL
        torn += any(n.endswith('.part') for n in names(tmp_path))
        assert len(c.steps) >= min(keep, c.steps[-1] + 1)
        assert c.steps == list(range(c.steps[0], c.steps[-1] + 1)) and c.steps[-1] > before
        for step in c.steps:
            assert c.load(step)[0] == step
            assert_state_of(c.load(step)[1], step)
        assert c.load()[0] == c.steps[-1]
    assert torn, 'no process died while it was writing: this test saw nothing'
    c.save(c.steps[-1] + 1, {})
    assert len(c.steps) == keep and len(names(tmp_path)) == keep

@posix
def test_killed_in_the_middle_of_a_file(tmp_path):
    (tmp_path/'a').write_bytes(b'old')
    def write(f): f.write(b'new'*100_000); f.flush(); os.kill(os.getpid(), signal.SIGKILL)
    assert wait(fork(lambda: write_whole(tmp_path/'a', write))) == -signal.SIGKILL
    assert (tmp_path/'a').read_bytes() == b'old'
    part, a = names(tmp_path)
    assert part.startswith('.a.') and part.endswith('.part') and (tmp_path/part).stat().st_size == 300_000

# the lock

def try_lock(folder):
    "What another process gets: None or the error's text"
    code = f'from distsmooth.engine.checkpoint import Checkpoints\ntry:\n    with Checkpoints({str(folder)!r}): print("got it")\nexcept RuntimeError as e: print(e)'
    return subprocess.run([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()

def is_free(folder):
    try:
        with Checkpoints(folder): return True
    except RuntimeError: return False

def test_lock_keeps_another_process_out(tmp_path):
    with Checkpoints(tmp_path) as c:
        assert isinstance(c, Checkpoints)
        c.save(1, {})
        assert try_lock(tmp_path) == f'{tmp_path} is in use by process {os.getpid()}: wait until it ends, stop it, or take another folder'
    assert try_lock(tmp_path) == 'got it'
    assert is_free(tmp_path) and c.steps == [1]

def test_lock_keeps_the_same_process_out(tmp_path):
    with Checkpoints(tmp_path) as c:
        for other in (c, Checkpoints(tmp_path)):
            with pytest.raises(RuntimeError, match=f'in use by process {os.getpid()}'): other.__enter__()
        assert not is_free(tmp_path), 'a refusal does not take the lock away'
        assert is_free(tmp_path/'another')
    assert is_free(tmp_path)

def test_lock_ends_with_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError):
        with Checkpoints(tmp_path): 1/0
    assert is_free(tmp_path)

def test_saving_without_the_lock_is_allowed(tmp_path):
    with Checkpoints(tmp_path): Checkpoints(tmp_path).save(1, {})
    assert Checkpoints(tmp_path).steps == [1]

@posix
def test_lock_dies_with_its_process(tmp_path):
    (tmp_path/'.lock').write_text('12345678901') # What a longer number of a dead process left
    def work():
        with Checkpoints(tmp_path): (tmp_path/'ready').touch(); time.sleep(60)
    pid = fork(work)
    wait_for((tmp_path/'ready').exists)
    with pytest.raises(RuntimeError, match=rf'{tmp_path} is in use by process {pid}:'): Checkpoints(tmp_path).__enter__()
    os.kill(pid, signal.SIGKILL); wait(pid)
    assert is_free(tmp_path)

@posix
def test_a_child_that_lives_on_does_not_hold_the_lock(tmp_path):
    "A worker that loads data outlives its killed parent"
    def work():
        with Checkpoints(tmp_path):
            child = fork(lambda: time.sleep(60))
            (tmp_path/'child.tmp').write_text(str(child)); (tmp_path/'child.tmp').rename(tmp_path/'child')
            time.sleep(60)
    pid = fork(work)
    wait_for((tmp_path/'child').exists)
    child = int((tmp_path/'child').read_text())
    try:
        time.sleep(.05)
        assert not is_free(tmp_path), 'the parent holds it, though its child has closed it'
        os.kill(pid, signal.SIGKILL); wait(pid)
        os.kill(child, 0)
        assert is_free(tmp_path)
    finally: os.kill(child, signal.SIGKILL)

@posix
@pytest.mark.parametrize('code', [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_disk_without_locks_warns(tmp_path, monkeypatch, code):
    import fcntl
    def none(*a): raise OSError(code, 'No locks available')
    monkeypatch.setattr(fcntl, 'flock', none)
    with pytest.warns(UserWarning, match='on a disk without locks .*only one process writes there'):
        with Checkpoints(tmp_path) as c: c.save(1, {})
    assert c.steps == [1]
    with pytest.warns(UserWarning, match='without locks'): save_pair(tmp_path/'pair', 'text')
    assert read_pair(tmp_path/'pair') == {'text'}

@posix
def test_a_folder_that_may_not_be_written_is_no_disk_without_locks(tmp_path):
    (tmp_path/'.lock').mkdir()
    with pytest.raises(IsADirectoryError): lock_folder(tmp_path)

@posix
def test_the_lock_may_be_waited_for(tmp_path):
    def work():
        with lock_folder(tmp_path, 'x'):
            (tmp_path/'ready').touch()
            wait_for((tmp_path/'go').exists)
    pid = fork(work)
    wait_for((tmp_path/'ready').exists)
    with pytest.raises(RuntimeError, match=f'in use by process {pid}'): lock_folder(tmp_path, 'x', wait=.05)
    with lock_folder(tmp_path): (tmp_path/'go').touch()   # another name, another lock
    with lock_folder(tmp_path, 'x', wait=60): assert wait(pid) == 0

# files that belong together

PAIR = ['a', 'deep/b']
def members(config): return PAIR
def save_pair(folder, text, **config):
    def write(new):
        (new/'deep').mkdir()
        for name in PAIR: (new/name).write_text(text)
        (new/'config.json').write_text(json.dumps({'text': text, **config}))
        return text
    return write_together(folder, write, members)
def read_pair(folder):
    "The texts that are found; the one in config.json is among them"
    files = read_together(folder, members)
    assert list(files) == ['config.json', *PAIR]
    return {files[name].decode() for name in PAIR} | {json.loads(files['config.json'])['text']}
def all_files(folder): return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob('*') if p.is_file())
WHOLE = sorted(['config.json', *PAIR])

def test_files_are_written_and_replaced_together(tmp_path):
    for text in ('one', 'the second'):
        assert save_pair(tmp_path/'made'/'here', text) == text
        assert read_pair(str(tmp_path/'made'/'here')) == {text} and all_files(tmp_path/'made'/'here') == WHOLE
    assert names(tmp_path) == ['made'] and names(tmp_path/'made') == ['here']
    config = json.loads((tmp_path/'made'/'here'/'config.json').read_text())
    assert config == {'text': 'the second', 'sha256': {name: hashlib.sha256(b'the second').hexdigest() for name in PAIR}}

def test_an_error_while_writing_leaves_the_old_files(tmp_path):
    save_pair(tmp_path, 'old')
    def write(new): (new/'a').write_text('new'); raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): write_together(tmp_path, write, members)
    assert read_pair(tmp_path) == {'old'} and all_files(tmp_path) == WHOLE

def dying(work, name, call, after):
    "`work` in a child that kills itself before or after a call of `os.<name>`; was it killed?"
    def child():
        count, real = 0, getattr(os, name)
        def counted(*a, **kw):
            nonlocal count
            count += 1
            if count == call and not after: os.kill(os.getpid(), signal.SIGKILL)
            result = real(*a, **kw)
            if count == call: os.kill(os.getpid(), signal.SIGKILL)
            return result
        setattr(os, name, counted)
        work()
    code = wait(fork(child))
    assert code in (0, -signal.SIGKILL)
    return code != 0

def every_death(work, name):
    "Let `work(n)` die before and after every call of `os.<name>`; yields n and whether it was killed"
    n = 0
    for call in range(1, 100):
        killed = []
        for after in (False, True):
            n += 1
            killed.append(dying(lambda: work(n), name, call, after))
            yield n, killed[-1]
        if not any(killed): return

@posix
@pytest.mark.parametrize('again', [False, True], ids=['onto a whole one', 'onto what the killed one left'])
@pytest.mark.parametrize('name', ['replace', 'fsync', 'unlink'])
def test_killed_at_any_call_it_is_all_old_or_all_new(tmp_path, name, again):
    save_pair(tmp_path, 'version 0')
    found, outcomes = {'version 0'}, []
    for n, killed in every_death(lambda n: save_pair(tmp_path, f'version {n}'), name):
        now = read_pair(tmp_path)
        assert now in ([found, {f'version {n}'}] if killed else [{f'version {n}'}])
        outcomes += [now == found] if killed else []
        if again: assert wait(fork(lambda: write_together(tmp_path, lambda new: os.kill(os.getpid(), signal.SIGKILL), members))) == -signal.SIGKILL
        else: now = {save_pair(tmp_path, f'after {n}')}
        found = read_pair(tmp_path)
        assert found == now and (again or all_files(tmp_path) == WHOLE)
    assert len(outcomes) >= 4 and not all(outcomes) and (any(outcomes) or name == 'unlink')   # nothing is unlinked before the switch
    save_pair(tmp_path, 'at last')
    assert read_pair(tmp_path) == {'at last'} and all_files(tmp_path) == WHOLE and names(tmp_path) == ['a', 'config.json', 'deep']

def finish(folder):
    "A save that fails: all that it does is to finish what a killed one left"
    with pytest.raises(ZeroDivisionError): write_together(folder, lambda new: 1/0, members)

def without_sums(folder): (folder/'config.json').write_text(json.dumps({'text': json.loads((folder/'config.json').read_text())['text']}))

@posix
@pytest.mark.parametrize('event', [finish, lambda f: save_pair(f, 'new'), lambda f: dying(lambda: save_pair(f, 'new'), 'replace', 2, False), lambda f: dying(lambda: save_pair(f, 'new'), 'replace', 3, False)],
                         ids=['finish', 'save', 'killed before moving', 'killed while moving'])
@pytest.mark.parametrize('start', ['whole', 'without check sums', 'killed'])
def test_a_reader_never_sees_two_versions(tmp_path, monkeypatch, start, event):
    "Something happens before each of the files that it reads"
    read_bytes = Path.read_bytes
    for at in range(1, 12):
        folder, reads = tmp_path/str(at), 0
        save_pair(folder, 'old')
        if start == 'without check sums': without_sums(folder)
        if start == 'killed': assert dying(lambda: save_pair(folder, 'newer'), 'replace', 1, True)
        def counted(path):
            nonlocal reads
            reads += 1
            if reads == at:
                with monkeypatch.context() as m:
                    m.setattr(Path, 'read_bytes', read_bytes)
                    event(folder)
            return read_bytes(path)
        with monkeypatch.context() as m:
            m.setattr(Path, 'read_bytes', counted)
            assert len(read_pair(folder)) == 1
        if reads < at: break
    assert at > 4

@posix
def test_two_writers_take_turns(tmp_path):
    def work(name):
        for n in range(20): save_pair(tmp_path, f'{name}{n}')
    pids = [fork(lambda name=name: work(name)) for name in 'xy']
    assert [wait(p) for p in pids] == [0, 0]
    assert read_pair(tmp_path) <= {'x19', 'y19'} and all_files(tmp_path) == WHOLE

def test_folders_without_check_sums_are_read_as_they_are(tmp_path):
    save_pair(tmp_path, 'old')
    (tmp_path/'config.json').write_text('{"text": "old"}')
    assert read_pair(tmp_path) == {'old'}
    (tmp_path/'.new').mkdir(); (tmp_path/'.new'/'a').write_text('half')     # a save of new files was killed
    assert read_pair(tmp_path) == {'old'}
    save_pair(tmp_path, 'new')
    assert read_pair(tmp_path) == {'new'} and all_files(tmp_path) == WHOLE

def test_changed_and_missing_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=f'no config.json in {tmp_path}: not a saved model'): read_pair(tmp_path)
    save_pair(tmp_path, 'text')
    (tmp_path/'deep'/'b').write_text('texT')
    with pytest.raises(ValueError, match='deep/b is damaged or was changed: config.json names another content'): read_pair(tmp_path)
    (tmp_path/'deep'/'b').unlink()
    with pytest.raises(FileNotFoundError, match='no deep/b in'): read_pair(tmp_path)
    (tmp_path/'config.json').write_text('{"text"')
    with pytest.raises(ValueError, match='config.json is damaged'): read_pair(tmp_path)

def test_a_link_to_another_disk(tmp_path):
    "Nothing is written beside the folder, and nothing is renamed across"
    other = Path('/dev/shm') if os.path.isdir('/dev/shm') else tmp_path
    with tempfile.TemporaryDirectory(dir=other) as d:
        (tmp_path/'out').symlink_to(d)
        for text in ('one', 'two'):
            save_pair(tmp_path/'out', text)
            assert read_pair(tmp_path/'out') == {text} and all_files(d) == WHOLE and names(tmp_path) == ['out']
