"""Which tokens are masked, and by what: against a slow reference, exact distributions and the words
of real text.
"""

import ast
import functools
import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calls import calls_of
from helpers import run_python, tiny_config
from scipy import stats
from tolerances import FLOAT32

import eqxbert
from eqxbert.nn import IGNORED_LABEL
from eqxbert.training.masking import continuation_pieces, mask_tokens

PAD, CLS, SEP, MASK, FIRST_WORD, VOCAB = 0, 2, 3, 4, 5, 41
CONTINUES = np.arange(VOCAB) >= 30
# Chance alone would fail one such test in ten thousand. Since seeds are fixed, it does not do so
# now and then.
UNLIKELY = 1e-4

# For the arguments in `test_the_same_in_another_process_and_on_another_day`.
GOLDEN = {
    "input_ids": [
        [5, 6, 4, 4, 9, 4, 11, 12, 13, 4, 15, 4],
        [17, 18, 19, 20, 21, 22, 23, 24, 4, 26, 4, 4],
    ],
    "masked_positions": [[2, 3, 5, 9, 11], [0, 3, 8, 10, 11]],
    "labels": [[7, 8, 10, 14, 16], [17, 20, 25, 27, 28]],
}


def mask(ids: np.ndarray, *, seed: int = 0, step: int = 0, **options: Any) -> dict[str, np.ndarray]:
    given = {"vocab_size": VOCAB, "mask_id": MASK, "special_ids": [CLS, SEP], "pad_id": PAD}
    return mask_tokens(ids, seed=seed, step=step, **given | options)


def random_rows(rng: np.random.Generator, batch: int, seq: int, dtype: Any = np.int32):
    """Rows such as [CLS] ... [SEP] ... [SEP], of any lengths, some of nothing but padding."""
    ids = np.full((batch, seq), PAD, dtype)
    for row in ids:
        length = int(rng.integers(0, seq + 1))
        row[:length] = rng.integers(FIRST_WORD, VOCAB, length)
        row[:1] = CLS
        row[rng.integers(0, seq, 2)] = SEP
        row[length:] = PAD
    return ids


