"""Compares stored scores with scipy's Pearson correlation of the stored predictions.

    tensorbench run suites/regression.yaml
    python -m tools.benchmarks.regression [STORE]

Prints Pearson's and Spearman's correlations and the root mean squared error of each method, as mean and
standard deviation over seeds. Fails if a stored score differs from Pearson's correlation.
"""

from __future__ import annotations

import sys

import pandas as pd
from scipy.stats import pearsonr, spearmanr

import tensorbench


def main() -> None:
    store = sys.argv[1:2] or ["sqlite:///mlflow.db"]
    results = tensorbench.load_results("regression", store=store[0])
    stored = results.seeds.set_index("trial_id")["score"]
    rows = []
    for (method, id_), predictions in results.predictions.groupby(["method", "trial_id"]):
        pearson = pearsonr(predictions["label"], predictions["prediction"]).statistic
        if abs(pearson - stored[id_]) > 1e-6:
            raise SystemExit(f"{method}: the store has {stored[id_]}, scipy {pearson}")
        spearman = spearmanr(predictions["label"], predictions["prediction"]).statistic
        rmse = ((predictions["label"] - predictions["prediction"]) ** 2).mean() ** 0.5
        rows.append((method, pearson, spearman, rmse))
    frame = pd.DataFrame(rows, columns=["method", "Pearson", "Spearman", "RMSE"])
    print(frame.groupby("method").agg(["mean", "std"]).round(4).to_string())


if __name__ == "__main__":
    main()
