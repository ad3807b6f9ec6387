"""Real processes for the tests: forked ones, which start at once because everything is imported already."""
import os
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
import pytest
import torch
from accelerate.state import AcceleratorState

os.environ.setdefault('ACCELERATE_USE_CPU', 'true')  # exact equality is promised on a CPU, and a GPU does not outlive a fork
posix = pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')

def fork(work):
    "Trainer `work()` in a forked child; its number"
    sys.stdout.flush(); sys.stderr.flush()
    pid = os.fork()
    if pid: return pid
    code = 1
    try: work(); code = 0
    except BaseException: sys.excepthook(*sys.exc_info())
    finally: sys.stderr.flush(); os._exit(code)

def wait(pid, seconds=600):
    "The exit code of a child, which is killed if it takes too long"
    end = time.time() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done: return os.waitstatus_to_exitcode(status)
        if time.time() > end: os.kill(pid, signal.SIGKILL)
        time.sleep(.01)

def in_child(work, seconds=600):
    "What `work()` gives in a process of its own"
    return _results([work], seconds)[0]

def together(work, n=2, seconds=600):
    "What `work(rank)` gives in each of `n` processes that train together, as `accelerate launch --cpu --num_processes n` would start them"
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    def joined(rank):
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(n), LOCAL_WORLD_SIZE=str(n), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
        AcceleratorState._reset_state(True)
        try: return work(rank)
        finally:
            if torch.distributed.is_initialized(): torch.distributed.destroy_process_group()
    return _results([lambda rank=rank: joined(rank) for rank in range(n)], seconds)

def _results(works, seconds):
    with tempfile.TemporaryDirectory() as tmp:
        files = [Path(tmp)/str(i) for i in range(len(works))]
        pids = [fork(lambda w=w, f=f: torch.save(w(), f)) for w, f in zip(works, files)]
        end = time.time() + seconds
        codes = [wait(p, max(1, end - time.time())) for p in pids]
        assert not any(codes), f'exit codes {codes} (-9: it hung and was killed)'
        return [torch.load(f, weights_only=False) for f in files]
