"""Decoders in transformers and here: random ones, and one that has learnt a toy language; and what
transformers generates with them.
"""

import logging
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import transformers
from helpers import TINY, tiny_config
from jaxtyping import Array, Float

import eqxbert
from eqxbert import BertForCausalLM, EncoderDecoderModel
from eqxbert.convert import to_state_dict
from eqxbert.outputs import CausalLMOutput, DecoderCache

PAD, EOS, START = 0, 1, 2


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Makes every parameter random, and none of them 0 or 1, so that each one counts."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.3 if parameter.ndim == 2 else 0.1
            parameter.copy_(scale * torch.randn_like(parameter))
            if name.endswith("LayerNorm.weight"):
                parameter += 1


def reference_decoder(
    seed: int = 0, *, likely: int | None = None, **changes: Any
) -> transformers.BertLMHeadModel:
    """A random decoder of transformers. The end changes places with a token that is `likely`."""
    sizes = TINY | {"is_decoder": True} | changes
    model = transformers.BertLMHeadModel(
        transformers.BertConfig(**sizes, attn_implementation="eager")
    ).eval()
    randomize(model, seed)
    if likely is not None:
        with torch.no_grad():
            for array in (model.bert.embeddings.word_embeddings.weight, model.cls.predictions.bias):
                array[[EOS, likely]] = array[[likely, EOS]]
    return model


def same_decoder(reference: transformers.BertLMHeadModel, dtype: Any = None) -> BertForCausalLM:
    """Our decoder with the reference's weights."""
    return eqxbert.convert.from_state_dict(
        BertForCausalLM,
        eqxbert.BertConfig.from_dict(reference.config.to_dict()),
        reference.state_dict(),
        dtype=dtype,
    )


def same_reference(decoder: BertForCausalLM) -> transformers.BertLMHeadModel:
    """The reference with our decoder's weights."""
    config = transformers.BertConfig.from_dict(decoder.config.to_dict())
    config._attn_implementation = "eager"
    model = transformers.BertLMHeadModel(config).eval()
    state = {name: torch.tensor(np.asarray(x)) for name, x in to_state_dict(decoder).items()}
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    return model


# With another hidden size than the decoder's, there is a projection between them.
ENCODERS: dict[str, dict[str, Any]] = {
    "of the decoder's size": {"vocab_size": 29},
    "of another size": {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1},
}


def reference_encoder_decoder(
    encoder: str = "of the decoder's size", seed: int = 0, **decoder: Any
) -> transformers.EncoderDecoderModel:
    """A random encoder-decoder of transformers."""
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.BertConfig(**TINY | ENCODERS[encoder]),
        transformers.BertConfig(**TINY | {"num_hidden_layers": 1} | decoder),
        decoder_start_token_id=START,
        pad_token_id=PAD,
        eos_token_id=EOS,
    )
    model = eager(transformers.EncoderDecoderModel(config))
    randomize(model, seed)
    return model


def eager(model: transformers.EncoderDecoderModel) -> transformers.EncoderDecoderModel:
    model.encoder.set_attn_implementation("eager")
    model.decoder.set_attn_implementation("eager")
    return model.eval()


def same_encoder_decoder(
    reference: transformers.EncoderDecoderModel, dtype: Any = None
) -> EncoderDecoderModel:
    """Our encoder-decoder with the reference's weights."""
    config = eqxbert.EncoderDecoderConfig.from_dict(reference.config.to_dict())
    state = reference.state_dict()
    return eqxbert.convert.from_state_dict(EncoderDecoderModel, config, state, dtype=dtype)


