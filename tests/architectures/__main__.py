"""`python tests/architectures [NAME ...]`: judge every network by every method; a table, a JSON file and counts."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import asdict

from catalogue import CATALOGUE, PACKAGES
from judge import METHODS, STATES, Audited, Judgement, audited, judged
from table import PAGE, RESULTS, written

AUDITED = ("timm-resnetv2-50", "timm-vit", "gpt2", "mixtral")
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
    trainings: list[Audited] = []
    for name in AUDITED if not names else ():
        trainings.append(audited(name))
        print(trainings[-1], flush=True)
    for method in METHODS:
        for state in STATES:
            counts = Counter(j.verdict for j in judgements if (j.method, j.state) == (method, state))
            print(f"{method:18} {state:8}", dict(counts))
    if not names:
        rows = [{"package": PACKAGES[j.network], **asdict(j)} for j in judgements]
        results = {"gradients": rows, "auto": [asdict(training) for training in trainings]}
        RESULTS.write_text(json.dumps(results, indent=1, allow_nan=True) + "\n")
        PAGE.write_text(written(PAGE.read_text(), results))
    bad = any(j.verdict in BAD for j in judgements)
    return bad or any(not training.used <= training.tolerance for training in trainings)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
