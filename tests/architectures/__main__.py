"""`python tests/architectures [NAME ...]`: judge every network by every method; a table, a JSON file and counts."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from catalogue import CATALOGUE, PACKAGES
from judge import METHODS, Judgement, judged

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "architectures.json"


def main(names: list[str]) -> int:
    judgements: list[Judgement] = []
    for name in names or list(CATALOGUE):
        for method in METHODS:
            try:
                judgement = judged(name, method)
            except ImportError as error:
                print(f"{name}: not here ({error})")
                break
            judgements.append(judgement)
            numbers = f"error {judgement.error:.1e}" if judgement.error == judgement.error else judgement.reason[:150]
            warned = f", said {judgement.said:.1e}" if judgement.said == judgement.said else ""
            print(f"{name:28} {method:18} {judgement.verdict:17} {numbers}{warned}", flush=True)
    if not names:
        rows = [{"package": PACKAGES[j.network], **asdict(j)} for j in judgements]
        RESULTS.write_text(json.dumps(rows, indent=1, allow_nan=True) + "\n")
    for method in METHODS:
        print(method, dict(Counter(j.verdict for j in judgements if j.method == method)))
    return any(j.verdict in ("wrong in silence", "crashed") for j in judgements)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
