"""Names rows: by their runs' name, and by what tells rows of one name apart."""

import contextlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence

_LONGEST = 40  # letters of a setting's value in a label


def labels_of(rows: Sequence[tuple[str, Mapping[str, str]]]) -> list[str]:
    """A label for each row, of its name and settings; no two are the same.

    Example:
      >>> labels_of([("lsq", {"bits": "2"}), ("lsq", {"bits": "4"}), ("pact", {"bits": "4"})])
      ['lsq [bits=2]', 'lsq [bits=4]', 'pact']
    """
    same: dict[str, list[Mapping[str, str]]] = {}
    for name, own in rows:
        same.setdefault(name, []).append(own)
    differ = {
        name: [k for k in sorted(set().union(*found)) if len({own.get(k) for own in found}) > 1]
        for name, found in same.items()
    }
    labels = []
    for name, own in rows:
        shown = [f"{key}={_cut(own.get(key, 'unset'))}" for key in differ[name]]
        labels.append(f"{name} [{', '.join(shown)}]" if shown else name)
    # Differences may lie behind what is cut off, or in the config's path alone.
    total, seen = Counter(labels), Counter()
    unique = []
    for label in labels:
        seen[label] += 1
        unique.append(label if total[label] == 1 else f"{label} #{seen[label]}")
    return unique


def shared_by(labels: Sequence[str]) -> str:
    """What all labels begin with, up to a folder's end.

    Example:
      >>> shared_by(["digits/lsq [rules=a/b]", "digits/lsq_late"])
      'digits/'
    """
    # What tells rows of one name apart stands in brackets, and may hold a path or a pattern.
    names = [label.partition(" [")[0] for label in labels]
    folder = os.path.commonprefix(names).rpartition("/")
    return folder[0] + folder[1]


def _cut(text: str) -> str:
    with contextlib.suppress(ValueError):  # it is no number
        # What a search drew has 17 digits; six tell settings apart.
        return text if len(text) <= 12 else f"{float(text):.6g}"
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
