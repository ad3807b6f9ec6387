import pytest
import torch

@pytest.fixture(autouse=True)
def same_seed():
    "Every test starts from the same random state"
    torch.manual_seed(0)
