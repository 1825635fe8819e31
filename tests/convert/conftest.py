import numpy as np
import pytest
from convert.checkpoints import as_numpy, torch_bert


@pytest.fixture(scope="session")
def tiny_state() -> dict[str, np.ndarray]:
    """The arrays of a tiny `BertModel` of transformers, under its names. Not to be changed."""
    return as_numpy(torch_bert())
