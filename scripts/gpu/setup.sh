# Sourced by the jobs of this folder: packages, data in the background, checkpoints in and out.
# Every setting is an environment variable with a default; README.md lists them.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

PYTHON=${PYTHON:-python3}
OUT=${OUT:-runs/out}                 # results: nothing else need come back
DEVICE=${DEVICE:-cuda}
PRESET=${PRESET:-toon}
SIZE=${SIZE:-256}                    # of the pictures: the preset's height and width
CORES=${CORES:-$(nproc)}
BUDGET=${BUDGET:-9.2}                # minutes that this call may take in all
RESERVE=${RESERVE:-0.9}              # of them for the last validation and the pieces
DATA_MINUTES=${DATA_MINUTES:-1.0}    # data alone, before training begins
SEND_MIB=${SEND_MIB:-58}             # size of the pieces together
WHEELS=${WHEELS:-.whl}
ASSETS=${ASSETS:-streamchar/assets/toon}
BASE=${BASE:-$ASSETS-base} # before distillation: what training goes on with
[ -d "$BASE" ] || BASE=$ASSETS
AUDIO_CODEC=${AUDIO_CODEC:-$ASSETS/audio_codec}
VIDEO_CODEC=${VIDEO_CODEC:-$ASSETS/video_codec}
PROMPT_ENCODER=${PROMPT_ENCODER:-$ASSETS/prompt_encoder}

mkdir -p "$OUT" runs data
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export XDG_CACHE_HOME=${XDG_CACHE_HOME:-$PWD/runs/.cache}
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$PWD/runs/.inductor} # compiled once a machine
# glibc gives freed memory back too eagerly for training: half of the CPU time otherwise
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=268435456

say() { echo "[$((SECONDS / 60)):$(printf %02d $((SECONDS % 60)))] $*"; }
calculate() { awk "BEGIN { printf \"%.3f\", $1 }"; }
streamchar() { "$PYTHON" -m streamchar "$@"; }

install_wheels() { # from wheels.sh; once a machine
    compgen -G "$WHEELS/*.whl" >/dev/null || return 0
    local site=$PWD/runs/.site
    if [ ! -e "$site/.done" ] || [ "$WHEELS" -nt "$site/.done" ]; then
        "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" \
            "$WHEELS"/*.whl
        touch "$site/.done"
    fi
    export PYTHONPATH="$PYTHONPATH:$site"
}

minutes_left() { # of this call for training; MINUTES overrides
    if [ -n "${MINUTES:-}" ]; then
        echo "$MINUTES"
    else
        calculate "(m = $BUDGET - $RESERVE - $SECONDS / 60) > 0.2 ? m : 0.2"
    fi
}

bring_in() { # NAME: runs/NAME from .pieces/NAME, unless this machine has it already
    if [ ! -d "runs/$1/checkpoint" ] && [ -e ".pieces/$1/manifest.json" ]; then
        "$PYTHON" scripts/gpu/pieces.py join ".pieces/$1" "runs/$1"
    fi
}

resume_of() { # NAME: --resume where there is something to resume
    [ ! -d "runs/$1/checkpoint" ] && [ ! -d "runs/$1/checkpoint.old" ] || echo --resume
}

send_home() { # NAME: checkpoint and log to $OUT/NAME
    mkdir -p "$OUT/$1"
    tail -n 4000 "runs/$1/log.txt" >"$OUT/$1/log.txt"
    "$PYTHON" scripts/gpu/pieces.py split "runs/$1" "$OUT/$1" --mib "$SEND_MIB"
}

shards_in() { find "$1" -maxdepth 1 -name 'shard-*.safetensors' 2>/dev/null | wc -l; }

data_seed() { # FOLDER: kept with the data, so that later calls on this machine go on with it
    [ -e "$1/.seed" ] || echo "${DATA_SEED:-$((RANDOM + 1))}" >"$1/.seed"
    cat "$1/.seed"
}

DATA_PIDS=()
DATA_UNTIL=0
stop_data() {
    for pid in "${DATA_PIDS[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${DATA_PIDS[@]}"; do wait "$pid" 2>/dev/null || true; done
    DATA_PIDS=()
}
trap stop_data EXIT

start_shards() { # FOLDER WORKERS SHARD_SECONDS [options of `streamchar world`]: grows FOLDER until stop_data
    local folder=$1 workers=$2 seconds=$3
    shift 3
    mkdir -p "$folder"
    if [ "$(shards_in "$folder/held_out")" = 0 ]; then
        say "held-out data for $folder"
        OMP_NUM_THREADS=1 streamchar world --shards "$folder/held_out" --held-out --seed 900 --workers "$CORES" \
            --hours "$(calculate "$CORES * $seconds / 4 / 3600")" --shard-seconds "$(calculate "$seconds / 4")" "$@"
    fi
    if [ "$(shards_in "$folder")" != 0 ]; then # shards of another recipe: an error here, not in the background's log
        streamchar world --shards "$folder" --seed "$(data_seed "$folder")" --hours 0.001 --shard-seconds "$seconds" "$@"
    fi
    (
        export OMP_NUM_THREADS=1 # exec: what stop_data ends must be Python itself
        exec "$PYTHON" -m streamchar world --shards "$folder" --seed "$(data_seed "$folder")" \
            --workers "$workers" --hours 2000 --shard-seconds "$seconds" "$@" >"$folder/log.txt" 2>&1
    ) &
    DATA_PIDS+=($!)
    [ "$(shards_in "$folder")" != 0 ] || DATA_UNTIL=$(awk "BEGIN { print int($SECONDS + 60 * $DATA_MINUTES) }")
}

wait_for_shards() { # FOLDER: until it has some and, where there were none before, DATA_MINUTES are over
    local pid
    while [ "$(shards_in "$1")" = 0 ] || [ "$SECONDS" -lt "$DATA_UNTIL" ]; do
        for pid in "${DATA_PIDS[@]}"; do
            kill -0 "$pid" 2>/dev/null || { tail -n 5 data/*/log.txt >&2; say "no more data"; exit 1; }
        done
        sleep 1
    done
    say "$(shards_in "$1") shards in $1"
}

install_wheels
