"""What becomes of the memory that XLA frees."""

import numpy as np

_LARGEST = 2**25 - 2**16  # with room for what glibc adds to a block


def keep_freed_memory() -> None:
    """Has glibc keep up to 64 MB of freed memory in each of its arenas, in place of returning them.

    On a CPU, XLA takes memory for the scores of each layer's attention anew, and frees it. Of what
    is free, glibc returns what exceeds twice the largest block of up to 32 MB that it has seen
    freed ([mallopt(3)](https://man7.org/linux/man-pages/man3/mallopt.3.html)). Attention over 512
    tokens has two such blocks and a little more: they would be returned after each layer, and come
    back page by page, which takes as long as all that is computed. Here it is shown a larger block.

    Nothing happens with other C libraries, or where the environment tells glibc what to keep.
    """
    np.empty(_LARGEST, np.uint8)
