"""What temper pushes, Transformers and PEFT load with the same probabilities; what Python pushes, temper trains on.

    cargo build --release -p temper -p temper-testhub --bins
    python -m pip install -r benchmarks/requirements.txt   # and pyarrow, if data sets in Parquet are to be checked too
    python tests/hub/peft_cross.py [target/release]

Against the test hub, once with Git LFS and once with Xet. Every stage is a process with an HF_HOME of its own, so that
models and rows go from one program to the other through the hub alone. Prints what passed, with the largest differences
that were measured, and exits with 1 at the first check that fails.
"""

import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import warnings

ROOT = pathlib.Path(__file__).resolve().parents[2]
BASE, DATA, PARQUET = "me/encoder", "me/reviews", "me/reviews-parquet"
# What temper pushes, and the adapter that Python makes.
ADAPTER, MERGED, WENT_ON, MADE = "me/adapter", "me/merged", "me/went-on", "me/made-by-peft"
# The largest difference of a probability between the two programs.
TOLERANCE = 1e-5
# What must matter (the adapter, the revision) moves a probability by more than this, or the comparison shows nothing.
MATTERS = 1e-3
# Two plain ones first; then without a word, in other scripts, longer than any row may be.
TEXTS = [
    "It broke on the first day.",
    "Not once did I regret it.",
    "A stroller whose brake slips on a slope is not a stroller.",
    "!",
    "Ünïcödé, naïve café — 漢字 🙂 \u200b\ttab",
    "never again " * 200,
]
# Of the adapter that Python makes, where they are not 4.
RANKS = {"layer.0.attention.self.query": 2}
GO_ON = f"""\
[model]
base = "{BASE}"

[task]
kind = "sequence-classification"

[data]
train = "hf://datasets/DATA"
eval = {{ path = "hf://datasets/DATA", split = "validation" }}
text = "sentence"
max_length = 64  # what the base's tokenizer says, and Python therefore cuts at

[adapter]
from = "{MADE}"

[train]
global_batch = 8
"""


def main():
    build = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "target/release").resolve()
    for program in ("testhub", "train", "temper"):
        if not (build / program).exists():
            sys.exit(f"{build / program} does not exist: see the head of this file")
    for mode in ("lfs", "xet"):
        with tempfile.TemporaryDirectory() as place:
            flags = ["--xet"] if mode == "xet" else []
            server = subprocess.Popen([build / "testhub", *flags], stdout=subprocess.PIPE, text=True)
            try:
                started = json.loads(server.stdout.readline())
                print(f"{mode}:", flush=True)
                for stage in STAGES:
                    home = pathlib.Path(place) / f"home-{stage.__name__}"
                    child = subprocess.run([sys.executable, __file__, "--stage", stage.__name__, build, place],
                                           env=environment(started, home, mode), timeout=900)
                    if child.returncode:
                        sys.exit(f"failed: {mode}, {stage.__name__}")
                history(started, pathlib.Path(place))
            finally:
                server.kill()
                server.wait()


def environment(started, home, mode):
    keep = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    return keep | {
        "HF_ENDPOINT": started["endpoint"], "HF_TOKEN": started["tokens"]["me"], "HF_HOME": str(home),
        "HF_XET_CACHE": f"{home}/xet", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
        "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore::FutureWarning",
    } | ({} if mode == "xet" else {"HF_HUB_DISABLE_XET": "1"})


# The stages, in order.


def python_pushes(place, _):
    """The base and the rows, as Python's client puts them on the hub."""
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(BASE)
    api.upload_folder(repo_id=BASE, folder_path=ROOT / "examples/encoder")
    splits = {"train": rows("train"), "validation": rows("eval")}
    lines = {split: "\n".join(map(json.dumps, content)).encode() for split, content in splits.items()}
    push_data(api, DATA, {f"data/{split}.jsonl": content for split, content in lines.items()})
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        passed("Python pushed the base and the rows; pyarrow is not here, so Parquet is not checked")
        return
    files = {}
    for split, content in splits.items():
        sink = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(content), sink, row_group_size=100)
        files[f"data/{split}-00000-of-00001.parquet"] = sink.getvalue().to_pybytes()
    push_data(api, PARQUET, files)
    (place / "parquet").touch()
    passed("Python pushed the base and the rows, as JSON lines and as Parquet")