def reference(
    ids: np.ndarray,
    *,
    seed: int,
    step: int,
    first_row: int = 0,
    rate: float = 0.15,
    slots: int,
    is_continuation: np.ndarray | None = None,
    mask_share: float = 0.8,
    random_share: float = 0.1,
) -> list[dict[int, tuple[int, int]]]:
    """For each row, what is chosen: {position: (label, what stands there)}. Token by token."""
    special = {PAD, CLS, SEP, MASK}
    drawable = [i for i in range(VOCAB) if i not in special]
    rows = []
    for number, row in enumerate(ids.tolist()):
        key = np.array([seed, step], np.uint64)
        stream = np.random.Philox(key=key, counter=[0, first_row + number, 0, 1])
        bits = [int(b) for b in stream.random_raw(2 * len(row))]
        words: list[list[int]] = []
        for position, token in enumerate(row):
            if token in special:
                continue
            goes_on = is_continuation is not None and is_continuation[token]
            if goes_on and position > 0 and row[position - 1] not in special:
                words[-1].append(position)
            else:
                words.append([position])
        budget = min(slots, max(1, round(rate * sum(token != PAD for token in row))))
        chosen: dict[int, tuple[int, int]] = {}
        for word in sorted(words, key=lambda word: bits[2 * word[0]]):
            if len(chosen) + len(word) > budget:
                continue
            for position in word:
                high, low = divmod(bits[2 * position + 1], 2**32)
                replacement = row[position]
                if high / 2**32 < mask_share:
                    replacement = MASK
                elif high / 2**32 < mask_share + random_share:
                    replacement = drawable[low * len(drawable) // 2**32]
                chosen[position] = row[position], replacement
        rows.append(chosen)
    return rows


@pytest.mark.parametrize("whole_words", [False, True])
def test_against_a_slow_reference(whole_words):
    rng = np.random.default_rng(0)
    for trial in range(60):
        ids = random_rows(rng, *rng.integers(1, 40, 2), rng.choice([np.int32, np.int64, np.uint8]))
        options = {
            "seed": int(rng.integers(0, 2**64, dtype=np.uint64)),
            "step": int(rng.integers(0, 2**40)),
            "first_row": int(rng.integers(0, 1000)),
            "rate": float(rng.choice([0.01, 0.15, 0.5, 0.99])),
            "slots": int(rng.integers(1, ids.shape[1] + 3)),
            "is_continuation": CONTINUES if whole_words else None,
            "mask_share": float(rng.choice([0, 0.5, 0.8])),
            "random_share": float(rng.choice([0, 0.1, 0.2])),
        }
        before = ids.copy()
        out = mask(ids, **options)
        assert np.array_equal(ids, before)
        assert all(array.dtype == np.int32 for array in out.values())
        assert out["labels"].shape == out["masked_positions"].shape
        assert out["labels"].shape == (len(ids), options["slots"]), trial
        for row, expected in enumerate(reference(ids, **options)):
            places = sorted(expected)
            padding = options["slots"] - len(places)
            assert out["masked_positions"][row].tolist() == places + [0] * padding
            labels = [expected[place][0] for place in places]
            assert out["labels"][row].tolist() == labels + [IGNORED_LABEL] * padding
            hidden = ids[row].astype(np.int32)
            hidden[places] = [expected[place][1] for place in places]
            assert np.array_equal(out["input_ids"][row], hidden)


@pytest.mark.parametrize("whole_words", [False, True])
def test_labels_for_all_positions_say_the_same(whole_words):
    ids = random_rows(np.random.default_rng(0), 20, 33)
    options = {"is_continuation": CONTINUES if whole_words else None, "slots": 4}
    sparse, full = mask(ids, **options), mask(ids, **options, all_positions=True)
    assert set(full) == {"input_ids", "labels"}
    assert np.array_equal(full["input_ids"], sparse["input_ids"])
    expected = np.full(ids.shape, IGNORED_LABEL, np.int32)
    for row in range(len(ids)):
        used = sparse["labels"][row] != IGNORED_LABEL
        expected[row, sparse["masked_positions"][row, used]] = sparse["labels"][row, used]
    assert full["labels"].dtype == np.int32
    assert np.array_equal(full["labels"], expected)
    is_labelled = full["labels"] != IGNORED_LABEL
    assert np.array_equal(full["labels"][is_labelled], ids[is_labelled])
    assert np.array_equal(full["input_ids"][~is_labelled], ids[~is_labelled])


@pytest.mark.parametrize("model_class", [eqxbert.BertForPreTraining, eqxbert.BertForMaskedLM])
def test_models_take_both_forms(model_class, key):
    ids = random_rows(np.random.default_rng(1), 5, 17)
    ids[ids >= 33] = 32
    model = model_class(tiny_config(num_hidden_layers=1), key=key)
    loss = jax.jit(lambda model, inputs: model(**inputs).loss)
    losses = []
    for all_positions in (False, True):
        inputs = mask(ids, vocab_size=33, rate=0.3, all_positions=all_positions)
        losses.append(loss(model, inputs | {"attention_mask": ids != PAD}))
    assert losses[0] > 1
    assert abs(float(losses[0] - losses[1])) < FLOAT32


def test_how_many_are_chosen():
    """As many as in Google's code, for every length: rounded to the nearest, halves to even."""
    for seq, rate, slots in itertools.product([130], [0.15, 0.5, 0.025], [None, 20, 1]):
        ids = np.full((seq - 2, seq), PAD)
        for row, length in enumerate(range(3, seq + 1)):
            ids[row, :length] = [CLS, *range(6, length + 4), SEP]
        out = mask(ids, vocab_size=seq + 10, rate=rate, slots=slots)
        most = max(1, round(rate * seq)) if slots is None else slots
        assert out["labels"].shape == (seq - 2, most)
        counts = np.sum(out["labels"] != IGNORED_LABEL, axis=1)
        assert counts.tolist() == [
            min(most, max(1, round(rate * n)), n - 2) for n in range(3, seq + 1)
        ]


@pytest.mark.parametrize("whole_words", [False, True])
def test_special_tokens_are_neither_chosen_nor_drawn(whole_words):
    others = [7, 33, VOCAB - 1]
    ids = random_rows(np.random.default_rng(0), 500, 30)
    options = {"special_ids": [CLS, SEP, *others], "mask_share": 0.3, "random_share": 0.6}
    out = mask(ids, **options, rate=0.9, is_continuation=CONTINUES if whole_words else None)
    special = [PAD, CLS, SEP, MASK, *others]
    assert not np.isin(out["labels"], special).any()
    changed = out["input_ids"] != ids
    assert changed.sum() > 2000
    assert not np.isin(out["input_ids"][changed], [PAD, CLS, SEP, *others]).any()
    assert not np.isin(ids[changed], special).any()


def test_rows_without_words():
    ids = np.array([[PAD] * 6, [CLS, SEP, SEP, PAD, PAD, PAD], [CLS, MASK, SEP, PAD, PAD, PAD]])
    out = mask(ids, rate=0.9)
    assert np.array_equal(out["input_ids"], ids)
    assert (out["labels"] == IGNORED_LABEL).all()
    assert not out["masked_positions"].any()
    assert mask(ids[:0])["labels"].shape == (0, 1)


def test_eighty_ten_ten():
    """What stands in the place of a chosen token, and that it does not depend on where it is."""
    ids = np.random.default_rng(0).integers(FIRST_WORD, VOCAB, (2000, 40))
    out = mask(ids, rate=0.5, all_positions=True)
    rows, columns = np.nonzero(out["labels"] != IGNORED_LABEL)
    before, after = ids[rows, columns], out["input_ids"][rows, columns]
    words = VOCAB - FIRST_WORD + 1  # id 1 is a word as well
    kinds = np.where(after == MASK, 0, np.where(after == before, 1, 2))
    expected = np.array([0.8, 0.1 + 0.1 / words, 0.1 * (1 - 1 / words)]) * len(rows)
    assert len(rows) == 2000 * 20
    assert stats.chisquare(np.bincount(kinds), expected).pvalue > UNLIKELY
    table = np.array([np.bincount(kinds[columns == c], minlength=3) for c in range(40)])
    assert stats.chi2_contingency(table).pvalue > UNLIKELY
    table = np.array([np.bincount(kinds[before == w], minlength=3) for w in np.unique(before)])
    assert stats.chi2_contingency(table).pvalue > UNLIKELY


@pytest.mark.parametrize(("mask_share", "random_share"), [(0, 0), (1, 0), (0, 1), (0.7, 0.3)])
def test_other_shares(mask_share, random_share):
    ids = np.full((1000, 20), 9)
    out = mask(ids, rate=0.5, mask_share=mask_share, random_share=random_share, all_positions=True)
    after = out["input_ids"][out["labels"] != IGNORED_LABEL]
    expected = {MASK: mask_share, 9: 1 - mask_share - random_share + random_share / 37}
    for token, share in expected.items():
        count = int(np.sum(after == token))
        assert stats.binomtest(count, len(after), min(1, max(0, share))).pvalue > UNLIKELY


def test_random_words_are_drawn_evenly():
    ids = np.full((5000, 20), FIRST_WORD)
    out = mask(ids, rate=0.5, mask_share=0, random_share=1)
    drawn = Counter(out["input_ids"].ravel().tolist())
    drawn[FIRST_WORD] -= 5000 * 10  # those that were not chosen
    words = [1, *range(FIRST_WORD, VOCAB)]
    assert set(drawn) == set(words)
    assert stats.chisquare([drawn[word] for word in words]).pvalue > UNLIKELY


def test_positions_are_chosen_evenly():
    """And pairs of them: `n` positions of a row are drawn without replacement, which makes counts
    vary less than if they were drawn one by one.
    """
    seq, rows, number = 24, 8000, 6
    ids = np.full((rows, seq + 2), 9)
    ids[:, 0], ids[:, -1] = CLS, SEP
    out = mask(ids, rate=number / (seq + 2))
    assert (out["labels"] != IGNORED_LABEL).all()
    is_chosen = np.zeros((rows, seq), bool)
    np.put_along_axis(is_chosen, out["masked_positions"] - 1, True, axis=1)
    share = number / seq
    statistic = np.sum((is_chosen.sum(0) - rows * share) ** 2) / (rows * share * (1 - share))
    statistic *= (seq - 1) / seq
    assert UNLIKELY < stats.chi2.sf(statistic, seq - 1) < 1 - UNLIKELY
    together = is_chosen.T.astype(int) @ is_chosen
    expected = rows * share * (number - 1) / (seq - 1)
    deviations = (together[np.triu_indices(seq, 1)] - expected) / np.sqrt(expected)
    assert np.abs(deviations).max() < 4.5
    assert 0.8 < deviations.std() < 1.1


def correlation(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    chosen = [(out["labels"] != IGNORED_LABEL).ravel().astype(float) for out in (a, b)]
    return float(np.corrcoef(*chosen)[0, 1])


@pytest.mark.parametrize(
    "other",
    [{"step": 1}, {"seed": 1}, {"seed": 1, "step": 1}, {"first_row": 1}, {"first_row": 400}],
    ids=str,
)
def test_other_steps_seeds_and_rows_choose_independently(other):
    ids = np.full((400, 100), 9)
    options = {"rate": 0.3, "all_positions": True}
    a, b = mask(ids, **options), mask(ids, **options, **other)
    assert abs(correlation(a, b)) < 4 / np.sqrt(ids.size)
    if other == {"first_row": 1}:
        assert np.array_equal(a["labels"][1:], b["labels"][:-1])


def test_seed_and_step_are_not_interchangeable():
    ids = np.full((50, 100), 9)
    a = mask(ids, seed=3, step=5, all_positions=True)
    b = mask(ids, seed=5, step=3, all_positions=True)
    assert abs(correlation(a, b)) < 0.1


def test_the_same_whatever_was_drawn_before_and_however_the_batch_is_split():
    ids = random_rows(np.random.default_rng(0), 12, 30)
    options = {"seed": 2**63 + 5, "is_continuation": CONTINUES}
    whole = {step: mask(ids, step=step, **options) for step in (7, 3, 2**63)}
    np.random.seed(0)
    for step, parts in itertools.product((3, 2**63, 7), (1, 2, 3, 4, 6, 12)):
        rows = len(ids) // parts
        split = [
            mask(ids[host * rows :][:rows], step=step, first_row=host * rows, **options)
            for host in reversed(range(parts))
        ]
        for name, array in whole[step].items():
            joined = np.concatenate([part[name] for part in reversed(split)])
            assert np.array_equal(joined, array)


def test_the_same_in_another_process_and_on_another_day():
    """Were the numbers below to change, trainings could not be taken up where they stopped."""
    code = """
import numpy as np
from eqxbert.training.masking import mask_tokens
ids = np.arange(24).reshape(2, 12) + 5
out = mask_tokens(ids, vocab_size=41, mask_id=4, special_ids=[2, 3], seed=1, step=2, rate=0.4)
print({name: array.tolist() for name, array in out.items()})
"""
    result = run_python(code, env={"PYTHONHASHSEED": "1"})
    assert ast.literal_eval(result.stdout) == GOLDEN, result.stderr


def test_padding_makes_no_difference():
    ids = random_rows(np.random.default_rng(0), 12, 30)
    wider = np.pad(ids, ((0, 0), (0, 19)), constant_values=PAD)
    options = {"slots": 5, "is_continuation": CONTINUES}
    out, expected = mask(wider, **options), mask(ids, **options)
    assert np.array_equal(out["input_ids"][:, :30], expected["input_ids"])
    assert np.array_equal(out["labels"], expected["labels"])
    assert np.array_equal(out["masked_positions"], expected["masked_positions"])


# Whole words


def test_words_are_masked_as_a_whole_and_no_more_would_fit():
    rng = np.random.default_rng(0)
    for rate, slots in itertools.product([0.15, 0.4], [1, 3, 50]):
        ids = random_rows(rng, 200, 50)
        out = mask(ids, rate=rate, slots=slots, is_continuation=CONTINUES, all_positions=True)
        chosen = out["labels"] != IGNORED_LABEL
        for row in range(len(ids)):
            budget = min(slots, max(1, round(rate * np.sum(ids[row] != PAD))))
            left = budget - chosen[row].sum()
            assert left >= 0
            for positions in words_of(ids[row]):
                is_chosen = chosen[row, positions]
                assert is_chosen.all() or not is_chosen.any()
                assert is_chosen.all() or len(positions) > left


def words_of(row: np.ndarray) -> list[list[int]]:
    words: list[list[int]] = []
    last = -2
    for position in np.flatnonzero(~np.isin(row, [PAD, CLS, SEP, MASK])).tolist():
        if CONTINUES[row[position]] and last == position - 1:
            words[-1].append(position)
        else:
            words.append([position])
        last = position
    return words


def test_which_words_are_chosen_is_distributed_as_by_a_shuffle():
    """The probability of each outcome, exactly: over all orders in which words may be tried."""
    lengths, budget = (1, 2, 3, 1, 2), 3
    ids = np.array([[30 + (i > 0) if i else 9 for n in lengths for i in range(n)]])
    assert ids.tolist() == [[9, 9, 31, 9, 31, 31, 9, 9, 31]]
    expected: Counter[tuple[int, ...]] = Counter()
    for order in itertools.permutations(range(len(lengths))):
        left, taken = budget, []
        for word in order:
            if lengths[word] <= left:
                left -= lengths[word]
                taken.append(word)
        expected[tuple(sorted(taken))] += 1
    rows = 20000
    out = mask(
        np.repeat(ids, rows, axis=0),
        rate=budget / 9,
        is_continuation=CONTINUES,
        all_positions=True,
    )
    firsts = np.cumsum([0, *lengths[:-1]])
    observed = Counter(
        tuple(np.flatnonzero(row).tolist()) for row in out["labels"][:, firsts] != IGNORED_LABEL
    )
    assert set(observed) == set(expected)
    factor = rows / expected.total()
    frequencies = [[counts[k] for k in sorted(expected)] for counts in (observed, expected)]
    assert stats.chisquare(frequencies[0], np.array(frequencies[1]) * factor).pvalue > UNLIKELY


def test_a_piece_that_follows_no_word_is_one_by_itself():
    """After a special token, at a row's beginning; and words do not go on in the next row."""
    ids = np.array([[31, 9, SEP, 32, 33, PAD], [31, MASK, 32, 9, 33, 34]])
    out = mask(np.repeat(ids, 300, axis=0), rate=0.2, slots=1, is_continuation=CONTINUES)
    # One token at most: of words of two pieces, none.
    places = {
        row: {p for p, label in zip(*pair, strict=True) if label != IGNORED_LABEL}
        for row, pair in (
            (0, (out["masked_positions"][:300, 0].tolist(), out["labels"][:300, 0])),
            (1, (out["masked_positions"][300:, 0].tolist(), out["labels"][300:, 0])),
        )
    }
    assert places == {0: {0, 1}, 1: {0, 2}}


def test_a_word_that_does_not_fit_leaves_slots_unused():
    ids = np.array([[CLS, 9, 31, 32, SEP]])
    out = mask(ids, rate=0.4, is_continuation=CONTINUES)
    assert out["labels"].tolist() == [[IGNORED_LABEL] * 2]
    assert np.array_equal(out["input_ids"], ids)
    assert mask(ids, rate=0.6, is_continuation=CONTINUES)["labels"].tolist() == [[9, 31, 32]]


def test_continuation_pieces():
    pieces = continuation_pieces(["[PAD]", "un", "##able", "#", "##", "a##b"])
    assert pieces.dtype == bool
    assert pieces.tolist() == [False, False, True, False, True, False]


@pytest.fixture(scope="module")
def tokenizer(data: Path, tmp_path_factory: pytest.TempPathFactory) -> eqxbert.Tokenizer:
    vocabulary = data / "vocab" / "bert-base-uncased-vocab.txt"
    if not vocabulary.exists():
        pytest.skip(f"EQXBERT_DATA: there is no {vocabulary}")
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.txt").write_bytes(vocabulary.read_bytes())
    return eqxbert.Tokenizer.from_pretrained(folder)


def test_the_words_of_real_text(data, tokenizer):
    """What a word is, the tokenizers library says. Words are whole, and all of them are chosen now
    and then.
    """
    text = (data / "text" / "bert-sample.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line]
    batch = tokenizer(lines)
    ids = batch["input_ids"]
    words = [tokenizer.backend.encode(line).word_ids for line in lines]
    vocabulary = [tokenizer.id_to_token(i) for i in range(tokenizer.vocab_size)]
    options: dict[str, Any] = {
        "vocab_size": tokenizer.vocab_size,
        "mask_id": tokenizer.mask_id,
        "special_ids": [tokenizer.token_to_id(t) for t in ("[CLS]", "[SEP]", "[UNK]")],
        "is_continuation": continuation_pieces(vocabulary),
        "seed": 0,
        "all_positions": True,
    }
    split, ever = 0, np.zeros(ids.shape, bool)
    for step in range(200):
        chosen = mask_tokens(ids, step=step, **options)["labels"] != IGNORED_LABEL
        assert not (chosen & (batch["attention_mask"] == 0)).any()
        ever |= chosen
        for row, of_row in enumerate(words if step < 30 else []):
            counts = Counter(word for word in of_row if word is not None)
            masked = Counter(of_row[p] for p in np.flatnonzero(chosen[row]))
            assert all(counts[word] == n for word, n in masked.items())
            split += sum(n > 1 for n in masked.values())
            assert chosen[row].sum() <= max(1, round(0.15 * len(of_row)))
    assert split > 100
    assert ever.sum() / (~np.isin(ids, [0, 100, 101, 102])).sum() > 0.97


# Bad input

GOOD = np.array([[CLS, 9, 10, SEP]])
BAD: dict[str, tuple[Callable[[], object], str]] = {
    "rate 0": (lambda: mask(GOOD, rate=0), "rate must be above 0 and below 1, got 0"),
    "rate 1": (lambda: mask(GOOD, rate=1.0), "rate must be above 0 and below 1, got 1.0"),
    "rate nan": (lambda: mask(GOOD, rate=float("nan")), "rate must be .* got nan"),
    "percent": (lambda: mask(GOOD, rate=15), "got 15; BERT's is 0.15"),
    "slots 0": (lambda: mask(GOOD, slots=0), "slots must be an integer from 1 .* got 0"),
    "ids": (lambda: mask(GOOD + 32), r"ids contain 41, .* 0 to 40 \(vocab_size is 41\)\. 2 of 4"),
    "negative ids": (lambda: mask(GOOD - 3), "ids contain -1, .* 1 of 4 ids"),
    "mask_id": (lambda: mask(GOOD, mask_id=103), "special_ids, pad_id and mask_id contain 103"),
    "special_ids": (lambda: mask(GOOD, special_ids=[-1]), "contain -1"),
    "one row": (lambda: mask(GOOD[0]), r"ids must be of shape \(batch, seq\), got \(4,\)"),
    "floats": (lambda: mask(GOOD / 1), "ids must be integers .* got an array of float64"),
    "a list": (lambda: mask([[1, 2]]), "ids must be integers in an array of NumPy, got list"),  # type: ignore[arg-type]
    "jax": (lambda: mask(jnp.asarray(GOOD)), "in an array of NumPy, got ArrayImpl"),  # type: ignore[arg-type]
    "shares": (lambda: mask(GOOD, mask_share=0.95), r"mask_share \(0.95\) and .* add up to 1"),
    "negative share": (lambda: mask(GOOD, random_share=-0.1), r"random_share \(-0.1\)"),
    "seed": (lambda: mask(GOOD, seed=-1), r"seed must be an integer from 0 to 2\*\*64 - 1, got -1"),
    "step": (lambda: mask(GOOD, step=2**64), "step must be .* got 18446744073709551616"),
    "first_row": (lambda: mask(GOOD, first_row=-4), "first_row must be .* got -4"),
    "table": (
        lambda: mask(GOOD, is_continuation=CONTINUES[:-1]),
        r"each of the 41 tokens .*continuation_pieces.* bool of shape \(40,\)",
    ),
    "nothing to draw": (
        lambda: mask(GOOD, special_ids=range(VOCAB)),
        "All 41 tokens are special: there is none to draw",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, without_type_checks):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.fixture
def without_type_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As users run it. Otherwise jaxtyping refuses some of the arguments first."""
    import jaxtyping

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def test_everything_may_be_special_if_nothing_is_drawn():
    out = mask(GOOD, special_ids=range(VOCAB), random_share=0)
    assert np.array_equal(out["input_ids"], GOOD)


@pytest.mark.parametrize("whole_words", [False, True])
def test_no_python_runs_for_each_token(whole_words):
    """It does for each row, whose random numbers are its own, and for each place in the rows."""
    ids = np.random.default_rng(0).integers(FIRST_WORD, VOCAB, (256, 512), np.int32)
    is_continuation = CONTINUES if whole_words else None
    long, many, both = (
        calls_of(functools.partial(mask, part, is_continuation=is_continuation))
        for part in (ids[:2], ids[:, :2], ids)
    )
    assert both < long + many
