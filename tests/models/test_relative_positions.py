"""Relative positions against transformers 4, from goldens (tests/goldens/)."""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import max_difference, tiny_config
from tolerances import FLOAT64

from eqxbert import BertModel
from eqxbert.convert import from_state_dict, to_state_dict

GOLDENS = Path(__file__).parents[1] / "goldens" / "relative_positions.npz"


def golden(position_type: str, seq: int) -> dict[str, np.ndarray]:
    prefix = f"{position_type}/{seq}/"
    with np.load(GOLDENS) as arrays:
        return {k.removeprefix(prefix): arrays[k] for k in arrays if k.startswith(prefix)}


@pytest.mark.parametrize("position_type", ["relative_key", "relative_key_query"])
@pytest.mark.parametrize("seq", [7, 17])
def test_outputs_and_gradients_equal_the_goldens(position_type, seq):
    expected = golden(position_type, seq)
    state = {k.removeprefix("state/"): v for k, v in expected.items() if k.startswith("state/")}
    with jax.enable_x64(True):
        config = tiny_config(position_embedding_type=position_type)
        model = from_state_dict(BertModel, config, state, dtype=jnp.float64)

        def scalar(model: BertModel) -> tuple[jax.Array, object]:
            mask = expected["attention_mask"]
            out = model(expected["input_ids"], mask, output_attentions=True)
            return jnp.sum(out.last_hidden_state * expected["weight"]), out

        gradient, out = eqx.filter_grad(scalar, has_aux=True)(model)
        gradients = to_state_dict(gradient)
        assert max_difference(out.last_hidden_state, expected["last_hidden_state"]) < FLOAT64
        assert max_difference(out.attentions[-1], expected["attention"]) < FLOAT64
        for i in range(2):
            name = f"encoder.layer.{i}.attention.self.distance_embedding.weight"
            reference = expected[f"gradient/{name}"]
            difference = max_difference(gradients[name], reference)
            assert difference < FLOAT64 * max(1, np.abs(reference).max()), name


def test_absolute_positions_play_no_part(key):
    model = BertModel(tiny_config(position_embedding_type="relative_key"), key=key)
    ids = np.arange(5)
    moved = model(ids, position_ids=np.arange(5)[::-1].copy()).last_hidden_state
    assert np.array_equal(model(ids).last_hidden_state, moved)
