"""`python tests/architectures [NAME ...]`: judge every network by every method; a table, a JSON file and counts."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import asdict

from catalogue import CATALOGUE, PACKAGES
from judge import METHODS, STATES, Judgement, judged
from table import PAGE, RESULTS, written

BAD = ("wrong in silence", "said wrongly", "crashed")


def main(names: list[str]) -> int:
    judgements: list[Judgement] = []
    for name in names or list(CATALOGUE):
        for method in METHODS:
            for state in STATES:
                judgement = judged(name, state, method)
                judgements.append(judgement)
                numbers = f"{judgement.error:.1e} (worst tensor {judgement.worst:.1e})"
                numbers = numbers if judgement.error == judgement.error else judgement.reason[:130]
                warned = f", said {judgement.said:.1e}" if judgement.said == judgement.said else ""
                print(f"{name:26} {method:18} {state:8} {judgement.verdict:16} {numbers}{warned}", flush=True)
    for method in METHODS:
        for state in STATES:
            counts = Counter(j.verdict for j in judgements if (j.method, j.state) == (method, state))
            print(f"{method:18} {state:8}", dict(counts))
    if not names:
        rows = [{"package": PACKAGES[j.network], **asdict(j)} for j in judgements]
        RESULTS.write_text(json.dumps(rows, indent=1, allow_nan=True) + "\n")
        PAGE.write_text(written(PAGE.read_text(), rows))
    return any(j.verdict in BAD for j in judgements)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
