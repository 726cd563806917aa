"""Pairs temper with Transformers + PEFT: LoRA r16 on every projection of a decoder of a given shape.

    python benchmarks/decoder.py --temper target/release/temper --shape 1b --out DIR
    python benchmarks/decoder.py --device cpu --precision f32 --shape 135m --batch 4 --length 256 --peers plain compiled --out DIR

Speed depends on shapes, not on values: the weights are random, written here in bf16, and so is the text, whose tokens are
those of `examples/decoder`. Every row is full, and both see the same rows. Both compute in one precision (in bf16 with f32 sums), keep
the base in it and start from an adapter whose B is zero, so that the first loss must agree. Peers: plain, compiled, and with Liger's
kernels where `liger_kernel` can be imported. Memory on a GPU is what the driver counts for temper, context and all, and what PyTorch's
allocator held at most for the peers; on a processor both are the most that was resident. With `--rounds N` all take turns N times. Results:
OUT/SHAPE.json, a table on stdout, and of each round the ratio to the fastest peer.
"""

import argparse
import json
import os
import pathlib
import random
import resource
import shutil
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
TOKENIZER = HERE.parent / "examples" / "decoder"
# layers, hidden, inner, heads, key/value heads, vocabulary, tied, rows of a step, tokens of a row
SHAPES = {
    "tiny": (2, 64, 128, 4, 2, 4096, True, 2, 128),
    "135m": (30, 576, 1536, 9, 3, 49152, True, 8, 1024),
    "1b": (16, 2048, 8192, 32, 8, 128256, True, 4, 2048),
    "8b": (32, 4096, 14336, 32, 8, 128256, False, 2, 4096),
}
RECIPE = """\
[model]
base = {base}
frozen_dtype = "{frozen}"

[task]
kind = "causal-lm"

[data]
train = {rows}
format = "text"
eval_fraction = 0.0
max_length = {length}
packing = false

[adapter]
method = "lora"
rank = 16
alpha = 32
targets = "all-linear"

[train]
lr = 1e-4
max_steps = {steps}
global_batch = {batch}
micro_batch = {batch}
log_every = 1
gradient_checkpointing = "off"

[schedule]
kind = "constant"
warmup_steps = 0

[eval]
every = "never"

[device]
use = {device}
precision = "{precision}"

[run]
dir = {run}
tensorboard = false
"""


def write_model(shape, out):
    import torch
    from safetensors.torch import save_file

    layers, hidden, inner, heads, shared, vocabulary, tied, _, length = SHAPES[shape]
    out.mkdir(parents=True, exist_ok=True)
    for name in ["tokenizer.json", "tokenizer_config.json"]:
        shutil.copy(TOKENIZER / name, out / name)
    config = json.loads((TOKENIZER / "config.json").read_text()) | {
        "dtype": "bfloat16", "head_dim": hidden // heads, "hidden_size": hidden, "intermediate_size": inner,
        "max_position_embeddings": length, "num_attention_heads": heads, "num_hidden_layers": layers,
        "num_key_value_heads": shared, "tie_word_embeddings": tied, "vocab_size": vocabulary,
    }
    (out / "config.json").write_text(json.dumps(config, indent=1))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(1)
    draw = lambda *size: (torch.randn(*size, generator=generator, device=device) * 0.02).to(torch.bfloat16).cpu()  # noqa: E731
    ones = lambda: torch.ones(hidden, dtype=torch.bfloat16)  # noqa: E731
    tensors = {"model.embed_tokens.weight": draw(vocabulary, hidden), "model.norm.weight": ones()}
    if not tied:
        tensors["lm_head.weight"] = draw(vocabulary, hidden)
    head = hidden // heads
    for layer in range(layers):
        at = f"model.layers.{layer}."
        for name, size in [
            ("self_attn.q_proj", (hidden, hidden)), ("self_attn.k_proj", (shared * head, hidden)),
            ("self_attn.v_proj", (shared * head, hidden)), ("self_attn.o_proj", (hidden, hidden)),
            ("mlp.gate_proj", (inner, hidden)), ("mlp.up_proj", (inner, hidden)), ("mlp.down_proj", (hidden, inner)),
        ]:
            tensors[f"{at}{name}.weight"] = draw(*size)
        for name in ["input_layernorm", "post_attention_layernorm"]:
            tensors[f"{at}{name}.weight"] = ones()
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


def write_text(tokens, out):
    """One text of at least that many tokens."""
    letters = random.Random(1)
    word = lambda: "".join(letters.choices("abcdefghijklmnopqrstuvwxyz", k=letters.randint(2, 9)))  # noqa: E731
    out.write_text(json.dumps({"text": " ".join(word() for _ in range(tokens))}) + "\n")