def temper_trains(place, temper):
    """The recipe, twice: the adapter from JSON lines, the merged weights from Parquet if there is some."""
    recipe, short = ROOT / "recipes/sentiment-hub.toml", ["train.max_steps=40", "eval.every=40", "train.lr=3e-3"]
    for run, to, data, more in (
        ("adapter", ADAPTER, DATA, []), ("merged", MERGED, rows_of(place), ["export.merge=true", "export.push=merged"]),
    ):
        eval_rows = f'data.eval={{ path = "hf://datasets/{data}", split = "validation" }}'
        names = [f"model.base={BASE}", f"data.train=hf://datasets/{data}", eval_rows, f"export.push_to={to}"]
        temper.train(recipe, place / run, *short, *names, "train.global_batch=16", *more)
    one, other = ((place / run / "export/adapter_model.safetensors").read_bytes() for run in ("adapter", "merged"))
    assert one == other, "the same rows in another format make another adapter"
    # What temper's own outputs are, before anything on the hub moves.
    (place / "adapter.json").write_text(json.dumps(temper.predict(place / "adapter")))
    passed(f"temper pulled, trained and pushed {ADAPTER} and {MERGED}")
    passed(f"{DATA} and {rows_of(place)} make the same adapter, byte for byte")


def python_loads(place, temper):
    """Adapter, merged weights, tokenizer and card, from the hub; then again after the base has moved on."""
    from huggingface_hub import HfApi, ModelCard, hf_hub_download, snapshot_download
    from peft import PeftConfig, PeftModel
    from safetensors.torch import load, save
    from transformers import AutoModelForSequenceClassification

    ours = json.loads((place / "adapter.json").read_text())
    config = PeftConfig.from_pretrained(ADAPTER)
    api = HfApi()
    commit = api.model_info(BASE).sha
    assert (config.base_model_name_or_path, config.revision) == (BASE, commit), config

    # The card, and what it tells people to run.
    for name, relation in ((ADAPTER, "adapter"), (MERGED, "finetune")):
        card = ModelCard.load(name)
        assert (card.data.base_model, card.data.license) == (BASE, "apache-2.0"), card.data
        assert card.data.to_dict()["base_model_relation"] == relation, card.data
        card_metrics = {result.metric_type: result.metric_value for result in card.data.eval_results}
        assert {"accuracy", "loss"} <= card_metrics.keys(), card_metrics
        assert commit in card.content, f"the card of {name} does not say which commit of the base"
        assert api.model_info(name).private, f"{name} is public, though nobody said so"
        [code] = re.findall(r"```python\n(.*?)```", card.content, re.DOTALL)
        for row in ours[:2]:
            said = code.replace('here = "."', f"here = {name!r}").replace('"Your text here"', repr(row["text"]))
            names = {}
            exec(said.replace("print(", "said = ("), names)
            assert names["said"] == row["label"], f"the code of {name}'s card says {names['said']} of {row}"
    passed("the cards load with eval_results, base_model and license, and their Python code says what temper says")

    # The base moves on: from here on, `main` is not what the adapter was trained on.
    tensors = load(pathlib.Path(hf_hub_download(BASE, "model.safetensors")).read_bytes())
    words = next(name for name in tensors if name.endswith("word_embeddings.weight"))
    tensors[words] = tensors[words].flip(1).contiguous()
    api.upload_file(path_or_fileobj=save(tensors, {"format": "pt"}), path_in_repo="model.safetensors", repo_id=BASE)

    adapted, tokenizer = load_adapter(ADAPTER)
    theirs = probabilities(adapted, tokenizer, TEXTS)
    difference = compare(theirs, ours, "the adapter")
    moved = AutoModelForSequenceClassification.from_pretrained(BASE, dtype="float32")
    moved = probabilities(PeftModel.from_pretrained(moved, ADAPTER).eval(), tokenizer, TEXTS)
    assert largest(moved, theirs) > MATTERS, "the revision of the base does not matter, so nothing was shown"
    base = AutoModelForSequenceClassification.from_pretrained(BASE, revision=config.revision, dtype="float32")
    by_hand = probabilities(PeftModel.from_pretrained(base, ADAPTER).eval(), tokenizer, TEXTS)
    compare(by_hand, ours, "the adapter on its base")
    passed(f"{ADAPTER} loads on the base at its revision, largest difference of a probability {difference:.1e}")

    local = snapshot_download(ADAPTER)
    difference = compare(scores(temper.predict(local)), ours, "temper on the snapshot of the adapter")
    passed(f"temper predicts from Python's snapshot of {ADAPTER}, though the base's main has moved: {difference:.1e}")

    # What the card says was measured.
    validation = rows("eval")
    measured = probabilities(adapted, tokenizer, [row["sentence"] for row in validation])
    right = sum((found[1] > found[0]) == row["label"] for found, row in zip(measured, validation))
    accuracy = right / len(validation)
    assert abs(accuracy - card_metrics["accuracy"]) < 1e-9, (accuracy, card_metrics)
    passed(f"the card's accuracy is what Python measures on {len(validation)} rows: {accuracy:.4f}")

    # A tensor less, and PEFT says so: the check above can fail.
    broken = place / "broken"
    shutil.copytree(local, broken)
    tensors = load((broken / "adapter_model.safetensors").read_bytes())
    tensors.pop(next(name for name in tensors if "lora_B" in name))
    (broken / "adapter_model.safetensors").write_bytes(save(tensors, {"format": "pt"}))
    try:
        load_adapter(broken)
    except UserWarning:
        passed("an adapter that lacks a tensor is found out")
    else:
        raise AssertionError("PEFT did not warn of a missing tensor, so that the check for it shows nothing")

    merged, report = AutoModelForSequenceClassification.from_pretrained(MERGED, output_loading_info=True)
    assert not any(report.values()), report
    difference = compare(probabilities(merged.eval(), tokenizer_of(MERGED), TEXTS), ours, "the merged weights")
    passed(f"{MERGED} loads with nothing missing or left over, largest difference of a probability {difference:.1e}")
    difference = compare(scores(temper.predict(snapshot_download(MERGED))), ours, "temper on the merged weights")
    passed(f"temper predicts from Python's snapshot of {MERGED}: {difference:.1e}")

    # The tokenizer of the base, but for the length that was trained on.
    first, plan = tokenizer_of(BASE), json.loads((place / "adapter/plan.json").read_text())
    texts = TEXTS + [row["sentence"] for row in validation]
    length = plan["data"]["max_length"]
    expected = first(texts, truncation=True, max_length=length)["input_ids"]
    for name in (ADAPTER, MERGED):
        tokenizer = tokenizer_of(name)
        assert tokenizer.model_max_length == length, (name, tokenizer.model_max_length)
        assert tokenizer(texts, truncation=True)["input_ids"] == expected, name
    assert max(map(len, expected)) == length, "no text was long enough to be cut"
    passed(f"AutoTokenizer gives the same ids from {ADAPTER} and {MERGED} as from the base, on {len(texts)} texts")


