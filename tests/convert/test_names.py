from typing import Any

import jax
import pytest
import transformers
from convert.checkpoints import torch_bert
from convert.dialects import flax_name, tensorflow_name, without_repeats
from helpers import tiny_config

import eqxbert
from eqxbert.convert.names import (
    canonical_names,
    is_ignored,
    is_transposed,
    name_to_path,
    path_to_name,
)

LAYER = "encoder.layer.1.attention.self.query.weight"

MODELS = {
    "BertModel": {},
    "BertForPreTraining": {},
    "BertForMaskedLM": {},
    "BertForNextSentencePrediction": {},
    "BertForSequenceClassification": {},
    "BertForMultipleChoice": {},
    "BertForTokenClassification": {},
    "BertForQuestionAnswering": {},
    "BertLMHeadModel": {"is_decoder": True, "add_cross_attention": True},
}


def names_of(model_class: str) -> list[str]:
    return list(torch_bert(getattr(transformers, model_class), **MODELS[model_class]).state_dict())


@pytest.mark.parametrize("model_class", MODELS)
def test_every_name_of_transformers_has_a_path_and_back(model_class: str) -> None:
    names = names_of(model_class)
    canonical = canonical_names(names)
    assert list(canonical) == names
    paths = {name: name_to_path(canonical[name]) for name in names}
    assert len(set(paths.values())) == len(names)
    for name, path in paths.items():
        prefix = "bert." if name.startswith("bert.") else ""
        assert path_to_name(prefix + path) == name


def test_the_names_in_the_table_are_the_canonical_ones() -> None:
    names = names_of("BertModel")
    assert canonical_names(names) == {name: name for name in names}


def test_a_path_is_where_the_array_stands_in_the_tree(key: jax.Array) -> None:
    """Each name's path, followed attribute by attribute, leads to an array of its shape."""
    model = eqxbert.BertModel(tiny_config(), key=key)
    for name, tensor in torch_bert().state_dict().items():
        place = model
        for part in name_to_path(name).split("."):
            place = place[int(part)] if isinstance(place, tuple) else getattr(place, part)
        assert isinstance(place, jax.Array), name
        assert place.shape == tuple(tensor.shape), name


@pytest.mark.parametrize("pooler", [True, False])
def test_every_array_of_the_model_has_a_name_of_its_own(key: jax.Array, pooler: bool) -> None:
    model = eqxbert.BertModel(tiny_config(), add_pooling_layer=pooler, key=key)
    names = eqxbert.convert.to_state_dict(model)
    expected = [n for n in names_of("BertModel") if pooler or not n.startswith("pooler.")]
    assert sorted(names) == sorted(expected)
    assert len(names) == len(jax.tree.leaves(model))


@pytest.mark.parametrize("position_type", ["relative_key", "relative_key_query"])
def test_distances_have_the_name_that_transformers_4_gave_them(
    key: jax.Array, position_type: str
) -> None:
    config = tiny_config(position_embedding_type=position_type)
    state = eqxbert.convert.to_state_dict(eqxbert.BertModel(config, key=key))
    extra = state.keys() - set(names_of("BertModel"))
    assert extra == {
        f"encoder.layer.{i}.attention.self.distance_embedding.weight" for i in range(2)
    }


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "bert.",
        "module.",
        "module.bert.",
        "_orig_mod.",
        "_orig_mod.module.bert.",
        "model.",
        "model.bert.",
        "0.auto_model.",
        "0.model.",
        "base_model.model.",
        "base_model.model.bert.",
        "params.",
        "params.bert.",
        "state_dict.",
        "state_dict.model.bert.",
        "model.module.bert.",
        "module._orig_mod.",
    ],
)
def test_prefixes_are_taken_off_every_name(prefix: str) -> None:
    names = names_of("BertModel")
    canonical = canonical_names([prefix + name for name in names])
    assert canonical == {prefix + name: name for name in names}


def test_from_an_encoder_decoder_the_encoder_is_taken() -> None:
    encoder = torch_bert()
    decoder = torch_bert(transformers.BertLMHeadModel, **MODELS["BertLMHeadModel"])
    names = list(transformers.EncoderDecoderModel(encoder=encoder, decoder=decoder).state_dict())
    canonical = canonical_names(names)
    base = set(encoder.state_dict())
    assert {n: c for n, c in canonical.items() if c in base} == {f"encoder.{n}": n for n in base}
    assert len(set(canonical.values())) == len(names)
    assert all(c.startswith("decoder.") for c in canonical.values() if c not in base)


