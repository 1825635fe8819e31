"""What belongs together: the name of a function, and what it does."""

import re
from collections.abc import Callable, Iterable, Sequence

from ..text import Tokenizer
from ..text.tasks import PairBatches
from ..text.tasks.sentence_embedding import pair_features
from ..training import Batch
from .corpus import Entry

# As many tokens of a text count; nine of ten have no more.
_SEQ = 32


def spoken(name: str) -> str:
    """A name as words: "http.client.HTTPConnection" -> "http client HTTP Connection"."""
    return " ".join(re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name))


def title(entry: Entry) -> str:
    """Its name and arguments, as words."""
    return f"{spoken(entry.name)} ( {spoken(entry.signature)} )"


def pair_batches(
    tokenizer: Tokenizer, entries: Sequence[Entry], *, batch_size: int, seed: int
) -> Callable[[int], Batch]:
    """Batches for `eqxbert.training.contrastive_loss`, a function of the number of the step: the
    descriptions of some functions, and what belongs to each: its name and arguments; with the rest
    of its documentation in every other step.
    """

    def with_candidates(candidates: Iterable[str]) -> PairBatches:
        pairs = zip((entry.summary for entry in entries), candidates, strict=True)
        texts = [text for pair in pairs for text in pair]
        features = pair_features(tokenizer, texts, max_length=_SEQ)
        return PairBatches(features, batch_size=batch_size, seed=seed)

    titles = [title(entry) for entry in entries]
    rests = (entry.text.partition("\n\n")[2] for entry in entries)
    both = [f"{name} {rest}" for name, rest in zip(titles, rests, strict=True)]
    kinds = with_candidates(titles), with_candidates(both)
    return lambda step: kinds[step % len(kinds)](step)
