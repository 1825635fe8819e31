"""Results: by name, by place, as a tuple."""

import jax
import jax.numpy as jnp
import pytest

from eqxbert.outputs import BertModelOutput

STATES, POOLED = jnp.ones((2, 3, 4)), jnp.ones((2, 4))


def test_access_by_name_and_place():
    out = BertModelOutput(STATES, POOLED, attentions=(jnp.ones((2, 1, 3, 3)),))
    assert out.keys() == ("last_hidden_state", "pooler_output", "attentions")
    assert out["pooler_output"] is out[1] is out.pooler_output
    assert out["hidden_states"] is None
    assert out[2] is out[-1] is out.attentions
    assert out[:2] == (STATES, POOLED)
    states, pooled, _ = out
    assert states is STATES
    assert pooled is POOLED
    assert len(out) == 3
    assert "attentions" in out
    assert "hidden_states" not in out
    assert dict(out)["pooler_output"] is POOLED


@pytest.mark.parametrize(("index", "error"), [("nothing", KeyError), (2, IndexError)])
def test_wrong_access(index, error):
    with pytest.raises(error):
        BertModelOutput(STATES, POOLED)[index]


def test_results_are_trees_of_arrays():
    out = jax.jit(lambda: BertModelOutput(STATES, POOLED))()
    assert [leaf.shape for leaf in jax.tree.leaves(out)] == [(2, 3, 4), (2, 4)]