def test_the_encoder_of_a_plain_model_is_not_taken_for_an_encoder_decoders() -> None:
    assert canonical_names([LAYER]) == {LAYER: LAYER}
    assert canonical_names(["embeddings.LayerNorm.weight", LAYER])[LAYER] == LAYER


@pytest.mark.parametrize("separator", ["/", "."])
@pytest.mark.parametrize("dialect", [flax_name, tensorflow_name], ids=["flax", "tensorflow"])
@pytest.mark.parametrize("model_class", MODELS)
def test_every_name_of_flax_and_tensorflow_becomes_todays(
    model_class: str, dialect: Any, separator: str
) -> None:
    model = torch_bert(getattr(transformers, model_class), **MODELS[model_class])
    names = {dialect(name).replace("/", separator): name for name in without_repeats(model)}
    expected = {theirs: name.removeprefix("bert.") for theirs, name in names.items()}
    assert canonical_names(names) == expected
    assert {name for name in names if is_transposed(name)} == {
        name for name in names if name.endswith("kernel")
    }


@pytest.mark.parametrize("model_class", MODELS)
def test_the_leftovers_of_googles_optimizer_are_ignored(model_class: str) -> None:
    for name in names_of(model_class):
        for moment in ("adam_m", "adam_v"):
            [canonical] = canonical_names([f"{tensorflow_name(name)}/{moment}"]).values()
            assert is_ignored(canonical), name


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("bert.embeddings.LayerNorm.gamma", "embeddings.LayerNorm.weight"),
        ("bert.embeddings.LayerNorm.beta", "embeddings.LayerNorm.bias"),
        (
            "encoder.layer.0.attention.output.LayerNorm.gamma",
            "encoder.layer.0.attention.output.LayerNorm.weight",
        ),
        ("encoder.layer.0.output.LayerNorm.beta", "encoder.layer.0.output.LayerNorm.bias"),
        (
            "cls.predictions.transform.LayerNorm.gamma",
            "cls.predictions.transform.LayerNorm.weight",
        ),
        (
            "bert.encoder.layer.0.intermediate.dense_act.weight",
            "encoder.layer.0.intermediate.dense.weight",
        ),
        ("bert.pooler.dense_act.bias", "pooler.dense.bias"),
        (
            "cls.predictions.transform.dense_act.weight",
            "cls.predictions.transform.dense.weight",
        ),
        (
            "base_model.model.encoder.layer.0.attention.self.query.base_layer.weight",
            "encoder.layer.0.attention.self.query.weight",
        ),
    ],
)
def test_old_spellings_become_todays(name: str, canonical: str) -> None:
    assert canonical_names([name]) == {name: canonical}


@pytest.mark.parametrize(
    "name",
    [
        "foo.gamma",
        "foo.beta",
        "foo.gamma_proj.weight",
        "foo.beta_proj.weight",
        "embeddings.gamma",
        "embeddings.LayerNorm.gamma_proj.weight",
        "LayerNorm.gamma.weight",
        "pooler.dense_activation.weight",
        "pooler.base_layers.weight",
        "classifier.bert.weight",
        "head.module.weight",
    ],
)
def test_other_names_stay_as_they_are(name: str) -> None:
    assert canonical_names([name]) == {name: name}


@pytest.mark.parametrize(
    "name",
    [
        "embeddings.position_ids",
        "embeddings.token_type_ids",
        "global_step",
        "bert/encoder/layer_0/output/dense/kernel/adam_m",
        "bert/encoder/layer_0/output/dense/kernel/adam_v",
        "bert/beta1_power",
        "AdamWeightDecayOptimizer_1",
    ],
)
def test_buffers_and_leftovers_of_training_are_ignored(name: str) -> None:
    assert is_ignored(name)


@pytest.mark.parametrize(
    "name",
    [
        "embeddings.position_embeddings.weight",
        "embeddings.token_type_embeddings.weight",
        "embeddings.position_ids.weight",
        "classifier.weight",
        "adam_m.weight",
        LAYER,
    ],
)
def test_arrays_of_a_model_are_not_ignored(name: str) -> None:
    assert not is_ignored(name)


@pytest.mark.parametrize(
    "path", ["encoder.layers.0.attention.quer.weight", "embeddings.words.weight", "layers", ""]
)
def test_a_path_without_a_row_is_an_error(path: str) -> None:
    with pytest.raises(KeyError):
        path_to_name(path)


@pytest.mark.parametrize(
    "name",
    ["encoder.layer.x.output.dense.weight", "encoder.layer.0.output.denser.weight", "decoder", ""],
)
def test_a_name_without_a_row_is_an_error(name: str) -> None:
    with pytest.raises(KeyError):
        name_to_path(name)