def counting(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Sentences of the toy language: numbers that rise by 1 (mostly) or 2, until they are above 20,
    and then the end.
    """
    ids = np.full((rows, 16), PAD, np.int32)
    for row in ids:
        value = rng.integers(8, 19)
        for i in range(len(row)):
            row[i] = value if value <= 20 else EOS
            if row[i] == EOS:
                break
            value += 1 if rng.random() < 0.7 else 2
    return ids


def trained_decoder(steps: int = 400) -> BertForCausalLM:
    """A decoder that has learnt to count."""
    rng = np.random.default_rng(0)
    config = tiny_config(num_hidden_layers=1, initializer_range=0.1)
    model = BertForCausalLM(config, key=jax.random.key(0))
    optimizer = optax.adam(5e-3)
    state = optimizer.init(eqx.filter(model, eqx.is_array))

    @eqx.filter_jit
    def step(model: BertForCausalLM, state: Any, ids: Any) -> tuple[BertForCausalLM, Any, Any]:
        def loss_of(model: BertForCausalLM) -> Any:
            labels = jnp.where(ids == PAD, -100, ids)
            return model(ids, ids != PAD, labels=labels).loss

        loss, gradient = eqx.filter_value_and_grad(loss_of)(model)
        updates, state = optimizer.update(gradient, state)
        return eqx.apply_updates(model, updates), state, loss

    with jax.numpy_dtype_promotion("standard"):  # which optax relies on
        for _ in range(steps):
            model, state, loss = step(model, state, counting(rng, 32))
    assert float(loss) < 0.8  # that of a perfect model is about 0.5
    return model


class Markov(eqx.Module):
    """A decoder whose next token depends on the last one alone, so that everything about it can be
    counted. It is all that generation asks for, and compiles in no time.
    """

    table: Float[Array, "vocab vocab"]  # logits of the next token, for each last one
    config: eqxbert.BertConfig = eqx.field(static=True)

    @classmethod
    def of(cls, table: np.ndarray, **config: Any) -> "Markov":
        size = {"vocab_size": len(table), "max_position_embeddings": 100}
        return cls(jnp.asarray(table, jnp.float32), tiny_config(is_decoder=True, **size | config))

    @classmethod
    def random(cls, vocab: int, scale: float = 1.0, seed: int = 0, **config: Any) -> "Markov":
        table = scale * np.random.default_rng(seed).normal(size=(vocab, vocab))
        return cls.of(table, **config)

    def init_cache(self, batch: tuple[int, ...], max_length: int) -> DecoderCache:
        return DecoderCache(
            layers=(),
            valid=jnp.zeros((*batch, max_length), bool),
            positions=jnp.zeros((*batch, max_length), jnp.int32),
            length=jnp.zeros((), jnp.int32),
        )

    def __call__(self, input_ids: Any, *, cache: DecoderCache, **options: Any) -> CausalLMOutput:
        length = cache.length + input_ids.shape[-1]
        cache = eqx.tree_at(lambda cache: cache.length, cache, length)
        return CausalLMOutput(logits=self.table[input_ids], cache=cache)

    def log_probabilities(self, last: int) -> np.ndarray:
        """Of each next token."""
        row = np.asarray(self.table, np.float64)[last]
        return row - np.log(np.exp(row).sum())


def random_prompts(rows: int, seq: int, seed: int = 0) -> np.ndarray:
    """Tokens, none of them padding or an end."""
    return np.random.default_rng(seed).integers(2, TINY["vocab_size"], (rows, seq), np.int32)


def their_tokens(
    reference: Any, ids: np.ndarray, mask: np.ndarray | None = None, **options: Any
) -> tuple[list[list[int]], np.ndarray | None]:
    """The new tokens that transformers generates for each row, up to their end; and, with beams,
    the scores.
    """
    ends = options.get("eos_token_id", EOS)
    ends = ends if isinstance(ends, list) else [ends]
    options = {"pad_token_id": PAD, "eos_token_id": EOS, "do_sample": False} | options
    if "bad_words" in options:
        options["bad_words_ids"] = options.pop("bad_words")
    with torch.no_grad():
        out = reference.generate(
            torch.tensor(ids).long(),
            attention_mask=torch.ones(ids.shape).long()
            if mask is None
            else torch.tensor(mask).long(),
            return_dict_in_generate=True,
            output_scores=True,
            **options,
        )
    start = 1 if reference.config.is_encoder_decoder else ids.shape[-1]
    tokens = [up_to_end(row[start:].tolist(), ends) for row in out.sequences]
    scores = getattr(out, "sequences_scores", None)
    return tokens, None if scores is None else scores.numpy()


def up_to_end(tokens: list[int], ends: list[int]) -> list[int]:
    """The tokens up to the first one that ends a sequence, itself included."""
    is_end = [token in ends for token in tokens]
    return tokens[: is_end.index(True) + 1] if any(is_end) else tokens


def our_tokens(out: Any, prompt: int) -> list[list[int]]:
    """The new tokens of each row of what `generate` returned, and of each sequence for it."""
    sequences = np.asarray(out.sequences)
    rows = sequences.reshape(-1, sequences.shape[-1])[:, prompt:]
    lengths = np.asarray(out.lengths).reshape(-1)
    return [row[:length].tolist() for row, length in zip(rows, lengths, strict=True)]


def padded(rows: list[list[int]], side: str) -> tuple[np.ndarray, np.ndarray]:
    """Prompts of several lengths in one array, with padding on one side ("left", "right") or
    anywhere ("between"); and the mask.
    """
    width = max(map(len, rows)) + (2 if side == "between" else 0)
    ids, mask = np.full((2, len(rows), width), PAD, np.int32)
    for i, row in enumerate(rows):
        places = {
            "left": range(width - len(row), width),
            "right": range(len(row)),
            "between": sorted(np.random.default_rng(i).permutation(width)[: len(row)]),
        }[side]
        ids[i, places] = row
        mask[i, places] = 1
    return ids, mask


def log_probabilities(model: BertForCausalLM, tokens: list[int], prompt: int) -> np.ndarray:
    """Of each token after the prompt, computed from the whole sequence at once. (Which is filled up
    to one length, so that one program is compiled.)
    """
    ids = np.full(TINY["max_position_embeddings"], PAD, np.int32)
    ids[: len(tokens)] = tokens
    each = jax.nn.log_softmax(_whole(model, ids), axis=-1)
    return np.asarray(each)[np.arange(len(tokens) - 1), tokens[1:]][prompt - 1 :]


@jax.jit
def _whole(model: BertForCausalLM, ids: Any) -> jax.Array:
    return model(ids).logits


def compiled_programs(call: Callable[[], Any]) -> list[str]:
    """The names of all programs that are compiled by a call."""
    messages: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    handler, logger = Handler(), logging.getLogger("jax")
    logger.addHandler(handler)
    propagate, logger.propagate = logger.propagate, False
    try:
        with jax.log_compiles():
            call()
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
    return [m.split()[1] for m in messages if m.startswith("Compiling")]


def count_compilations(call: Callable[[], Any]) -> int:
    """How many programs of generation are compiled by a call of `generate` or of `stream`, those
    that prepare its arguments left out.
    """
    names = ("jit(_run)", "jit(_start)", "jit(_advance)")
    return sum(name in names for name in compiled_programs(call))
