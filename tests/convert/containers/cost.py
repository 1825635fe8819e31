"""What a piece of code takes, measured in an interpreter of its own."""

import json
from typing import NamedTuple

from helpers import run_python


class Cost(NamedTuple):
    outcome: str
    """What `outcome` was in the end, or the error."""
    memory: int
    """By how many bytes the resident memory grew at its greatest."""
    seconds: float
    """Of the processor, which other processes do not lengthen."""


_MEASURE = """
import json, time
from pathlib import Path
import numpy as np
{imports}

def resident(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))

results = []
outcome = None
for code in json.loads({codes!r}):
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # makes the present size the greatest so far
    except OSError:
        pass
    before = resident("VmRSS")
    start = time.process_time()
    try:
        exec(code)
    except Exception as error:
        outcome = f"{{type(error).__name__}}: {{error}}"
    seconds = time.process_time() - start
    results.append((str(outcome), resident("VmHWM") - before, seconds))
print(json.dumps(results))
"""


def costs(imports: str, *codes: str) -> list[Cost]:
    """What each piece of code takes, one after the other; variables stay."""
    result = run_python(_MEASURE.format(imports=imports, codes=json.dumps(codes)))
    assert result.returncode == 0, result.stderr
    return [Cost(*cost) for cost in json.loads(result.stdout)]
