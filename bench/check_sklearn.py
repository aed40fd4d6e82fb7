"""Evaluates exported features with scikit-learn and compares the results with evaluation.json.

    macrl-train evaluate --run runs/demo --features-out runs/demo/features
    python3 bench/check_sklearn.py runs/demo/features runs/demo/evaluation.json

Needs numpy and scikit-learn, and minutes for wide features.  Exit status 1 where any accuracy differs by more than 0.1 point.
"""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

TOLERANCE = 0.001


def load(folder: Path, name: str):
    """(n, D) features and (n) labels of both parts."""
    return [np.load(folder / f"{name}-{part}-{kind}.npy")
            for part in ("train", "test") for kind in ("features", "labels")]


def knn(x, y, xt, yt, k, temperature):
    """Cosine, votes weighted by exp(similarity / temperature)."""
    model = KNeighborsClassifier(k, metric="cosine", algorithm="brute",
                                 weights=lambda distance: np.exp(-distance / temperature))
    return model.fit(x, y).score(xt, yt)


def linear(x, y, xt, yt, l2):
    """Logistic regression on standardised features, `l2` on the mean loss."""
    # In double precision, since its solver stops far from the minimum of correlated features in single.
    x, xt = x.astype(np.float64), xt.astype(np.float64)
    scaler = StandardScaler().fit(x)
    model = LogisticRegression(C=1 / (l2 * len(x)), tol=1e-6, max_iter=20000)
    return model.fit(scaler.transform(x), y).score(scaler.transform(xt), yt)


def main() -> int:
    folder, evaluation = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    protocol, agree = evaluation["protocol"], True
    warnings.filterwarnings("error", message=".*failed to converge.*")
    for row in evaluation["rows"]:
        if not (folder / f"{row['features']}-train-features.npy").exists():
            continue
        data = load(folder, row["features"])
        theirs = {
            "knn": knn(*data, protocol["k"], protocol["temperature"]),
            "knn1": knn(*data, 1, protocol["temperature"]),
            "linear": linear(*data, row["l2"]),
        }
        for name, value in theirs.items():
            same = abs(value - row[name]) <= TOLERANCE
            agree &= same
            print(f"{row['features']:8} {name:7} macrl {100 * row[name]:6.2f}  scikit-learn {100 * value:6.2f}"
                  f"  {'agree' if same else 'DIFFER'}", flush=True)
    return 0 if agree else 1


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main())