def peft_pushes(place, temper):
    """A LoRA adapter that Python made, with a B that is not zero."""
    import torch
    from huggingface_hub import HfApi, snapshot_download
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(7)
    base = AutoModelForSequenceClassification.from_pretrained(BASE, dtype="float32")
    # Neither head nor pooler is in the base: both have to be in the adapter.
    config = LoraConfig(
        task_type="SEQ_CLS", r=4, lora_alpha=8, target_modules=["query", "key", "value"],
        rank_pattern=RANKS, modules_to_save=["classifier", "pooler"],
    )
    model = get_peft_model(base, config).eval()
    tokenizer = tokenizer_of(BASE)
    fresh = probabilities(model, tokenizer, TEXTS)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.3)
            if "classifier.modules_to_save" in name:
                value.normal_(std=0.3)
    theirs = probabilities(model, tokenizer, TEXTS)
    assert largest(theirs, fresh) > MATTERS, "the adapter changes nothing, so nothing is shown"
    HfApi().create_repo(MADE)
    model.push_to_hub(MADE)
    (place / "made.json").write_text(json.dumps(theirs))

    # PEFT pushes neither configuration nor tokenizer: temper predicts where they lie beside the adapter.
    local = pathlib.Path(snapshot_download(MADE, local_dir=place / "made"))
    base.config.architectures = ["BertForSequenceClassification"]
    base.config.save_pretrained(local)
    tokenizer.save_pretrained(local)
    difference = compare(scores(temper.predict(local)), theirs, "temper on PEFT's adapter")
    passed(f"Python pushed {MADE}; temper predicts from it, largest difference of a probability {difference:.1e}")


