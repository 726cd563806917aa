"""The peer: LoRA instruction tuning of a causal language model with Transformers and PEFT, one plain PyTorch loop.

It decides nothing: the rows of each step come from `--order` (a JSON array of row indices per optimizer step), the first
weights of the adapter from `--init` (an adapter in PEFT's format). Which tokens are learned it finds out by itself: those
after the rendered prompt, up to the token that ends the turn. It prints JSON lines: `start`, a `step` for each optimizer
step, `answer` for each of `--ask`, `end`.
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
    parser.add_argument("--draw", help="only draw an adapter and save it here, in PEFT's format")
    parser.add_argument("--rows", help="rows of {messages: [user, assistant]}, a JSON object a line")
    parser.add_argument("--order", help="row indices of each step, a JSON array a line")
    parser.add_argument("--init", help="directory of the adapter to start from")
    parser.add_argument("--adapter", help="train nothing: load this adapter and answer --ask")
    parser.add_argument("--ask", nargs="*", default=[], help="texts to go on with, 100 tokens, greedily")
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32", help="bf16: autocast")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--warmup-ratio", type=float, default=0.06)
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--alpha", type=float, default=32)
    return parser.parse_args()


ARGS = arguments()
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(ARGS.threads)
os.environ["HF_HUB_OFFLINE"] = "1"

import peft  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

transformers.logging.set_verbosity_error()
IGNORED = -100


def say(event, **fields):
    print(json.dumps({"event": event, **fields}), flush=True)


def encode(tokenizer, messages):
    """Ids of a conversation, and its labels: the answer and the token that ends it."""
    assert sum(message["role"] == "assistant" for message in messages) == 1, "only one answer is learned here, temper learns all"
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    assert text.startswith(prompt), "the template writes the prompt otherwise when there is an answer"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    start = len(tokenizer(prompt, add_special_tokens=False).input_ids)
    end = len(ids) - ids[::-1].index(tokenizer.eos_token_id)
    return ids, [IGNORED] * start + ids[start:end] + [IGNORED] * (len(ids) - end)


def batch_of(rows, pad):
    width = max(len(ids) for ids, _ in rows)
    fill = lambda values, filler: torch.tensor([row + [filler] * (width - len(row)) for row in values])  # noqa: E731
    ids, labels = zip(*rows)
    return {"input_ids": fill(ids, pad), "labels": fill(labels, IGNORED),
            "attention_mask": fill([[1] * len(row) for row in ids], 0)}


def answer(model, tokenizer):
    model.eval()
    for text in ARGS.ask:
        ids = tokenizer(text, return_tensors="pt")
        with torch.inference_mode():
            out = model.generate(**ids, max_new_tokens=100, do_sample=False)
        say("answer", prompt=text, text=tokenizer.decode(out[0, ids.input_ids.shape[1]:], skip_special_tokens=True))


def main():
    torch.set_num_threads(ARGS.threads)
    torch.manual_seed(ARGS.seed)
    base = transformers.AutoModelForCausalLM.from_pretrained(ARGS.model, dtype=torch.float32)
    if ARGS.draw:
        config = peft.LoraConfig(task_type="CAUSAL_LM", r=ARGS.rank, lora_alpha=ARGS.alpha, target_modules="all-linear")
        peft.get_peft_model(base, config).save_pretrained(ARGS.draw)
        return
    # The class that reads tokenizer.json as it is: GPT2Tokenizer of Transformers 5 would rebuild its pre-tokenizer.
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(ARGS.model)
    if ARGS.adapter:
        answer(peft.PeftModel.from_pretrained(base, ARGS.adapter), tokenizer)
        return
    rows = [json.loads(line) for line in pathlib.Path(ARGS.rows).read_text(encoding="utf-8").splitlines()]
    rows = [encode(tokenizer, row["messages"]) for row in rows]
    order = [json.loads(line) for line in pathlib.Path(ARGS.order).read_text().splitlines()]
    model = peft.PeftModel.from_pretrained(base, ARGS.init, is_trainable=True)
    trainable = [tensor for tensor in model.parameters() if tensor.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=ARGS.lr, weight_decay=ARGS.weight_decay)
    schedule = transformers.get_linear_schedule_with_warmup(
        optimizer, math.ceil(ARGS.warmup_ratio * len(order)), len(order)
    )
    say("start", seconds=time.perf_counter() - STARTED, steps=len(order), trainable=sum(t.numel() for t in trainable),
        torch=torch.__version__, transformers=transformers.__version__, peft=peft.__version__, threads=ARGS.threads)
    model.train()
    for step, indices in enumerate(order, 1):
        began = time.perf_counter()
        batch = [rows[index] for index in indices]
        with torch.autocast("cpu", torch.bfloat16, enabled=ARGS.precision == "bf16"):
            loss = model(**batch_of(batch, tokenizer.pad_token_id), use_cache=False).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        say("step", step=step, loss=loss.item(), grad_norm=norm.item(), tokens=sum(len(ids) for ids, _ in batch),
            step_ms=(time.perf_counter() - began) * 1e3)
    answer(model, tokenizer)
    say("end", seconds=time.perf_counter() - STARTED)


if __name__ == "__main__":
    main()
