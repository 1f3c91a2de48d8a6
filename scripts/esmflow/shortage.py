"""Shortages: sequences that were skipped for something that another attempt may not meet.

Such a row of the store stands for the run that committed it; each new plan counts it as missing and tries again.
"""

import re

OUT_OF_MEMORY = "out of memory"
PROCESS_DIED = "the process died"
#: What finds their reasons, in Python as in SQL.
PATTERN = f"^({OUT_OF_MEMORY}|{PROCESS_DIED})"


def is_shortage(reason: str | None) -> bool:
    """Whether a sequence has no values for such a reason."""
    return reason is not None and re.match(PATTERN, reason) is not None
