import signal
import pytest
import torch

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background begins with Ctrl-C ignored

@pytest.fixture(autouse=True)
def same_seed():
    "Every test starts from the same random state"
    torch.manual_seed(0)
