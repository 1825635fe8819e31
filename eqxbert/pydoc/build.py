"""The recipe of the model in this package: `python -m eqxbert.pydoc.build FOLDER`.

Text is what Python's standard library and the scientific packages that are installed say of their
functions. A vocabulary is made of it, a small BERT learns to fill in masked words, and then also
to tell by its vectors which description belongs to which name. A tenth of the standard library is
held out, so that it can be told how good the model is.
"""

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from ..config import BertConfig
from ..convert import staged_folder
from ..convert.pretrained import write_model
from ..models import BertForMaskedLM
from ..text import Pooling, SentenceEncoder, SentenceModel, Tokenizer
from ..text.pretraining import MaskedTextBatches, train_tokenizer
from ..training import FitResult, MeanLoss, adamw, contrastive_loss, fit
from ..training.loss import Batch
from .corpus import Entry, entries, standard_library
from .pairs import pair_batches, title
from .search import INDEX_FILE, MAX_TOKENS, MODEL, SearchIndex

PACKAGES = ("PIL", "jax", "matplotlib", "networkx", "numpy", "pandas", "scipy", "sklearn", "sympy")
"""What is read besides the standard library, where it is installed."""

VOCABULARY = 8192
SEQ = 128
# The beginning of a docstring says what a function does; what follows are often numbers.
CHARACTERS = 1000
MASKED_STEPS, CONTRASTIVE_STEPS = 5000, 900
MASKED_ROWS, PAIRS = 32, 256
SEED = 0


def is_held_out(entry: Entry) -> bool:
    """Whether this is one of the tenth that the model has not seen: chosen by the description, so
    that all functions that share one are on the same side.
    """
    digest = hashlib.sha256(entry.summary.lower().encode()).digest()
    return digest[0] * 256 + digest[1] < 2**16 // 10


def described(found: Sequence[Entry]) -> list[Entry]:
    """Those whose descriptions have at least three words."""
    return [entry for entry in found if len(entry.summary.split()) >= 3]


def training_entries(packages: Sequence[str] = PACKAGES) -> list[Entry]:
    """What is learned: nothing with a description that is held out."""
    found = standard_library() + entries(packages)
    held_out = {entry.summary.lower() for entry in standard_library() if is_held_out(entry)}
    return [entry for entry in found if entry.summary.lower() not in held_out]


def pretrain(
    tokenizer: Tokenizer, texts: Sequence[str], *, steps: int, folder: Path | None
) -> BertForMaskedLM:
    """A BERT that fills in masked words."""
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=768,
        max_position_embeddings=SEQ,
        type_vocab_size=1,
        attention_probs_dropout_prob=0.0,
    )
    model_key, key = jax.random.split(jax.random.key(SEED))
    batches = MaskedTextBatches(tokenizer, texts, seq=SEQ, batch_size=MASKED_ROWS, seed=SEED)
    result: FitResult = fit(
        BertForMaskedLM(config, key=model_key),
        batches,
        adamw(1e-3, total_steps=steps, warmup=0.05),
        steps=steps,
        key=key,
        folder=folder,
        save_every=250,
        log_every=50,
        dtype=jnp.bfloat16,
    )
    return result.model


def train_vectors(
    model: BertForMaskedLM,
    tokenizer: Tokenizer,
    found: Sequence[Entry],
    texts: Sequence[str],
    *,
    steps: int,
    folder: Path | None,
) -> BertForMaskedLM:
    """The same BERT, whose mean vectors of a description and of the name that it belongs to are
    close to one another. It goes on with masked words, so as not to forget.
    """
    pairs = pair_batches(tokenizer, described(found), batch_size=PAIRS, seed=SEED)
    words = MaskedTextBatches(tokenizer, texts, seq=SEQ, batch_size=8, seed=SEED + 1)
    between = contrastive_loss(temperature=0.05)

    def loss(model: BertForMaskedLM, batch: Batch, key: PRNGKeyArray | None) -> Any:
        of_pairs = between(sentence_model(model), batch["pairs"], key)
        return MeanLoss(of_pairs, jnp.asarray(PAIRS)), *model_loss(model, batch["words"], key)

    def batch(step: int) -> Batch:
        return {"pairs": pairs(step), "words": words(step)}

    result = fit(
        model,
        batch,
        adamw(3e-4, total_steps=steps, warmup=0.05),
        steps=steps,
        loss=loss,
        key=jax.random.key(SEED + 1),
        folder=folder,
        save_every=100,
        log_every=20,
        dtype=jnp.bfloat16,
    )
    return result.model


def sentence_model(model: BertForMaskedLM) -> SentenceModel:
    """What makes vectors of texts."""
    return SentenceModel(model.bert, Pooling(("mean",)), ())


def write(folder: Path, model: BertForMaskedLM, tokenizer: Tokenizer) -> None:
    """Writes the model in half precision, for this library, transformers and sentence-transformers,
    with the vectors of the standard library.
    """
    half = jax.tree.map(lambda x: x.astype(jnp.float16), model)
    rounded = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    encoder = SentenceEncoder(sentence_model(half), tokenizer, max_seq_length=MAX_TOKENS)
    index = SearchIndex.create(
        encoder.with_model(sentence_model(rounded)), described(standard_library())
    )
    with staged_folder(folder) as staging:
        encoder.write(staging)
        write_model(half, staging)  # instead of the bare BERT, which has no head for words
        index.save(staging / INDEX_FILE)


def main() -> None:
    """Makes the model from nothing. Stopped and called again, it goes on."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=MODEL, help="default: the package")
    parser.add_argument("--checkpoints", type=Path, required=True, help="folder to go on from")
    parser.add_argument("--masked-steps", type=int, default=MASKED_STEPS)
    parser.add_argument("--contrastive-steps", type=int, default=CONTRASTIVE_STEPS)
    options = parser.parse_args()
    found = training_entries()
    texts = [f"{title(entry)} {entry.text[:CHARACTERS]}" for entry in found]
    vocabulary = options.checkpoints / "vocabulary"
    if not vocabulary.exists():  # made again, it would be another one
        with staged_folder(vocabulary) as staging:
            train_tokenizer(texts, vocab_size=VOCABULARY, max_length=SEQ).write(staging)
    tokenizer = Tokenizer.from_pretrained(vocabulary)
    print(
        f"{len(found)} functions, {sum(map(len, texts))} characters, {tokenizer.vocab_size} tokens"
    )
    model = pretrain(
        tokenizer, texts, steps=options.masked_steps, folder=options.checkpoints / "masked"
    )
    model = train_vectors(
        model,
        tokenizer,
        found,
        texts,
        steps=options.contrastive_steps,
        folder=options.checkpoints / "contrastive",
    )
    write(options.folder, model, tokenizer)


if __name__ == "__main__":
    main()