def temper_goes_on(place, temper):
    """Training goes on from Python's adapter on the hub: from where it is, and further."""
    theirs = json.loads((place / "made.json").read_text())
    recipe = place / "go-on.toml"
    recipe.write_text(GO_ON.replace("DATA", rows_of(place)))
    temper.train(recipe, place / "still", "train.max_steps=1", "train.lr=1e-12")
    difference = compare(scores(temper.predict(place / "still")), theirs, "where temper starts")
    passed(f"temper starts from {MADE} where PEFT left it, largest difference of a probability {difference:.1e}")
    temper.train(recipe, place / "went-on", "train.max_steps=40", "train.lr=1e-3", f"export.push_to={WENT_ON}")
    ours = temper.predict(place / "went-on")
    assert largest(scores(ours), theirs) > MATTERS, "nothing was learned"
    (place / "went-on.json").write_text(json.dumps(ours))
    config = json.loads((place / "went-on/export/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (4, 8, RANKS), config
    assert sorted(config["target_modules"]) == ["key", "query", "value"], config
    passed(f"temper trained on and pushed {WENT_ON}")


def python_loads_again(place, _):
    """What went from Python to temper comes back."""
    model, tokenizer = load_adapter(WENT_ON)
    ours = json.loads((place / "went-on.json").read_text())
    difference = compare(probabilities(model, tokenizer, TEXTS), ours, WENT_ON)
    passed(f"{WENT_ON} loads, largest difference of a probability {difference:.1e}")


STAGES = [python_pushes, temper_trains, python_loads, peft_pushes, temper_goes_on, python_loads_again]


def history(started, place):
    """Git's own view of what temper pushed: one commit a push, and nothing else."""
    for name, run in ((ADAPTER, "adapter/export"), (MERGED, "merged/merged"), (WENT_ON, "went-on/export")):
        clone = place / "clone" / name
        git("clone", "--quiet", f"{started['repositories']}/models/{name}.git", clone)
        titles = git("-C", clone, "log", "--format=%s").splitlines()
        assert titles == ["End of training", "initial commit"], titles
        for path in (place / run).glob("*.safetensors"):
            pointer = (clone / path.name).read_text()
            assert hashlib.sha256(path.read_bytes()).hexdigest() in pointer, f"{name}: {path.name} is {pointer}"
        for path in clone.glob("*"):
            local = path.is_file() and str(place).encode() in path.read_bytes()
            assert not local, f"{name}: {path.name} names a local path"
    passed("git clone shows one commit a push, pointers to the weights, and no local path")


# What the stages share.


class Temper:
    """The program, as a user runs it."""

    def __init__(self, build, place):
        self.build, self.place = build, place

    def train(self, recipe, run, *overrides):
        settings = [word for value in (*overrides, f"run.dir={run}") for word in ("--set", value)]
        self.run("train", "--recipe", recipe, *settings)

    def predict(self, model):
        texts = self.place / "texts.jsonl"
        texts.write_text("\n".join(json.dumps({"sentence": text}) for text in TEXTS))
        printed = self.run("temper", "predict", model, "--file", texts, "--text", "sentence")
        return [json.loads(line) for line in printed.splitlines()]

    def run(self, program, *arguments):
        done = subprocess.run([self.build / program, *arguments], capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{program} {' '.join(map(str, arguments))}: {done.returncode}\n{done.stderr}"
        return done.stdout


def rows(split):
    lines = (ROOT / f"examples/reviews/{split}.jsonl").read_text().splitlines()
    read = map(json.loads, lines)
    return [{"sentence": row["text"], "label": int(row["label"] == "positive")} for row in read]


def rows_of(place):
    return PARQUET if (place / "parquet").exists() else DATA


def push_data(api, name, files):
    from huggingface_hub import CommitOperationAdd

    api.create_repo(name, repo_type="dataset")
    files = {"README.md": b"---\nlicense: cc0-1.0\n---\n"} | files
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    api.create_commit(name, operations, repo_type="dataset", commit_message="Add rows")


def load_adapter(name):
    """The adapter on the base that it names, and its tokenizer. Keys that PEFT misses are errors."""
    from peft import AutoPeftModelForSequenceClassification

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys.*")
        model = AutoPeftModelForSequenceClassification.from_pretrained(name, dtype="float32")
    return model.eval(), tokenizer_of(name)


def tokenizer_of(name):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name)


def probabilities(model, tokenizer, texts):
    """A row for each text, alone: the carried tokenizer has no token to pad with."""
    import torch

    with torch.no_grad():
        logits = [model(**tokenizer(text, truncation=True, return_tensors="pt")).logits[0] for text in texts]
    return [row.double().softmax(0).tolist() for row in logits]


def scores(predicted):
    return [list(row["scores"].values()) for row in predicted]


def largest(one, other):
    assert [len(row) for row in one] == [len(row) for row in other], "other rows or other labels"
    return max(abs(a - b) for x, y in zip(one, other) for a, b in zip(x, y))


def compare(found, expected, what):
    """The largest difference of a probability, if it is small and the probabilities are not all alike."""
    expected = scores(expected) if isinstance(expected[0], dict) else expected
    first = [row[0] for row in expected]
    assert max(first) - min(first) > MATTERS, f"{what}: every text has the same probability"
    difference = largest(found, expected)
    assert difference <= TOLERANCE, f"{what}: a probability differs by {difference:.1e}"
    return difference


def git(*arguments):
    return subprocess.run(["git", *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


def passed(what):
    print(f"  {what}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--stage"]:
        _, _, chosen, build, place = sys.argv
        [stage] = [stage for stage in STAGES if stage.__name__ == chosen]
        stage(pathlib.Path(place), Temper(pathlib.Path(build), pathlib.Path(place)))
    else:
        main()
