"""Checks with huggingface_hub that the golden cards say what was meant: `python golden/check.py`.

No network: the card is parsed with ModelCard.load, its results are compared as EvalResult objects, and the data is
written and parsed once more.
"""

import math
import pathlib

from huggingface_hub import DatasetCard, EvalResult, ModelCard, ModelCardData

HERE = pathlib.Path(__file__).parent
HOSTILE = ["yes", "no", "null", "1.0", "a: b", "it's \"quoted\"", "---", "x\n---\ny", "naïve 日本 🙂", "# no", "~", "c\\d\u0085e"]
BASE = "sentence-transformers/all-MiniLM-L6-v2"
TASK = {"task_type": "text-classification"}
accuracy = EvalResult(**TASK, dataset_type="reviews", dataset_name="Reviews", dataset_split="eval",
                      metric_type="accuracy", metric_name="Accuracy", metric_value=0.912345678)
loss = EvalResult(**TASK, dataset_type="null", dataset_name="n: é\n---", dataset_split="off",
                  metric_type="loss", metric_name="1.0", metric_value=1e-7)


def check(name: str, expected: dict, results: list[EvalResult]) -> None:
    card = ModelCard.load(HERE / name)
    data = card.data.to_dict()
    index = data.pop("model-index")
    assert data == expected, (name, data, expected)
    assert card.data.model_name == index[0]["name"]
    assert card.data.eval_results == results, (name, card.data.eval_results)
    assert all(isinstance(r.metric_value, float) and math.isfinite(r.metric_value) for r in card.data.eval_results)
    if "\x85" not in "".join(expected["tags"]):  # which PyYAML itself writes raw and reads back as a blank
        again = ModelCard(f"---\n{card.data.to_yaml()}\n---\n{card.text}")
        assert again.data.to_dict() == card.data.to_dict()
    assert isinstance(card.data, ModelCardData)
    assert card.text.lstrip().startswith("# "), card.text[:80]
    assert "/home/me" not in card.content


COMMON = {
    "license": "apache-2.0", "base_model": BASE, "base_model_relation": "adapter",
    "pipeline_tag": "text-classification", "library_name": "peft",
}
ADAPTER = f"base_model:adapter:{BASE}"
check("reviews.md", {**COMMON, "language": ["en"], "tags": ["temper", "burn", "lora", ADAPTER], "metrics": ["accuracy"]},
      [accuracy])
check("hostile.md", {**COMMON, "language": ["no", "en"], "tags": ["temper", "burn", *HOSTILE, ADAPTER],
                     "metrics": ["accuracy", "loss"]}, [accuracy, loss])
assert ModelCard.load(HERE / "hostile.md").data.model_name == "yes: a \"model\"\n---\nno"
check("complete.md", {**COMMON, "license": "other", "license_name": "acme-community", "language": ["en"],
                      "datasets": ["lab/reviews"], "tags": ["temper", "burn", "lora", ADAPTER], "metrics": ["accuracy"]},
      [accuracy])
data = DatasetCard.load(HERE / "data.md").data.to_dict()
assert data["configs"] == [{"config_name": "default", "data_files": [
    {"split": "test", "path": "data/test-*.parquet"}, {"split": "train", "path": "data/train-*.parquet"}]}], data
assert data["dataset_info"]["splits"][1] == {"name": "train", "num_examples": 1310, "num_bytes": 90000}, data
assert data["dataset_info"]["features"] == [{"name": "text", "dtype": "string"}, {"name": "label", "dtype": "int64"}], data
assert (data["license"], data["size_categories"], data["tags"]) == ("cc-by-4.0", ["1K<n<10K"], ["temper"]), data
print("the cards say what was meant")
