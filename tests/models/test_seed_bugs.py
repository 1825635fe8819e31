"""What the Flax BERTs of transformers 4.57 do wrong, and what is right. Each docstring says what
they do.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from convert.checkpoints import (
    as_numpy,
    assert_same_arrays,
    torch_bert,
    write_config,
    write_sharded,
)
from helpers import max_difference, tiny_config
from parity import random_inputs
from tolerances import FLOAT32

import eqxbert
from eqxbert import (
    BertConfig,
    BertForCausalLM,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertModel,
    EncoderDecoderModel,
)
from eqxbert.convert import CheckpointError, load

IDS = random_inputs(seed=1)["input_ids"]
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
WORDS = "embeddings.word_embeddings.weight"


def test_a_decoder_without_cross_attention_takes_a_padding_mask(key):
    """There, such a decoder has no use of its cache, so that `generate` broadcasts a mask as long
    as the cache against a causal one as long as the prompt, and fails.
    """
    model = BertForCausalLM(tiny_config(is_decoder=True), key=key)
    mask = np.array([[0, 0, 1, 1, 1, 1, 1], [0, 1, 1, 1, 0, 1, 1]])
    changed = np.where(mask, IDS, (IDS + 1) % 33).astype(np.int32)
    before, after = model(IDS, mask).logits, model(changed, mask).logits
    assert np.array_equal(before[mask == 1], after[mask == 1])


def test_a_decoder_without_cross_attention_decodes_with_a_cache(key):
    """There, the same mistake: its cache is left empty, and `generate` fails."""
    model = BertForCausalLM(tiny_config(is_decoder=True), key=key)
    out = eqxbert.generate(model, IDS, max_new_tokens=3)
    ids = IDS
    for _ in range(3):
        best = np.argmax(model(ids).logits[:, -1], axis=-1)
        ids = np.concatenate([ids, best[:, None].astype(np.int32)], axis=-1)
    assert np.array_equal(out.sequences, ids)


def test_an_encoder_decoders_encoder_takes_positions(key):
    """There, `encode` hands them on as token types, and those beyond the second give NaN."""
    encoder = BertModel(tiny_config(**NO_DROPOUT), key=key)
    decoder = BertForCausalLM(tiny_config(is_decoder=True, add_cross_attention=True), key=key)
    model = EncoderDecoderModel.from_encoder_decoder(encoder, decoder, key=key)
    positions = np.arange(IDS.shape[-1], dtype=np.int32)[None, ::-1]
    ours = model.encode(IDS, position_ids=positions).last_hidden_state
    assert np.array_equal(ours, encoder(IDS, position_ids=positions).last_hidden_state)
    assert np.all(np.isfinite(ours))


@pytest.mark.parametrize("kind", [BertModel, BertForCausalLM])
def test_a_cache_can_be_made_by_every_decoder(kind, key):
    """There, `init_cache` of the base model takes the positions for token types, and those of other
    heads have no such method.
    """
    model = kind(tiny_config(is_decoder=True), key=key)
    out = model(IDS, cache=model.init_cache(IDS.shape[:1], 9))
    assert max_difference(out[0], model(IDS)[0]) < FLOAT32
    assert out.cache.length == IDS.shape[-1]


def test_a_full_cache_is_an_error(key):
    """There, what no longer fits overwrites what was last."""
    model = BertModel(tiny_config(is_decoder=True), key=key)
    cache = model(IDS, cache=model.init_cache(IDS.shape[:1], IDS.shape[-1])).cache
    with pytest.raises(ValueError, match="The cache overflows"):
        model(IDS[:, :1], cache=cache)
    compiled = jax.jit(lambda ids, cache: model(ids, cache=cache).last_hidden_state)
    assert np.all(np.isnan(compiled(IDS[:, :1], cache)))


@pytest.mark.parametrize("is_decoder", [True, False])
def test_a_causal_language_model_is_causal(key, is_decoder):
    """There, it is only if the configuration says `is_decoder`; otherwise every token sees the ones
    that it is to predict.
    """
    model = BertForCausalLM(tiny_config(is_decoder=is_decoder), key=key)
    changed = IDS.copy()
    changed[:, 4:] = (IDS[:, 4:] + 1) % 33
    before, after = model(IDS).logits, model(changed).logits
    assert np.array_equal(before[:, :4], after[:, :4])
    assert not np.array_equal(before[:, 4:], after[:, 4:])


def test_a_head_mask_may_have_fractions(key):
    """There, it becomes integers: half a head is none."""
    model = BertModel(tiny_config(), key=key)

    def first_weights(factor: float) -> jax.Array:
        mask = jnp.full((2, 3), factor)
        return model(IDS, head_mask=mask, output_attentions=True).attentions[0]

    assert max_difference(first_weights(0.5), 0.5 * first_weights(1.0)) < FLOAT32


def test_sizes_that_do_not_fit_are_in_the_message(key):
    """There, the message has no `f` before it and names no sizes."""
    with pytest.raises(ValueError, match=r"hidden_size \(13\).*num_attention_heads \(3\)"):
        tiny_config(hidden_size=13)
    with pytest.raises(ValueError, match=r"hidden_size \(13\).*num_heads \(3\)"):
        eqxbert.nn.Attention(13, 3, key=key)


def test_a_change_keeps_the_options_of_a_model(key):
    """There, `enable_gradient_checkpointing` builds the module anew without its options: a model
    that had no pooler looks for one.
    """
    model = BertModel(tiny_config(), add_pooling_layer=False, key=key)
    changed = (
        model.with_config(tiny_config(output_attentions=True))
        .resize_token_embeddings(35)
        .prune_heads({0: [1]})
    )
    assert changed.pooler is None
    assert changed(IDS).pooler_output is None


def test_what_one_load_lacked_is_forgotten_by_the_next(tmp_path, key):
    """There, the missing names are kept on the class: initialising a model that was loaded whole
    overwrites its classifier if another one, loaded before, had none.
    """
    base, whole = tmp_path / "base", tmp_path / "whole"
    BertModel(tiny_config(), key=key).save_pretrained(base)
    model = BertForSequenceClassification(tiny_config(), key=key)
    model.save_pretrained(whole)
    before = dict(vars(BertForSequenceClassification))

    def draw(seed: int) -> BertForSequenceClassification:
        return load(BertForSequenceClassification, base, key=jax.random.key(seed)).model

    first = draw(1)
    loaded = load(BertForSequenceClassification, whole, key=jax.random.key(2))
    assert loaded.report.initialized == ()
    assert_same_arrays(loaded.model, model)
    assert_same_arrays(draw(1), first)
    assert dict(vars(BertForSequenceClassification)) == before


def test_attention_dropout_differs_between_rows_and_heads(key):
    """There, all rows and heads drop the same weights."""
    model = BertModel(tiny_config(attention_probs_dropout_prob=0.5), key=key)
    out = model(np.tile(IDS[:1], (4, 1)), key=key, output_attentions=True)
    dropped = np.asarray(out.attentions[0] == 0).reshape(4 * 3, 7 * 7)
    assert len(np.unique(dropped, axis=0)) == 4 * 3
    assert 0.4 < dropped.mean() < 0.6


@pytest.mark.parametrize(
    "name", sorted(name for name in dir(eqxbert) if name.startswith("BertFor"))
)
def test_every_weight_is_drawn_with_initializer_range(name, key):
    """There, those of the heads are drawn with a deviation of one over the root of their inputs,
    whatever the configuration says, and the padding token's embedding is not zero.
    """
    sizes = {"hidden_size": 96, "initializer_range": 0.02, "num_labels": 20}
    config = tiny_config(**sizes, tie_word_embeddings=False)
    model = getattr(eqxbert, name)(config, key=key)
    assert not np.any(model.bert.embeddings.word.weight[0])
    for path, leaf in jax.tree.leaves_with_path(model):
        if leaf.ndim == 2:
            ratio = float(jnp.std(leaf)) / 0.02
            assert abs(ratio - 1) < 4 / np.sqrt(2 * leaf.size), jax.tree_util.keystr(path)


@pytest.mark.parametrize("is_decoder", [True, False])
def test_a_sequence_that_is_too_long_is_refused(key, is_decoder):
    """There, a decoder fails to broadcast its causal mask, which is no longer than the positions,
    and the others return NaN for every token.
    """
    model = BertModel(tiny_config(is_decoder=is_decoder), key=key)
    assert np.all(np.isfinite(model(np.ones((1, 17), np.int32)).last_hidden_state))
    with pytest.raises(ValueError, match=r"20 tokens.*positions for 17"):
        model(np.ones((1, 20), np.int32))


def test_multiple_choice_without_ids(key):
    """There, the number of choices is read from `input_ids` before it is seen whether there are
    any.
    """
    model = BertForMultipleChoice(tiny_config(), key=key)
    words = model.bert.embeddings.word(IDS[None])
    assert np.array_equal(model(inputs_embeds=words).logits, model(IDS[None]).logits)


def test_multiple_choice_heeds_classifier_dropout(key):
    """There, `hidden_dropout_prob` counts in its place."""

    def changes_with_key(**rates: float) -> bool:
        model = BertForMultipleChoice(tiny_config(**NO_DROPOUT | rates), key=key)
        return not np.array_equal(model(IDS[None]).logits, model(IDS[None], key=key).logits)

    assert changes_with_key(classifier_dropout=0.5)
    assert not changes_with_key(classifier_dropout=0.0)


def test_question_answering_has_two_labels_whatever_the_configuration_says(tmp_path, key):
    """There, the logits are split into `num_labels` parts and taken for two: any other number
    fails.
    """
    model = BertForQuestionAnswering(tiny_config(num_labels=3), key=key)
    out = model(IDS)
    assert out.start_logits.shape == out.end_logits.shape == IDS.shape
    model.save_pretrained(tmp_path)
    assert BertConfig.from_pretrained(tmp_path).num_labels == 2
    write_config(tmp_path, id2label={"0": "a", "1": "b", "2": "c"})
    assert_same_arrays(BertForQuestionAnswering.from_pretrained(tmp_path), model)


def test_safetensors_may_be_in_shards(tmp_path, key):
    """There, they are refused as "coming soon"."""
    state = as_numpy(torch_bert())
    assert_same_arrays(BertModel.from_pretrained(write_sharded(tmp_path, state)), state)


def write_pickle(folder: Path) -> dict[str, np.ndarray]:
    model = torch_bert()
    write_config(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return as_numpy(model)


def test_a_pytorch_file_needs_no_new_weights(tmp_path):
    """There, one can be read only into a model that has been given random weights before."""
    state = write_pickle(tmp_path)
    assert_same_arrays(BertModel.from_pretrained(tmp_path), state)


def test_ignore_mismatched_sizes_holds_for_a_pytorch_file(tmp_path, key):
    """There, another shape is an error in a PyTorch checkpoint, asked to ignore it or not."""
    state = write_pickle(tmp_path)
    with pytest.raises(CheckpointError, match=rf"{WORDS}: \(33, 12\).*\(10, 12\) in the model"):
        BertModel.from_pretrained(tmp_path, vocab_size=10)
    loaded = load(BertModel, tmp_path, vocab_size=10, ignore_mismatched_sizes=True, key=key)
    assert loaded.report.initialized == (WORDS,)
    assert loaded.model.embeddings.word.weight.shape == (10, 12)
    assert_same_arrays(
        {k: x for k, x in eqxbert.convert.to_state_dict(loaded.model).items() if k != WORDS},
        {k: x for k, x in state.items() if k != WORDS},
    )
