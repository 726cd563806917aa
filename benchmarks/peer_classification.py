"""The peer: fine-tuning of a sequence classifier with Transformers, by LoRA with PEFT or in full, one plain PyTorch loop.

It decides nothing: the rows of each step come from `--order` (a JSON array of row indices per optimizer step), the
first weights of adapter and classifier from `--init`: an adapter in PEFT's format, or for full fine-tuning a model. `--draw` writes it.
It prints JSON lines: `start`, a `step` for each optimizer step, `evaluated`, `end`.
"""

import argparse
import json
import math
import os
import pathlib
import time

STARTED = time.perf_counter()


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="directory of the base model")
    parser.add_argument("--draw", help="only draw an adapter and a classifier and save them here, in PEFT's format")
    parser.add_argument("--method", choices=["lora", "full"], default="lora")
    parser.add_argument("--data", help="directory with train.jsonl and dev.jsonl: {text, label}")
    parser.add_argument("--order", help="row indices of each step, a JSON array a line")
    parser.add_argument("--init", help="directory of what to start from")
    parser.add_argument("--steps", type=int, help="stop after so many steps; the schedule stays that of the whole order")
    parser.add_argument("--no-eval", action="store_true", help="measure speed only")
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32", help="bf16: autocast")
    parser.add_argument("--compile", action="store_true", help="torch.compile(dynamic=True)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=42, help="of dropout, and of the first weights without --init")
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--warmup-ratio", type=float, default=0.06)
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--max-grad-norm", type=float, default=1.0)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--alpha", type=float, default=16)
    parser.add_argument("--dropout", type=float, default=0.0, help="of the adapter; the base's own is in its config.json")
    return parser.parse_args()


ARGS = arguments()
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(ARGS.threads)
os.environ["TOKENIZERS_PARALLELISM"] = "true" if ARGS.threads > 1 else "false"
os.environ["HF_HUB_OFFLINE"] = "1"

import peft  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

transformers.logging.set_verbosity_error()


def say(event, **fields):
    print(json.dumps({"event": event, **fields}), flush=True)


def rows_of(name):
    lines = (pathlib.Path(ARGS.data) / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def encode(tokenizer, rows, labels):
    encoded = tokenizer([row["text"] for row in rows], truncation=True, max_length=ARGS.max_length)
    return [(ids, labels[str(row["label"])]) for ids, row in zip(encoded["input_ids"], rows, strict=True)]


def batch_of(rows, pad):
    """Right-padded to the longest row: input_ids and attention_mask [B, S], labels [B]."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in rows])
    mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in rows])
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([label for _, label in rows])}


def adapted(base):
    """The model with its adapter; every tensor of --init must land in it, which PEFT itself would only warn about."""
    if ARGS.init is None:
        config = peft.LoraConfig(
            task_type="SEQ_CLS", r=ARGS.rank, lora_alpha=ARGS.alpha, lora_dropout=ARGS.dropout,
            target_modules=["query", "value"],
        )
        return peft.get_peft_model(base, config)
    model = peft.PeftModel.from_pretrained(base, ARGS.init, is_trainable=True)
    given = load_file(pathlib.Path(ARGS.init) / "adapter_model.safetensors")
    loaded = peft.get_peft_model_state_dict(model)
    assert given.keys() == loaded.keys(), f"the adapters differ in {sorted(given.keys() ^ loaded.keys())}"
    assert all(torch.equal(given[name].float(), loaded[name]) for name in given), "PEFT changed a tensor of --init"
    return model


def parameter_groups(model):
    """Weight decay on matrices, none on biases and norms, as in Transformers' Trainer."""
    trainable = [(name, tensor) for name, tensor in model.named_parameters() if tensor.requires_grad]
    plain = [tensor for name, tensor in trainable if name.endswith("bias") or "LayerNorm" in name]
    decayed = [tensor for name, tensor in trainable if not (name.endswith("bias") or "LayerNorm" in name)]
    return [{"params": decayed, "weight_decay": ARGS.weight_decay}, {"params": plain, "weight_decay": 0.0}]


def evaluate(model, rows, pad, autocast):
    model.eval()
    right, loss = 0, 0.0
    with torch.inference_mode(), autocast():
        for start in range(0, len(rows), 64):
            batch = batch_of(rows[start : start + 64], pad)
            output = model(**batch)
            right += (output.logits.argmax(-1) == batch["labels"]).sum().item()
            loss += output.loss.item() * len(batch["labels"])
    return {"accuracy": right / len(rows), "loss": loss / len(rows), "rows": len(rows)}


def main():
    torch.set_num_threads(ARGS.threads)
    torch.manual_seed(ARGS.seed)
    if ARGS.draw:
        # Named as the rows name them: temper takes a head for the labels that it knows.
        base = transformers.AutoModelForSequenceClassification.from_pretrained(
            ARGS.model, id2label={0: "0", 1: "1"}, label2id={"0": 0, "1": 1}
        )
        (base if ARGS.method == "full" else adapted(base)).save_pretrained(ARGS.draw)
        transformers.AutoTokenizer.from_pretrained(ARGS.model).save_pretrained(ARGS.draw)
        return
    train, dev = rows_of("train.jsonl"), rows_of("dev.jsonl")
    labels = {name: index for index, name in enumerate(sorted({str(row["label"]) for row in train}))}
    order = [json.loads(line) for line in pathlib.Path(ARGS.order).read_text().splitlines()]
    tokenizer = transformers.AutoTokenizer.from_pretrained(ARGS.model)
    is_full = ARGS.method == "full"
    base = transformers.AutoModelForSequenceClassification.from_pretrained(
        ARGS.init if is_full else ARGS.model, num_labels=len(labels), dtype=torch.float32
    )
    model = base if is_full else adapted(base)
    trainable = [tensor for tensor in model.parameters() if tensor.requires_grad]
    train, dev = encode(tokenizer, train, labels), encode(tokenizer, dev, labels)
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=ARGS.lr)
    warmup = math.ceil(ARGS.warmup_ratio * len(order))
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, warmup, len(order))
    forward = torch.compile(model, dynamic=True) if ARGS.compile else model
    autocast = lambda: torch.autocast("cpu", torch.bfloat16, enabled=ARGS.precision == "bf16")  # noqa: E731
    pad = tokenizer.pad_token_id
    say("start", seconds=time.perf_counter() - STARTED, steps=len(order), trainable=sum(t.numel() for t in trainable),
        torch=torch.__version__, transformers=transformers.__version__, peft=peft.__version__, threads=ARGS.threads)

    model.train()
    for step, indices in enumerate(order[: ARGS.steps], 1):
        began = time.perf_counter()
        rows = [train[index] for index in indices]
        with autocast():
            loss = forward(**batch_of(rows, pad)).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trainable, ARGS.max_grad_norm or math.inf)
        lr = schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        value = loss.item()
        say("step", step=step, loss=value, lr=lr, grad_norm=norm.item(), tokens=sum(len(ids) for ids, _ in rows),
            step_ms=(time.perf_counter() - began) * 1e3, seconds=time.perf_counter() - STARTED)
    if not ARGS.no_eval:
        say("evaluated", scores=evaluate(model, dev, pad, autocast))
    say("end", seconds=time.perf_counter() - STARTED)


if __name__ == "__main__":
    main()
