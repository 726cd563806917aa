"""How far words alone get: linear models on the reviews, for comparison with a fine-tuned encoder.

    python baseline.py        # needs scikit-learn (measured with 1.9.1); a minute or two

Each model's C is chosen by five-fold cross-validation on the training rows alone; the evaluation rows are used once.
"""

import json
import pathlib

from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline

HERE = pathlib.Path(__file__).resolve().parent
KINDS = ["plain", "negation", "contrast", "mixed", "irony"]
TOKEN = r"(?u)\b\w+(?:'\w+)?\b"  # keeps "didn't" and "I" whole, which the default does not


def read(name):
    return [json.loads(line) for line in (HERE / name).read_text(encoding="utf-8").splitlines()]


def accuracy(model, rows):
    return model.score([row["text"] for row in rows], [row["label"] for row in rows])


def main():
    train, held_out = read("train.jsonl"), read("eval.jsonl")
    models = {
        "TF-IDF, 1-2 grams": TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=TOKEN),
        "bag of words": CountVectorizer(token_pattern=TOKEN),
    }
    print("| model | C | 5-fold on train | eval | " + " | ".join(KINDS) + " |")
    print("|---" * (4 + len(KINDS)) + "|")
    for name, features in models.items():
        search = GridSearchCV(
            make_pipeline(features, LogisticRegression(max_iter=2000)),
            {"logisticregression__C": [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100]},
            cv=StratifiedKFold(5, shuffle=True, random_state=7),
        )
        search.fit([row["text"] for row in train], [row["label"] for row in train])
        c = search.best_params_["logisticregression__C"]
        kinds = [accuracy(search, [row for row in held_out if row["kind"] == kind]) for kind in KINDS]
        figures = [search.best_score_, accuracy(search, held_out), *kinds]
        print(f"| {name} | {c} | " + " | ".join(f"{figure:.1%}" for figure in figures) + " |")


if __name__ == "__main__":
    main()
