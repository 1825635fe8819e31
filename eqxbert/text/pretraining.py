"""From bare text to what a new BERT is trained on: a vocabulary, and batches with masked tokens."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..nn import as_int32
from ..training.batches import batch_indices, check_count, host_rows
from ..training.loss import count_labels
from ..training.masking import continuation_pieces, mask_tokens
from ..training.packing import pack_sequences
from .tokenizer import Tokenizer
from .tokenizer_files import SPECIAL_TOKENS, make_backend

# Tokens that are fewer than these are not worth a sequence of their own.
_LEAST_TOKENS = 4


def train_tokenizer(
    texts: Iterable[str],
    *,
    vocab_size: int = 30522,
    lowercase: bool = True,
    min_frequency: int = 2,
    max_length: int | None = 512,
) -> Tokenizer:
    """A WordPiece tokenizer with a vocabulary made for some texts
    ([Schuster & Nakajima, 2012](https://doi.org/10.1109/ICASSP.2012.6289079)), trained by the
    `tokenizers` library.

    **Arguments:**

    - `texts`: texts, which are gone through once.
    - `vocab_size`: how many tokens there are at most, special ones included.
    - `lowercase`: whether case and accents are ignored.
    - `min_frequency`: how often a token must occur.
    - `max_length`: how many tokens of a text are kept by the tokenizer unless a call says
        otherwise.

    **Raises:** `ValueError` if the texts have no words, or more kinds of characters than
    `vocab_size` has room for.
    """
    from tokenizers import trainers

    special = [SPECIAL_TOKENS[f"{role}_token"] for role in ("pad", "unk", "cls", "sep", "mask")]
    backend = make_backend({token: i for i, token in enumerate(special)}, lowercase=lowercase)
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=special,
        continuing_subword_prefix="##",
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    vocabulary = backend.get_vocab(with_added_tokens=True)
    if len(vocabulary) == len(special):
        raise ValueError("The texts have no words: there is nothing to make a vocabulary of.")
    if len(vocabulary) > vocab_size:
        raise ValueError(
            f"The texts have {len(vocabulary)} kinds of characters, more than vocab_size, "
            f"{vocab_size}. Choose a larger one."
        )
    return Tokenizer(make_backend(vocabulary, lowercase=lowercase), max_length=max_length)


class MaskedTextBatches:
    """Batches to train a masked language model on: a function of the number of the step.

    Texts are divided where they are longer than a row, and several short ones share a row, each
    attending to itself alone (by its `segment_ids`). Rows come in another order in each
    epoch, and in each step other tokens are masked.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        texts: Sequence[str],
        *,
        seq: int = 128,
        batch_size: int = 32,
        seed: int = 0,
        rate: float | int = 0.15,
        whole_words: bool = True,
        host: int = 0,
        hosts: int = 1,
    ):
        """**Arguments:**

        - `tokenizer`: what makes tokens of the texts.
        - `texts`: what is learned.
        - `seq`, `batch_size`: the number of tokens in a row, and of rows in a batch.
        - `seed`: each has an order and masks of its own.
        - `rate`: the share of tokens that is masked.
        - `whole_words`: whether all pieces of a word are masked, or none.
        - `host`, `hosts`: which part of each batch is made, of how many, as in `batch_indices`.

        **Raises:** `ValueError` if there is no text of some length, or a number is out of range.
        """
        check_count("seq", seq, _LEAST_TOKENS + len(_ENDS))
        self.tokenizer, self.batch_size, self.seed, self.rate = tokenizer, batch_size, seed, rate
        self.host, self.hosts = host, hosts
        special = [tokenizer.token_to_id(tokenizer.special_tokens[f"{x}_token"]) for x in _ENDS]
        self._special_ids = special
        inputs, _ = pack_sequences(
            list(_windows(tokenizer, texts, seq, *special)), seq=seq, pad_id=tokenizer.pad_id
        )
        self._rows = {n: inputs[n] for n in ("input_ids", "segment_ids")}
        self._is_continuation = None
        if whole_words:
            self._is_continuation = continuation_pieces(
                tokenizer.id_to_token(i) for i in range(tokenizer.vocab_size)
            )
        self(0)  # so that what is out of range is found now

    @property
    def tokens(self) -> int:
        """The number of tokens in an epoch."""
        return int(np.sum(self._rows["segment_ids"] != 0))

    def __len__(self) -> int:
        return -(-len(self._rows["input_ids"]) // self.batch_size)

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        """The batch of a step, counted from 0; the host's part of it."""
        chosen = batch_indices(
            len(self._rows["input_ids"]),
            self.batch_size,
            seed=self.seed,
            step=step,
            host=self.host,
            hosts=self.hosts,
        )
        rows = {name: array[chosen] for name, array in self._rows.items()}
        return rows | mask_tokens(
            rows["input_ids"],
            vocab_size=self.tokenizer.vocab_size,
            mask_id=self.tokenizer.mask_id,
            special_ids=self._special_ids,
            pad_id=self.tokenizer.pad_id,
            seed=self.seed,
            step=step,
            first_row=host_rows(self.batch_size, self.host, self.hosts).start,
            rate=self.rate,
            is_continuation=self._is_continuation,
        )


def masked_text_metrics(batches: MaskedTextBatches) -> Callable[[Any], dict[str, float]]:
    """A function of a `BertForMaskedLM` that returns its `loss` (the mean negative log-probability
    of a masked token), and its `accuracy` (the share of them that it finds likeliest), over all
    texts of some batches, with the same masks at each call.
    """

    def evaluate(model: Any) -> dict[str, float]:
        counts = [jax.device_get(_count(model, batches(step))) for step in range(len(batches))]
        total, loss, right = np.sum(np.asarray(counts, np.float64), axis=0)
        return {"loss": loss / total, "accuracy": right / total}

    return evaluate


@eqx.filter_jit
def _count(
    model: Any, batch: Mapping[str, Array | np.ndarray]
) -> tuple[Int[Array, ""], Float[Array, ""], Int[Array, ""]]:
    """The number of masked tokens, their loss, and how many are right."""
    out = model(**batch)
    assert out.loss is not None
    total = count_labels(batch["labels"])
    right = jnp.sum(as_int32(jnp.argmax(out.logits, axis=-1)) == as_int32(batch["labels"]))
    return total, out.loss * total.astype(out.loss.dtype), right


_ENDS = ("cls", "sep")


def _windows(
    tokenizer: Tokenizer, texts: Sequence[str], seq: int, cls_id: int, sep_id: int
) -> Iterable[Int[np.ndarray, " _"]]:
    """The texts' tokens in pieces that fit into a row, each between the two special ones."""
    # Not `max_length`, beyond which the rest would be lost.
    for ids in tokenizer.encode(texts, max_length=2**31)[0]:
        words = ids[1:-1]
        for start in range(0, len(words), seq - 2):
            piece = words[start : start + seq - 2]
            if len(piece) >= _LEAST_TOKENS:
                yield np.concatenate([[cls_id], piece, [sep_id]])
