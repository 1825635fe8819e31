"""Sentence embeddings: what is learned from pairs, and how it is measured and written."""

from pathlib import Path

import jax
import numpy as np
import pytest
from text.tasks.learning import letters, small_config

import eqxbert
from eqxbert import SentenceEncoder
from eqxbert.text import Pooling, SentenceModel
from eqxbert.text.tasks import PairExample, SentenceEmbedding
from eqxbert.training import adamw, fit


@pytest.fixture
def encoder(tokenizer) -> SentenceEncoder:
    bert = eqxbert.BertModel(small_config(), add_pooling_layer=False, key=jax.random.key(0))
    return SentenceEncoder(SentenceModel(bert, Pooling(), ()), tokenizer, max_seq_length=16)


def letter_pairs(number: int, seed: int) -> list[dict[str, str]]:
    """Three letters, and the capitals of the letters that follow these: other tokens, so that which
    belong together is to be learned.
    """
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(number):
        first = letters(rng, 3)
        second = [chr(ord(letter) + 1).upper() for letter in first]
        pairs.append({"text": " ".join(first), "text_pair": " ".join(second)})
    return pairs


def train(
    task: SentenceEmbedding, train: list, dev: list, steps: int
) -> eqxbert.training.FitResult:
    return fit(
        task.encoder.model,
        task.train_batches(train, batch_size=32),
        adamw(5e-3, total_steps=steps, warmup=0.1),
        key=jax.random.key(1),
        steps=steps,
        loss=task.loss,
        evaluate=task.evaluator(dev),
        best_metric=task.main_metric,
        best_is_highest=True,
        progress=False,
    )


def test_pairs_are_found(encoder):
    task = SentenceEmbedding(encoder)
    dev = list({pair["text"]: pair for pair in letter_pairs(60, 1)}.values())
    before = task.evaluator(dev)(encoder.model)
    result = train(task, letter_pairs(400, 0), dev, 150)
    after = result.evaluations[-1]
    assert before["recall_at_1"] < 0.2
    assert after["recall_at_1"] > 0.6
    assert after["recall_at_1"] <= after["mean_reciprocal_rank"] <= after["recall_at_10"] <= 1
    cosines = task.predict(result.model, dev)
    assert len(cosines) == len(dev)
    assert np.mean(cosines) > np.mean(task.predict(encoder.model, dev))


def test_scores_become_cosines(encoder):
    """1 for the same first letter, -1 for another one."""
    rng = np.random.default_rng(0)

    def scored(number: int) -> list[PairExample]:
        pairs = []
        for _ in range(number):
            (a, b), (c, d) = letters(rng, 2), letters(rng, 2)
            c = a if rng.random() < 0.5 else c
            label = 1.0 if a == c else -1.0
            pairs.append(PairExample(text=f"{a} {b}", text_pair=f"{c} {d}", label=label))
        return pairs

    task = SentenceEmbedding(encoder, is_scored=True)
    result = train(task, scored(400), scored(60), 80)
    assert result.evaluations[-1]["spearman"] > 0.7
    assert {"spearman", "pearson"} < {*result.evaluations[-1]}


def test_ranks():
    """Candidates that are as similar count as before the own one."""
    similarities = np.array([[0.9, 0.1, 0.2], [0.5, 0.5, 0.5], [0.3, 0.2, 0.1]])
    ranks = eqxbert.text.tasks.metrics.ranks_of_own(similarities)
    assert ranks.tolist() == [1, 3, 3]
    similarities[0, 1] = similarities[1, 1] = np.nan
    ranks = eqxbert.text.tasks.metrics.ranks_of_own(similarities)
    assert ranks.tolist() == [2, 3, 3]


def test_what_is_written_is_the_encoder_with_its_settings(encoder, tmp_path: Path):
    encoder = SentenceEncoder(
        encoder.model,
        encoder.tokenizer,
        max_seq_length=16,
        prompts={"query": "a b "},
        default_prompt_name="query",
    )
    task = SentenceEmbedding(encoder)
    task.write(encoder.model, tmp_path)
    again = SentenceEncoder.from_pretrained(tmp_path)
    assert again.default_prompt_name == "query"
    np.testing.assert_array_equal(again.encode(["c"]), encoder.encode(["c"]))
    batch = task.train_batches([{"text": "c", "text_pair": "d"}], batch_size=1)(0)
    tokens = encoder.tokenizer(["a b c"])["input_ids"]
    assert np.array_equal(batch["anchors"]["input_ids"][:, : tokens.shape[1]], tokens)


def test_the_same_batch_after_a_restart(encoder):
    task = SentenceEmbedding(encoder)
    pairs = letter_pairs(10, 0)
    one, other = (task.train_batches(pairs, batch_size=4, seed=3) for _ in range(2))
    assert len(one) == 3
    for _ in range(2):
        one(0)
    assert jax.tree.all(jax.tree.map(np.array_equal, one(5), other(5)))


def test_the_parts_of_all_hosts_are_the_batch(encoder):
    task = SentenceEmbedding(encoder, is_scored=True)
    pairs = [pair | {"label": i / 10} for i, pair in enumerate(letter_pairs(10, 0))]
    pairs[3]["text"] = " ".join("abcdefghij")  # which one of the hosts has
    whole = task.train_batches(pairs, batch_size=4)
    parts = [task.train_batches(pairs, batch_size=4, host=host, hosts=2) for host in (0, 1)]
    for step in range(5):
        joined = jax.tree.map(lambda *x: np.concatenate(x), *(part(step) for part in parts))
        assert jax.tree.all(jax.tree.map(np.array_equal, joined, whole(step)))


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "There are no examples"),
        ([{"text": "a"}], "has no text_pair"),
        ([{"text": "a", "text_pair": "b"}], "has no label"),
        ([{"text": "a", "text_pair": "b", "label": 4.2}], "from -1 to 1"),
        ([{"text": "a", "text_pair": "b", "label": float("nan")}], "from -1 to 1"),
        ([{"text": "a", "text_pair": "b", "label": "high"}], "'high', expected a similarity"),
    ],
)
def test_bad_examples(encoder, examples, message):
    task = SentenceEmbedding(encoder, is_scored=True)
    for method in (task.train_batches, task.evaluator):
        with pytest.raises(ValueError, match=message):
            method(examples)


def test_bad_options(encoder):
    with pytest.raises(ValueError, match="max_length is 65, expected 5 to 64"):
        SentenceEmbedding(encoder, max_length=65)
    with pytest.raises(ValueError, match="temperature must be positive"):
        SentenceEmbedding(encoder, temperature=0.0)
    with pytest.raises(ValueError, match="not grouped by length"):
        SentenceEmbedding(encoder).train_batches(letter_pairs(2, 0), group_by_length=True)
