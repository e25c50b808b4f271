#!/usr/bin/env bash
# The speed of the paper preset on one GPU, in one call: random weights made there, stage by stage, against diffusers.
# Needs diffusers (wheels.sh diffusers). Most important first; what no longer fits into BUDGET minutes is left out.
# A trial at reduced size on a CPU, through the same code:
#   DEVICE=cpu PRESET=paper-tiny SIZE=64x64 LAYERS=1 CHUNKS=6 WHEELS=none scripts/gpu/bench_paper.sh
SIZE=${SIZE:-512x512} # height x width
PRESET=${PRESET:-paper}
. "$(dirname "$0")/setup.sh"

CHUNKS=${CHUNKS:-200}
FEW=${FEW:-$((CHUNKS < 30 ? CHUNKS : 30))} # chunks of the runs that only compare means
STEPS=${STEPS:-4}
DTYPE=${DTYPE:-$([ "$DEVICE" = cpu ] && echo float32 || echo bfloat16)}
NOTE=${NOTE:-}
INTO=$OUT/bench_paper
minutes() { calculate "$BUDGET - 0.2 - $SECONDS / 60"; }

measure() { # NAME CHUNKS LEAST_MINUTES [options]: a JSON file and a page, unless less than that is left
    local name=$1 chunks=$2 least=$3 left
    shift 3
    left=$(minutes)
    if awk "BEGIN { exit !($left < $least) }"; then
        say "$name: left out, $left minutes left, $least needed"
        return 0
    fi
    say "$name: $chunks chunks, $left minutes left"
    timeout "$(calculate "$left * 60")" "$PYTHON" -m streamchar bench --preset "$PRESET" --random-weights \
        --size "$SIZE" --steps "$STEPS" --chunks "$chunks" --device "$DEVICE" --dtype "$DTYPE" \
        ${LAYERS:+--layers "$LAYERS"} --title "$PRESET, $name, on $DEVICE" --note "$NOTE" \
        --json "$INTO/$name.json" --markdown "$INTO/$name.md" "$@" >"$INTO/$name.log" 2>&1 ||
        { say "$name: failed" && tail -n 3 "$INTO/$name.log"; }
    [ ! -e "$INTO/$name.md" ] || rm -f "$INTO/$name.log"
}

rm -rf "$INTO" # of another call
mkdir -p "$INTO"
graphs=cuda-graphs,channels-last-decode
if [ "$DEVICE" = cpu ]; then
    measure usual "$CHUNKS" 0.1 --speed "" --against diffusers --caches
    measure plain "$FEW" 0.1
else
    nvidia-smi --query-gpu=name,clocks.sm,clocks.max.sm,power.limit --format=csv || true
    measure graphs "$CHUNKS" 1.5 --speed "$graphs" --against diffusers --overlapped 30 --warm-up 4
    measure plain "$FEW" 1.0 --caches
    measure compiled "$FEW" 2.0 --speed "compile,$graphs" --against diffusers --warm-up 6
    if "$PYTHON" -c "import torchao" 2>/dev/null; then
        measure fp8 "$FEW" 1.2 --speed "fp8,$graphs" --warm-up 4
    fi
fi
pages=("$INTO"/*.md)
[ -e "${pages[0]}" ] || { say "no figures" && exit 1; }
for page in "${pages[@]}"; do cat "$page" && echo && rm "$page"; done >"$INTO/pages.txt"
mv "$INTO/pages.txt" "$INTO/bench_paper.md"
cat "$INTO/bench_paper.md"
say done
