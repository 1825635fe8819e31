"""Results: by name, by place, as a tuple."""

import jax
import jax.numpy as jnp
import pytest

from eqxbert.outputs import BertOutput

STATES, POOLED = jnp.ones((2, 3, 4)), jnp.ones((2, 4))


def test_access_by_name_and_place():
    out = BertOutput(STATES, POOLED, attentions=(jnp.ones((2, 1, 3, 3)),))
    assert out.keys() == ("last_hidden_state", "pooler_output", "attentions")
    assert out["pooler_output"] is out[1] is out.pooler_output
    assert out["hidden_states"] is None
    assert out[2] is out[-1] is out.attentions
    assert out[:2] == (STATES, POOLED)
    states, *_ = out.to_tuple()
    assert states is STATES


@pytest.mark.parametrize(("index", "error"), [("nothing", KeyError), (2, IndexError)])
def test_wrong_access(index, error):
    with pytest.raises(error):
        BertOutput(STATES, POOLED)[index]


def test_results_are_trees_of_arrays():
    out = jax.jit(lambda: BertOutput(STATES, POOLED))()
    assert [leaf.shape for leaf in jax.tree.leaves(out)] == [(2, 3, 4), (2, 4)]
