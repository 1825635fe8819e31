"""Several short sequences in a row, each of which attends to itself alone: rows with little padding
([Krell et al., 2021](https://arxiv.org/abs/2107.02027)).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Int, Int32, Integer, Shaped

from .batches import check_count


@dataclasses.dataclass(frozen=True)
class Packing:
    """Where each of some sequences is.

    - `rows`, `starts`, `lengths`: for each sequence its row, the place of its first token there,
        and the number of its tokens.
    - `shape`: the number of rows, and of tokens in each.
    """

    rows: Int[np.ndarray, " sequences"]
    starts: Int[np.ndarray, " sequences"]
    lengths: Int[np.ndarray, " sequences"]
    shape: tuple[int, int]

    def pack(
        self, values: Sequence[Integer[np.ndarray, " _"]], *, fill: int = 0
    ) -> Int32[np.ndarray, "rows seq"]:
        """Rows of what there is for each token of each sequence: ids or labels, say.

        **Arguments:**

        - `values`: for each sequence, as many values as it has tokens.
        - `fill`: what is put where there is no token.

        **Raises:** `ValueError` if the values are more or fewer than the tokens.
        """
        lengths = np.array([len(array) for array in values], np.int64)
        if len(lengths) != len(self.lengths):
            raise ValueError(
                f"There are values for {len(lengths)} sequences, but {len(self.lengths)} are here."
            )
        wrong = np.flatnonzero(lengths != self.lengths)
        if wrong.size:
            raise ValueError(
                f"Sequence {wrong[0]} has {self.lengths[wrong[0]]} tokens, but there are "
                f"{lengths[wrong[0]]} values for it."
            )
        return self._place(np.concatenate(values), fill)

    def unpack(
        self, packed: Shaped[Array | np.ndarray, "rows seq *shape"]
    ) -> list[Shaped[np.ndarray, "_ *shape"]]:
        """What is in these rows for each sequence: of a model's `last_hidden_state`, say, an array
        of shape (tokens, hidden) for each.

        **Raises:** `ValueError` if `packed` is not of the rows' shape.
        """
        values = np.asarray(packed)
        if values.shape[:2] != self.shape:
            raise ValueError(
                f"packed has shape {values.shape}, expected {self.shape} and further axes."
            )
        places = zip(self.rows, self.starts, self.lengths, strict=True)
        return [values[row, start : start + length] for row, start, length in places]

    @property
    def segment_ids(self) -> Int32[np.ndarray, "rows seq"]:
        """Which sequence a token is of, counted from 1; 0 where there is none."""
        return self._place(np.repeat(np.arange(1, len(self.lengths) + 1), self.lengths), 0)

    def _place(
        self, tokens: Integer[np.ndarray, " tokens"], fill: int
    ) -> Int32[np.ndarray, "rows seq"]:
        """Rows that hold the tokens of all sequences, given one after the other."""
        firsts = np.cumsum(self.lengths) - self.lengths
        shifts = self.rows * self.shape[1] + self.starts - firsts
        packed = np.full(self.shape, fill, np.int32)
        packed.reshape(-1)[np.arange(len(tokens)) + np.repeat(shifts, self.lengths)] = tokens
        return packed


def plan_packing(
    lengths: Sequence[int] | Integer[np.ndarray, " _"], *, seq: int, rows: int | None = None
) -> Packing:
    """Puts sequences into few rows: the longest first, each into the row with the least room that
    is enough. This needs at most about 11/9 of the rows that the best packing would
    ([Johnson et al., 1974](https://doi.org/10.1137/0203025)).

    **Arguments:**

    - `lengths`: the number of tokens of each sequence.
    - `seq`: the number of tokens in a row.
    - `rows`: how many rows there shall be, so that shapes stay the same. None: as many as needed.

    **Raises:** `ValueError` if there are no sequences, one is empty or longer than a row, or they
    need more rows.
    """
    sizes = np.asarray(lengths, np.int64)
    check_count("seq", seq, 1)
    if sizes.size == 0:
        raise ValueError("There are no sequences to pack.")
    wrong = np.flatnonzero((sizes < 1) | (sizes > seq))
    if wrong.size:
        raise ValueError(
            f"Sequence {wrong[0]} has {sizes[wrong[0]]} tokens, expected 1 to {seq} (seq is {seq}; "
            "sequences are not divided). Truncate it or leave it out, or choose a larger seq."
        )
    row_of, starts = np.zeros_like(sizes), np.zeros_like(sizes)
    rows_with_room: list[list[int]] = [[] for _ in range(seq)]
    rooms = 0  # bit r is set if there are rows with room for r tokens more
    needed = 0
    for i in np.argsort(-sizes, kind="stable").tolist():
        length = int(sizes[i])
        enough = rooms >> length
        if enough:
            room = length + (enough & -enough).bit_length() - 1  # the lowest bit
            row = rows_with_room[room].pop()
            if not rows_with_room[room]:
                rooms ^= 1 << room
        else:
            room, row = seq, needed
            needed += 1
        row_of[i], starts[i] = row, seq - room
        rows_with_room[room - length].append(row)
        rooms |= 1 << (room - length)
    if rows is not None and needed > rows:
        raise ValueError(
            f"{sizes.size} sequences of {sizes.sum()} tokens need {needed} rows of {seq}, but rows "
            f"is {rows}. Give fewer sequences, or more rows."
        )
    return Packing(row_of, starts, sizes, (needed if rows is None else rows, seq))


def pack_sequences(
    ids: Sequence[Integer[np.ndarray, " _"]],
    token_type_ids: Sequence[Integer[np.ndarray, " _"]] | None = None,
    *,
    seq: int,
    rows: int | None = None,
    pad_id: int = 0,
) -> tuple[dict[str, np.ndarray], Packing]:
    """The arguments of a model for several sequences in each row, as `plan_packing` puts them.

        inputs, packing = pack_sequences(*tokenizer.encode(texts), seq=512)
        out = model(**inputs)
        packing.unpack(out.last_hidden_state)  # as if each had been alone

    What a model computes for whole rows (`pooler_output`, say) is of no use then: it is of the
    first sequence in each.

    **Arguments:**

    - `ids`, `token_type_ids`: the tokens of each sequence, special ones included, and their types;
        None for 0.
    - `seq`, `rows`: the number of tokens in a row, and of rows; see `plan_packing`.
    - `pad_id`: the token that stands for none.

    **Returns:** `input_ids`, `token_type_ids` and `segment_ids`, of shape (rows, seq), int32; and
    where each sequence is.

    **Raises:** as `plan_packing`; and `ValueError` if types are more or fewer than tokens.
    """
    packing = plan_packing([len(sequence) for sequence in ids], seq=seq, rows=rows)
    types = [np.zeros_like(sequence) for sequence in ids]
    inputs = {
        "input_ids": packing.pack(ids, fill=pad_id),
        "token_type_ids": packing.pack(types if token_type_ids is None else token_type_ids),
        "segment_ids": packing.segment_ids,
    }
    return inputs, packing
