"""How good the model that comes with the package is, on what it has not seen.

    python tests/benchmarks/search.py [FOLDER]    # needs: pip install bm25s==0.3.16

Of the standard library's functions, those with a tenth of all descriptions were held out of its
training. For each of these descriptions, the function that it belongs to is looked for by its name
and arguments: among the held-out ones, and among all. Next to the model stands BM25 (of the package
`bm25s`, with its English stop words and a stemmer that takes off an s), which gets the same words.
Functions with the same description all count as right. Then come the share of masked words of
held-out documentation that the model finds, and questions as people ask them, with functions that
answer them.
"""

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

import eqxbert
from eqxbert.pydoc import MODEL, SearchIndex
from eqxbert.pydoc.build import CHARACTERS, SEQ, described, is_held_out
from eqxbert.pydoc.corpus import Entry, standard_library
from eqxbert.pydoc.pairs import title
from eqxbert.text import MaskedTextBatches, masked_text_metrics

QUESTIONS = {
    "parse json from a string": ["json.loads"],
    "delete a directory and everything in it": ["shutil.rmtree"],
    "current time in seconds": ["time.time"],
    "copy an object with all that is in it": ["copy.deepcopy"],
    "split a path into directory and file name": ["os.path.split", "os.path.basename"],
    "shuffle a list": ["random.shuffle"],
    "does a file exist": ["os.path.exists", "os.path.isfile", "pathlib.Path.exists"],
    "run an external command and get its output": ["subprocess.check_output", "subprocess.run"],
    "most common elements": ["collections.Counter.most_common"],
    "permutations of a list": ["itertools.permutations"],
    "download a web page": ["urllib.request.urlopen", "urllib.request.urlretrieve"],
    "compress data": ["zlib.compress", "gzip.compress", "bz2.compress", "lzma.compress"],
    "encode bytes in base64": ["base64.b64encode", "base64.encodebytes"],
    "remember the results of a function": ["functools.lru_cache", "functools.cache"],
    "standard deviation of numbers": ["statistics.stdev", "statistics.pstdev"],
    "wait for a thread to finish": ["threading.Thread.join"],
    "make a temporary file": ["tempfile.TemporaryFile", "tempfile.NamedTemporaryFile"],
    "change the working directory": ["os.chdir", "contextlib.chdir"],
    "replace text that matches a pattern": ["re.sub", "re.subn", "re.Pattern.sub"],
    "greatest common divisor": ["math.gcd"],
}
TOP = (1, 10)


def main() -> None:
    parser = argparse.ArgumentParser(description="The model of Python's documentation.")
    parser.add_argument("folder", type=Path, nargs="?", default=MODEL)
    folder = parser.parse_args().folder
    everything = described(standard_library())
    held_out = [entry for entry in everything if is_held_out(entry)]
    encoder = eqxbert.SentenceEncoder.from_pretrained(folder)
    print(f"{len(held_out)} of {len(everything)} functions are held out\n")

    def by_vectors(queries: Sequence[str], documents: Sequence[str]) -> np.ndarray:
        query_vectors, vectors = (np.asarray(encoder.encode(x)) for x in (queries, documents))
        return encoder.similarity(query_vectors, vectors)

    print(f"{'candidates':>10}{'':>8}" + "".join(f"{f'recall@{k}':>12}" for k in TOP))
    for candidates in (held_out, everything):
        for name, score in (("BM25", by_words), ("model", by_vectors)):
            recalls = recall(score, held_out, candidates)
            print(f"{len(candidates):>10}{name:>8}" + "".join(f"{x:>12.3f}" for x in recalls))

    texts = [f"{title(entry)} {entry.text[:CHARACTERS]}" for entry in held_out]
    tokenizer = eqxbert.Tokenizer.from_pretrained(folder)
    batches = MaskedTextBatches(tokenizer, texts, seq=SEQ, batch_size=16)
    found = masked_text_metrics(batches)(eqxbert.BertForMaskedLM.from_pretrained(folder))
    print(f"\nmasked words found: {found['accuracy']:.3f}, loss {found['loss']:.3f}\n")

    index = SearchIndex.create(encoder, everything)
    ranks = []
    for question, answers in QUESTIONS.items():
        [scores] = index.scores(np.asarray(encoder.encode([question])))
        names = [index.names[i] for i in np.argsort(-scores)]
        ranks.append(min(names.index(answer) + 1 for answer in answers if answer in names))
        print(f"{ranks[-1]:>5}  {question}: {', '.join(names[:3])}")
    summaries = [f"{title(entry)} {entry.summary}" for entry in everything]
    words = by_words(list(QUESTIONS), summaries)
    word_ranks = [
        min(i for i, j in enumerate(np.argsort(-row), 1) if everything[j].name in answers)
        for row, answers in zip(words, QUESTIONS.values(), strict=True)
    ]
    for name, found_ranks in (("BM25", word_ranks), ("model", ranks)):
        share = np.mean(np.array(found_ranks) <= 10)
        reciprocal = np.mean(1 / np.array(found_ranks))
        print(f"{name:>8}: in the first ten {share:.2f}, mean reciprocal rank {reciprocal:.3f}")


def recall(
    score: Callable[[Sequence[str], Sequence[str]], np.ndarray],
    held_out: Sequence[Entry],
    candidates: Sequence[Entry],
) -> list[float]:
    """The share of descriptions whose function is among the first, for each number in `TOP`."""
    queries = sorted({entry.summary for entry in held_out})
    scores = score(queries, [title(entry) for entry in candidates])
    order = np.argsort(-scores, axis=1, kind="stable")[:, : max(TOP)]
    summaries = np.array([entry.summary for entry in candidates])
    is_right = summaries[order] == np.array(queries)[:, None]
    return [float(np.mean(is_right[:, :k].any(axis=1))) for k in TOP]


def by_words(queries: Sequence[str], documents: Sequence[str]) -> np.ndarray:
    """BM25's scores."""
    # Not before the standard library has been read: it imports what then changes which classes
    # `ctypes.wintypes` and `concurrent.futures` call their own.
    import bm25s

    def words(texts: Sequence[str]) -> list[list[str]]:
        found = bm25s.tokenize(list(texts), stopwords="en", show_progress=False, return_ids=False)
        return [[re.sub(r"s$", "", str(word)) for word in text] for text in found]

    retriever = bm25s.BM25()
    retriever.index(words(documents), show_progress=False)
    return np.stack([retriever.get_scores(query) for query in words(queries)])


if __name__ == "__main__":
    main()
