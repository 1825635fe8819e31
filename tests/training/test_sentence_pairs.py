"""Pairs of sentences: where each token comes from, and distributions against a slow reference."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import tiny_config
from scipy import stats

import eqxbert
from eqxbert.training.masking import continuation_pieces, mask_tokens
from eqxbert.training.sentence_pairs import SentencePair, pair_inputs, sentence_pairs

UNLIKELY = 1e-4
Documents = list[list[np.ndarray]]


def numbered(lengths: Sequence[Sequence[int]]) -> Documents:
    """Documents in which no two tokens are the same: they are numbered through."""
    documents, last = [], 0
    for of_document in lengths:
        document = []
        for length in of_document:
            document.append(np.arange(last, last + length))
            last += length
        documents.append(document)
    return documents


def random_documents(seed: int, count: int, longest: int = 12) -> Documents:
    rng = np.random.default_rng(seed)
    return numbered([rng.integers(1, longest, rng.integers(1, 15)) for _ in range(count)])


def document_of(documents: Documents) -> dict[int, int]:
    return {
        int(token): index
        for index, document in enumerate(documents)
        for sentence in document
        for token in sentence
    }


def pairs_of(documents: Any, *, seq: int = 23, seed: int = 0, **options: Any) -> list[SentencePair]:
    return sentence_pairs(documents, seq=seq, seed=seed, **options)


def same(a: list[SentencePair], b: list[SentencePair]) -> bool:
    return len(a) == len(b) and all(
        np.array_equal(x.first, y.first)
        and np.array_equal(x.second, y.second)
        and x.next_sentence_label == y.next_sentence_label
        for x, y in zip(a, b, strict=True)
    )


# Where tokens come from


@pytest.mark.parametrize("seq", [5, 8, 23, 64, 1000])
def test_pairs_are_runs_of_their_documents(seq):
    """That of the first document, or of another one, as the label says; never too long."""
    documents = random_documents(0, 12)
    home = document_of(documents)
    labels = Counter()
    for epoch in range(5):
        last = -1
        for first, second, label in pairs_of(documents, seq=seq, epoch=epoch):
            assert first.dtype == second.dtype == np.int32
            assert min(len(first), len(second)) >= 1
            assert len(first) + len(second) <= seq - 3
            for part in (first, second):
                assert (np.diff(part) == 1).all()
                assert len({home[int(token)] for token in part}) == 1
            if label == eqxbert.NSP_IS_NEXT:
                assert home[int(first[0])] == home[int(second[0])]
                assert second[0] > first[-1]
            else:
                assert label == eqxbert.NSP_IS_RANDOM
                assert home[int(first[0])] != home[int(second[0])]
            # In the order of the documents, and nothing twice.
            assert first[0] > last
            last = second[-1] if label == eqxbert.NSP_IS_NEXT else first[-1]
            labels[label] += 1
    assert min(labels.values()) > 10


def test_what_a_random_text_displaced_is_used_in_the_next_pair():
    """With sentences of a single token nothing is ever cut: all of a document is used, once."""
    documents = numbered([[1] * n for n in (1, 2, 3, 30, 100)])
    for epoch in range(20):
        pairs = pairs_of(documents, seq=13, epoch=epoch)
        used = [
            part
            for first, second, label in pairs
            for part in ([first, second] if label == eqxbert.NSP_IS_NEXT else [first])
        ]
        assert np.concatenate(used).tolist() == list(range(136))


def test_rows_are_filled():
    """Sentences of one token, no short rows: only the end of a document makes one."""
    documents = numbered([[1] * 100, [1] * 100])
    for epoch in range(10):
        pairs = pairs_of(documents, seq=13, epoch=epoch, short_rate=0.0)
        is_full = [len(first) + len(second) == 10 for first, second, _ in pairs]
        reaches_end = [first[-1] % 100 > 88 or second[-1] % 100 == 99 for first, second, _ in pairs]
        assert all(full or end for full, end in zip(is_full, reaches_end, strict=True))
        assert sum(is_full) > 15


@pytest.mark.parametrize(("lengths", "label"), [((1,), 1), ((1, 1), 0), ((3, 9, 2), 0)])
def test_a_single_sentence_has_no_next(lengths, label):
    documents = numbered([lengths, (5,)])
    first = pairs_of(documents, seq=64, random_rate=0)[0]
    assert first.next_sentence_label == label
    if label == eqxbert.NSP_IS_NEXT:
        assert np.concatenate(first[:2]).tolist() == list(range(sum(lengths)))


def test_all_random():
    pairs = pairs_of(random_documents(0, 10), random_rate=1.0)
    assert {pair.next_sentence_label for pair in pairs} == {eqxbert.NSP_IS_RANDOM}


def test_documents_may_be_lists_and_are_not_changed():
    documents = random_documents(0, 5)
    lists = [[sentence.tolist() for sentence in document] for document in documents]
    copies = [[sentence.copy() for sentence in document] for document in documents]
    narrow = [[sentence.astype(np.uint16) for sentence in document] for document in documents]
    pairs = pairs_of(documents)
    assert same(pairs, pairs_of(lists))
    assert same(pairs, pairs_of(narrow))
    for pair in pairs:
        pair.first[:] = pair.second[:] = 0
    assert all(
        np.array_equal(a, b)
        for a, b in zip(sum(documents, []), sum(copies, []), strict=True)  # noqa: RUF017
    )


def test_a_function_of_documents_seed_and_epoch():
    documents = random_documents(0, 8)
    arguments = [(seed, epoch) for seed in (0, 1, 2**63) for epoch in (0, 1)]
    results = [pairs_of(documents, seed=seed, epoch=epoch) for seed, epoch in arguments]
    np.random.seed(0)
    random.seed(0)
    for i, (seed, epoch) in reversed(list(enumerate(arguments))):
        again = pairs_of(documents, seed=seed, epoch=epoch)
        assert [same(again, other) for other in results] == [j == i for j in range(6)]


# Distributions


def reference(documents: Documents, seq: int, rng: random.Random) -> list[tuple[Any, Any, int]]:
    """Sentence by sentence and token by token, with the choices one after the other."""
    pairs = []
    for number, document in enumerate(documents):
        target = rng.randint(2, seq - 3) if rng.random() < 0.1 else seq - 3
        waiting = list(document)
        chunk: list[np.ndarray] = []
        while waiting:
            chunk.append(waiting.pop(0))
            if waiting and sum(map(len, chunk)) < target:
                continue
            middle = rng.randint(1, len(chunk) - 1) if len(chunk) > 1 else 1
            first = [token for sentence in chunk[:middle] for token in sentence]
            label = 1 if len(chunk) == 1 or rng.random() < 0.5 else 0
            if label:
                other = rng.choice([d for i, d in enumerate(documents) if i != number])
                second: list[int] = []
                for sentence in other[rng.randrange(len(other)) :]:
                    second.extend(sentence)
                    if len(second) >= target - len(first):
                        break
                waiting = chunk[middle:] + waiting
            else:
                second = [token for sentence in chunk[middle:] for token in sentence]
            cut(first, second, seq - 3, rng)
            pairs.append((first, second, label))
            chunk = []
    return pairs


def cut(first: list[int], second: list[int], most: int, rng: random.Random) -> None:
    while len(first) + len(second) > most:
        longer = first if len(first) > len(second) else second
        longer.pop(0 if rng.random() < 0.5 else -1)


@pytest.mark.parametrize("seq", [8, 23, 60])
def test_distributions_are_those_of_the_reference(seq):
    """Of lengths, of labels, of the number of pairs, and of where texts begin and end."""
    documents = random_documents(3, 20)
    rng = random.Random(0)
    ours = [pairs_of(documents, seq=seq, epoch=epoch) for epoch in range(150)]
    theirs = [reference(documents, seq, rng) for _ in range(150)]
    for what in (
        lambda pairs: [len(pairs)],
        lambda pairs: [len(first) for first, _, _ in pairs],
        lambda pairs: [len(second) for _, second, _ in pairs],
        lambda pairs: [len(first) + len(second) for first, second, _ in pairs],
        lambda pairs: [first[0] for first, _, _ in pairs],
        lambda pairs: [first[-1] for first, _, _ in pairs],
        lambda pairs: [second[0] for _, second, label in pairs if label == 0],
        lambda pairs: [second[0] for _, second, label in pairs if label == 1],
        lambda pairs: [second[-1] for _, second, label in pairs if label == 1],
    ):
        a, b = (
            [int(x) for pairs in all_pairs for x in what(pairs)] for all_pairs in (ours, theirs)
        )
        # In twenty classes of about the same size.
        bounds = np.unique(np.quantile(a + b, np.linspace(0, 1, 21)))
        table = np.stack([np.histogram(x, bounds)[0] for x in (a, b)])
        assert stats.chi2_contingency(table[:, table.sum(0) > 0]).pvalue > UNLIKELY
    counts = [
        [sum(p[2] == label for ps in x for p in ps) for label in (0, 1)] for x in (ours, theirs)
    ]
    assert stats.chi2_contingency(counts).pvalue > UNLIKELY


def test_the_longer_text_is_cut_until_both_fit():
    rng = random.Random(0)
    for a in range(1, 25):
        for b in range(1, 25):
            documents = numbered([[a, b], [1]])
            first, second, label = pairs_of(documents, seq=15, random_rate=0, short_rate=0)[0]
            if label == eqxbert.NSP_IS_RANDOM:
                assert a >= 12  # it filled the row alone
                continue
            expected = list(range(a)), list(range(b))
            cut(*expected, 12, rng)
            assert (len(first), len(second)) == tuple(map(len, expected))


def test_cuts_are_at_both_ends():
    """Each token that goes, goes from the beginning or the end with the same probability."""
    documents = numbered([[10, 14], [1]])
    starts: list[list[int]] = [[], []]
    for epoch in range(4000):
        pair = pairs_of(documents, seq=15, epoch=epoch, random_rate=0, short_rate=0)[0]
        assert (len(pair.first), len(pair.second)) == (6, 6)
        starts[0].append(int(pair.first[0]))
        starts[1].append(int(pair.second[0]) - 10)
    for observed, cut_off in zip(starts, (4, 8), strict=True):
        expected = stats.binom.pmf(np.arange(cut_off + 1), cut_off, 0.5) * 4000
        counts = np.bincount(observed, minlength=cut_off + 1)
        assert stats.chisquare(counts, expected).pvalue > UNLIKELY
    assert abs(np.corrcoef(starts)[0, 1]) < 4 / np.sqrt(4000)


def test_short_rows_aim_at_any_length():
    documents = numbered([[1] * 40, [1] * 40])
    lengths = []
    for epoch in range(4000):
        first, second, _ = pairs_of(documents, seq=13, epoch=epoch, short_rate=1.0, random_rate=0)[
            0
        ]
        lengths.append(len(first) + len(second))
    counts = np.bincount(lengths)
    assert counts[:2].tolist() == [0, 0]
    assert stats.chisquare(counts[2:]).pvalue > UNLIKELY
    assert len(counts) == 11


def test_one_document_in_ten_has_short_rows():
    documents = numbered([[1] * 40] * 20)
    short = total = 0
    for epoch in range(100):
        for first, second, _ in pairs_of(documents, seq=103, epoch=epoch, random_rate=0):
            if first[0] % 40 == 0:
                total += 1
                short += len(first) + len(second) < 40
    # Of targets from 2 to 100, those below 40 can be told from 100 in documents of 40 tokens.
    assert total == 2000
    assert stats.binomtest(short, total, 0.1 * 38 / 99).pvalue > UNLIKELY


def test_random_texts_come_from_anywhere_else():
    documents = numbered([[1] * n for n in (5, 7, 7, 7)])
    home = document_of(documents)
    origins, starts, middles = Counter(), Counter(), Counter()
    for epoch in range(4000):
        for first, second, _ in pairs_of(
            documents, seq=10, epoch=epoch, random_rate=1.0, short_rate=0
        ):
            if first[0] == 5:  # the second document's first pair
                origins[home[int(second[0])]] += 1
                middles[len(first)] += 1
                if home[int(second[0])] == 3:
                    starts[int(second[0]) - 19] += 1
    assert set(origins) == {0, 2, 3}
    assert stats.chisquare(list(origins.values())).pvalue > UNLIKELY
    assert set(starts) == set(range(7))
    assert stats.chisquare(list(starts.values())).pvalue > UNLIKELY
    assert set(middles) == set(range(1, 7))
    assert stats.chisquare(list(middles.values())).pvalue > UNLIKELY


# As a model takes them


def test_inputs_as_literals():
    pairs = [
        SentencePair(np.array([7, 8], np.int32), np.array([9], np.int32), 0),
        SentencePair(np.array([10], np.int32), np.array([11, 12, 13], np.int32), 1),
    ]
    inputs = pair_inputs(pairs, seq=8, cls_id=2, sep_id=3, pad_id=1)
    assert {name: array.tolist() for name, array in inputs.items()} == {
        "input_ids": [[2, 7, 8, 3, 9, 3, 1, 1], [2, 10, 3, 11, 12, 13, 3, 1]],
        "attention_mask": [[1, 1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1, 0]],
        "token_type_ids": [[0, 0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1, 1, 0]],
        "next_sentence_label": [0, 1],
    }
    assert {array.dtype for array in inputs.values()} == {np.dtype(np.int32)}
    exact = pair_inputs(pairs[1:], seq=7, cls_id=2, sep_id=3)
    assert exact["input_ids"].tolist() == [[2, 10, 3, 11, 12, 13, 3]]
    assert pair_inputs([], seq=8, cls_id=2, sep_id=3)["input_ids"].shape == (0, 8)
    with pytest.raises(ValueError, match=r"pairs\[1\] has 7 tokens .* but a row has 6"):
        pair_inputs(pairs, seq=6, cls_id=2, sep_id=3)


@pytest.fixture(scope="module")
def tokenizer(data: Path, tmp_path_factory: pytest.TempPathFactory) -> eqxbert.Tokenizer:
    vocabulary = data / "vocab" / "bert-base-uncased-vocab.txt"
    if not vocabulary.exists():
        pytest.skip(f"EQXBERT_DATA: there is no {vocabulary}")
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.txt").write_bytes(vocabulary.read_bytes())
    return eqxbert.Tokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def texts(data: Path) -> list[list[str]]:
    text = (data / "text" / "bert-sample.txt").read_text(encoding="utf-8")
    return [document.splitlines() for document in text.strip().split("\n\n")]


@pytest.fixture(scope="module")
def documents(texts: list[list[str]], tokenizer: eqxbert.Tokenizer) -> Documents:
    return [[ids[1:-1] for ids in tokenizer.encode(lines)[0]] for lines in texts]


def test_rows_are_the_tokenizers(texts, tokenizer, documents):
    """Two sentences, put together by the tokenizers library."""
    pairs = [SentencePair(a.astype(np.int32), b.astype(np.int32), 0) for a, b, *_ in documents]
    expected = tokenizer([text[0] for text in texts], [text[1] for text in texts])
    seq = expected["input_ids"].shape[1]
    inputs = pair_inputs(pairs, seq=seq, cls_id=101, sep_id=102)
    for name, array in expected.items():
        assert np.array_equal(inputs[name], array)


def test_real_text(texts, documents, tokenizer):
    """What is read again is a part of the text; about half of all pairs belong together."""
    assert len(documents) >= 3
    joined = [np.concatenate(document).tolist() for document in documents]
    lowered = [tokenizer.decode(ids) for ids in joined]
    labels = []
    for epoch in range(20):
        for first, second, label in pairs_of(documents, seq=128, epoch=epoch):
            labels.append(label)
            homes = [
                {i for i, text in enumerate(lowered) if tokenizer.decode(part) in text}
                for part in (first, second)
                if not tokenizer.decode(part).startswith("##")
            ]
            assert all(homes)
            if len(homes) == 2 and label == eqxbert.NSP_IS_NEXT:
                assert homes[0] & homes[1]
    assert 0.45 < np.mean(labels) < 0.7


def test_from_text_to_a_loss(documents, tokenizer, key):
    """All that pretraining takes, with a tiny model of the real vocabulary."""
    config = tiny_config(
        vocab_size=tokenizer.vocab_size, num_hidden_layers=1, max_position_embeddings=64
    )
    model = eqxbert.BertForPreTraining(config, key=key)
    pairs = pairs_of(documents, seq=64)
    inputs = pair_inputs(pairs, seq=64, cls_id=101, sep_id=102)
    vocabulary = [tokenizer.id_to_token(i) for i in range(tokenizer.vocab_size)]
    inputs |= mask_tokens(
        inputs["input_ids"],
        vocab_size=tokenizer.vocab_size,
        mask_id=tokenizer.mask_id,
        special_ids=[101, 102],
        is_continuation=continuation_pieces(vocabulary),
        seed=0,
        step=0,
        slots=10,
    )
    assert inputs["labels"].shape == (len(pairs), 10)
    assert np.isfinite(jax.jit(lambda model, inputs: model(**inputs).loss)(model, inputs))


# Bad input

TWO = numbered([[3, 4], [5]])
BAD: dict[str, tuple[Callable[[], object], str]] = {
    "none": (lambda: pairs_of([]), "There are 0 documents; there must be two at least"),
    "one": (lambda: pairs_of(TWO[:1]), "There are 1 documents; there must be two .* be divided"),
    "empty document": (lambda: pairs_of([*TWO, []]), r"documents\[2\] has no sentences; leave it"),
    "empty sentence": (
        lambda: pairs_of([[[1], []], *TWO]),
        r"documents\[0\]\[1\] has no tokens; leave it out",
    ),
    "text": (
        lambda: pairs_of([["Some text."], *TWO]),
        r"documents\[0\]\[0\] must be a sequence of token ids, got 'Some text.'. .*Tokenizer",
    ),
    "tokens": (lambda: pairs_of([[["some", "text"]], *TWO]), r"must be .* got \['some', 'text'\]"),
    "flat": (lambda: pairs_of([[1, 2], *TWO]), r"documents\[0\]\[0\] must be a sequence .* got 1"),
    "seq": (lambda: pairs_of(TWO, seq=4), "seq must be an integer from 5 .* got 4"),
    "seed": (lambda: pairs_of(TWO, seed=-1), "seed must be an integer from 0 .* got -1"),
    "epoch": (lambda: pairs_of(TWO, epoch=-1), "epoch must be an integer from 0 .* got -1"),
    "short_rate": (lambda: pairs_of(TWO, short_rate=1.5), "short_rate must be .* got 1.5"),
    "random_rate": (lambda: pairs_of(TWO, random_rate=-1), "random_rate must be .* got -1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, monkeypatch):
    import jaxtyping

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_the_shortest_rows():
    pairs = pairs_of(TWO, seq=5)
    assert all(len(first) == len(second) == 1 for first, second, _ in pairs)