def peer(args):
    import peft
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    if args.peer == "liger":
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama()
    *_, batch, length = SHAPES[args.shape]
    batch, length = args.batch or batch, args.length or length
    device = args.device if args.device == "cpu" else "cuda"
    dtype = torch.float32 if args.precision == "f32" else torch.bfloat16
    base = transformers.AutoModelForCausalLM.from_pretrained(args.out / "model", dtype=dtype, attn_implementation="sdpa").to(device)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
    model = peft.get_peft_model(base, config, autocast_adapter_dtype=False)
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(args.out / "model")
    text = json.loads((args.out / "text.jsonl").read_text())["text"]
    ids = tokenizer(text, add_special_tokens=False).input_ids
    order = [json.loads(line) for line in (args.out / "order.jsonl").read_text().splitlines()]
    trainable = [tensor for tensor in model.parameters() if tensor.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-4, weight_decay=0.01, fused=device == "cuda")
    step_of = torch.compile(model) if args.peer == "compiled" else model
    model.train()
    steps = []
    for rows in order[: args.steps]:
        began = time.perf_counter()
        batch_ids = torch.tensor([ids[row * length : (row + 1) * length] for row in rows]).to(device)
        loss = step_of(input_ids=batch_ids, labels=batch_ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        steps.append({"loss": loss.item(), "step_ms": (time.perf_counter() - began) * 1e3})
    memory = torch.cuda.max_memory_allocated() >> 20 if device == "cuda" else resident_mib(resource.getrusage(resource.RUSAGE_SELF))
    print(json.dumps({"steps": steps, "memory_mib": memory, "torch": torch.__version__}))


def write_recipe(args, batch, length):
    """The recipe, and the rows of each step that it stands for."""
    text = lambda value: json.dumps(str(value))  # noqa: E731
    recipe = args.out / "recipe.toml"
    recipe.write_text(RECIPE.format(base=text(args.out / "model"), rows=text(args.out / "text.jsonl"), length=length,
                                    steps=args.steps, batch=batch, device=text(args.device), run=text(args.out / "run"),
                                    precision=args.precision, frozen=args.frozen or args.precision))
    order = [args.temper, "plan", "--recipe", recipe, "--order"]
    (args.out / "order.jsonl").write_bytes(subprocess.run(order, check=True, capture_output=True).stdout)
    return recipe


def gpu_mib():
    """The memory in use of the first NVIDIA GPU."""
    query = ["nvidia-smi", "-i", "0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        return int(subprocess.run(query, check=True, capture_output=True, text=True).stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def resident_mib(usage):
    return usage.ru_maxrss >> 10


def temper(args, recipe):
    before, most = None if args.device == "cpu" else gpu_mib(), 0
    with (args.out / "temper.log").open("w") as log:
        command = [args.temper, "train", "--recipe", recipe, "--fresh"]
        run = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        ends = time.monotonic() + (args.limit or float("inf"))
        # Waited for by hand, for what it used is known of no other process.
        while not (waited := os.wait4(run.pid, os.WNOHANG))[0]:
            if time.monotonic() > ends:
                run.kill()
                run.wait()
                raise subprocess.TimeoutExpired(command, args.limit)
            most = most if before is None else max(most, gpu_mib() or 0)
            time.sleep(0.2)
    _, status, usage = waited
    run.returncode = os.waitstatus_to_exitcode(status)
    if run.returncode:
        raise subprocess.CalledProcessError(run.returncode, command, stderr=(args.out / "temper.log").read_text())
    events = [json.loads(line) for line in (args.out / "run" / "events.jsonl").read_text().splitlines()]
    steps = [event for event in events if event["event"] == "step"]
    memory = resident_mib(usage) if args.device == "cpu" else None if before is None else most - before
    return {"steps": steps, "memory_mib": memory}


def median(values):
    return sorted(values)[len(values) // 2]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--temper", type=pathlib.Path, default="target/release/temper")
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", choices=["f32", "bf16"], default="bf16")
    parser.add_argument("--frozen", help="temper's `frozen_dtype`, instead of the precision")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warm", type=int, default=8, help="steps at the start that are not counted (default %(default)s)")
    parser.add_argument("--batch", type=int, help="rows of a step, instead of the shape's")
    parser.add_argument("--length", type=int, help="tokens of a row, instead of the shape's")
    parser.add_argument("--peers", nargs="*", default=["plain", "compiled", "liger"])
    parser.add_argument("--rounds", type=int, default=1, help="how often all take their turns")
    parser.add_argument("--limit", type=float, help="seconds after which a program is given up")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out = args.out.resolve()
    if args.peer:
        return peer(args)
    *_, batch, length = SHAPES[args.shape]
    batch, length = args.batch or batch, args.length or length
    if not (args.out / "model" / "config.json").exists():
        write_model(args.shape, args.out / "model")
    write_text((args.steps + 1) * batch * length, args.out / "text.jsonl")
    args.temper = args.temper.resolve()
    recipe = write_recipe(args, batch, length)
    results = {"arguments": {key: str(value) for key, value in vars(args).items()}, "batch": batch, "length": length}
    runs = [("temper", lambda: temper(args, recipe))]
    for kind in args.peers:
        command = [sys.executable, __file__, *sys.argv[1:], "--peer", kind]

        def of_peer(command=command, kind=kind):
            done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=args.limit,
                                  env=os.environ | {"HF_HUB_OFFLINE": "1"})
            return json.loads(done.stdout.splitlines()[-1])

        runs.append((kind, of_peer))
    print("| who | tokens/s | memory, MiB | first loss | last loss |\n|---|---|---|---|---|")
    for name, run in runs * args.rounds:
        try:
            result = run()
        except (subprocess.SubprocessError, OSError, ValueError) as error:
            said = getattr(error, "stderr", None) or ""
            results.setdefault(name, []).append({"error": f"{error} {said[-2000:]}"})
            print(f"| {name} | {type(error).__name__} | | | |", flush=True)
            continue
        steps = result["steps"]
        result["tokens_per_s"] = batch * length / median([step["step_ms"] for step in steps[args.warm:]]) * 1e3
        results.setdefault(name, []).append(result)
        print(f"| {name} | {result['tokens_per_s']:.0f} | {result.get('memory_mib')} | {steps[0]['loss']:.5f} | "
              f"{steps[-1]['loss']:.5f} |", flush=True)
    (args.out / f"{args.shape}.json").write_text(json.dumps(results, indent=1))
    speeds = {name: [result.get("tokens_per_s", 0) for result in results[name]] for name, _ in runs}
    ratios = [own / max(peers) for own, *peers in zip(*speeds.values()) if any(peers)]
    print("temper by the fastest peer of the round:", ", ".join(f"{ratio:.2f}" for ratio in ratios))


if __name__ == "__main__":
    main()
