#!/usr/bin/env bash
# Checks a build of temper on a machine's GPUs against its processor and writes one JSON to standard output.
#
#     cargo build --release --features cuda,vulkan
#     bash benchmarks/gpu.sh target/release/temper cuda vulkan > gpu.json
#
# For each device and both embedded recipes: 20 steps in f32, bf16 and f16 (the largest relative difference of a loss from the
# processor's f32 losses, tokens/s, memory), and 20 steps of which a kill -9 after the checkpoint of step 10 makes two runs. With TESTS=DIR, a directory of test
# executables (`cargo test --release --workspace --features … --lib --test parity --no-run` names them), these run on each
# device too; they look for fixtures where they were built.
set -euo pipefail
temper=$(realpath "${1:?usage: gpu.sh TEMPER [DEVICE ...]}")
shift
[ $# -gt 0 ] || set -- cuda vulkan
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Trains NAME: recipe, device, precision, steps.
run() {
    "$temper" train --recipe "recipes/$2.toml" --set "run.dir=$work/$1" --set "device.use=$3" --set "device.precision=$4" \
        --set "train.max_steps=$5" --set train.log_every=1 --set train.save_every=10 --set eval.every=never \
        --set schedule.kind=constant > "$work/$1.log" 2>&1
}

# The numbers under KEY in the events of NAME, one for each step; of steps that were done twice the last.
values() {
    { grep '"event":"step"' "$work/$1/events.jsonl" || true; } |
        sed -n "s/.*\"step\":\([0-9]*\).*\"$2\":\([-+0-9.e]*\).*/\1 \2/p" |
        awk '{ x[$1] = $2; if ($1 > n) n = $1 } END { for (i = 1; i <= n; i++) if (i in x) print x[i] }'
}

# The largest relative difference between the losses of two runs, or null if they are not as many.
difference() {
    paste <(values "$1" loss) <(values "$2" loss) | awk '
        NF != 2 { short = 1 }
        { d = $1 / $2 - 1; d = d < 0 ? -d : d; if (d > most) most = d }
        END { if (short || NR == 0) print "null"; else printf "%.3e\n", most }'
}

# The middle of the numbers on standard input.
median() { sort -g | awk '{ x[NR] = $1 } END { print NR ? x[int((NR + 1) / 2)] : "null" }'; }

# The most memory of the first NVIDIA GPU, in MiB, while the process PID runs; null where nobody says.
watch_gpu() {
    local most=null used
    while kill -0 "$1" 2> /dev/null; do
        used=$(nvidia-smi -i 0 --query-gpu=memory.used --format=csv,noheader,nounits 2> /dev/null || true)
        if [ -n "$used" ] && { [ "$most" = null ] || [ "$used" -gt "$most" ]; }; then most=$used; fi
        sleep 0.5
    done
    echo "$most"
}

quoted() { sed 's/\\/\\\\/g; s/"/\\"/g' | tr -s '\n\t' '  ' | sed 's/ *$//; s/.*/"&"/'; }

# One recipe on one device in one precision, as JSON.
precision() {
    local recipe=$1 device=$2 precision=$3 name="$1-$2-$3" status=0 memory
    run "$name" "$recipe" "$device" "$precision" 20 &
    memory=$(watch_gpu $!)
    wait $! || status=$?
    if [ "$status" != 0 ]; then
        printf '{"exit": %s, "error": %s}' "$status" "$(tail -n 5 "$work/$name.log" | quoted)"
        return
    fi
    printf '{"loss_difference": %s, "tokens_per_second": %s, "gpu_mib": %s, "skipped": %s}' \
        "$(difference "$name" "$recipe-cpu-f32")" "$(values "$name" tokens_per_second | tail -n 10 | median)" "$memory" \
        "$(values "$name" skipped | tail -n 1 | grep . || echo null)"
}

# Whether a run that was killed after the checkpoint of step 10 goes on to the same losses, as JSON.
resumed() {
    local name="$1-$2-resumed" first
    run "$name" "$1" "$2" f32 20 &
    first=$!
    while kill -0 $first 2> /dev/null && [ ! -e "$work/$name/checkpoints/step-000010" ]; do sleep 0.02; done
    pkill -9 -P $first || true
    wait $first 2> /dev/null || true
    if run "$name" "$1" "$2" f32 20; then
        printf '{"loss_difference": %s, "resumed": %s}' "$(difference "$name" "$1-$2-f32")" \
            "$(grep -c '"event":"resumed"' "$work/$name/events.jsonl" || true)"
    else
        printf '{"error": %s}' "$(tail -n 5 "$work/$name.log" | quoted)"
    fi
}

for recipe in sentiment chat; do run "$recipe-cpu-f32" "$recipe" cpu f32 20; done
printf '{\n"version": %s,\n"commit": %s,\n"driver": %s,\n"devices": %s,\n"results": {' \
    "$("$temper" --version | quoted)" "$(git rev-parse HEAD 2> /dev/null | quoted | grep . || echo null)" \
    "$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2> /dev/null | quoted | grep . || echo null)" \
    "$("$temper" devices --json)"
separator=
for device in "$@"; do
    printf '%s\n"%s": {' "$separator" "$device"
    separator=,
    for recipe in sentiment chat; do
        printf '\n  "%s": {' "$recipe"
        for precision in f32 bf16 f16; do
            printf '\n    "%s": %s,' "$precision" "$(precision "$recipe" "$device" "$precision")"
        done
        printf '\n    "resumed": %s\n  },' "$(resumed "$recipe" "$device")"
    done
    tests=
    for test in ${TESTS:+"$TESTS"/*}; do
        totals=$(TEMPER_TEST_DEVICE=$device "$test" 2>&1 | tee "$work/test.log" | grep '^test result' || tail -n 3 "$work/test.log")
        tests+="${tests:+,}"$'\n'"    \"$(basename "$test")\": $(quoted <<< "$totals")"
    done
    printf '\n  "tests": {%s}\n}' "$tests"
done
printf '\n}}\n'
