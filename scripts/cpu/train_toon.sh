#!/usr/bin/env bash
# toon from nothing, in order, on a machine with two CPU cores or more. Takes days for good speech; every
# step can be stopped and run again: what is finished is skipped, training goes on where it was.
#   scripts/cpu/train_toon.sh            PRESET=tiny SIZE=64 MINUTES=1 CLIPS=16 HOURS=0.05 ... for a trial
# MINUTES sets every stage's time at once; else each has its own.
set -euo pipefail
cd "$(dirname "$0")/../.."

PYTHON=${PYTHON:-python3}
PRESET=${PRESET:-toon}
DATA=${DATA:-data/$PRESET}
RUNS=${RUNS:-runs/$PRESET}
WORKERS=${WORKERS:-2}                          # processes that make data
RAW_HOURS=${RAW_HOURS:-${HOURS:-3}}            # speech for the audio codec
SPEECH_HOURS=${SPEECH_HOURS:-${HOURS:-40}}     # shards of speech alone, for stages 1 and 2
VIDEO_HOURS=${VIDEO_HOURS:-${HOURS:-6}}        # shards of clips, for stage 2
AUDIO_MINUTES=${AUDIO_MINUTES:-${MINUTES:-60}}
VOCODER_MINUTES=${VOCODER_MINUTES:-${MINUTES:-45}}  # after it, its decoder alone by the teacher's spectra
VIDEO_MINUTES=${VIDEO_MINUTES:-${MINUTES:-90}}
PROMPT_MINUTES=${PROMPT_MINUTES:-${MINUTES:-4}}
ORCHESTRATOR_MINUTES=${ORCHESTRATOR_MINUTES:-${MINUTES:-1440}}
JOINT_MINUTES=${JOINT_MINUTES:-${MINUTES:-1440}}
DISTILL_MINUTES=${DISTILL_MINUTES:-${MINUTES:-45}}
ROLLOUT_MINUTES=${ROLLOUT_MINUTES:-${MINUTES:-60}}
REFERENCE_MINUTES=${REFERENCE_MINUTES:-${MINUTES:-60}}
EXAMPLES=${EXAMPLES:-${CLIPS:-800}}            # chunks that the decoder's mixer learns from
CLIPS=${CLIPS:-1200}                           # pictures for the video codec, of 1.375 s
COOLDOWN=${COOLDOWN:-0.3}                      # of a stage's minutes, at its end
SHARD_SECONDS=${SHARD_SECONDS:-600}
SIZE=${SIZE:-256}                              # of the pictures: the preset's height and width; tiny: 64

export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
# glibc gives freed memory back too eagerly for training: half of the CPU time otherwise
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=268435456
# two jobs of one thread side by side lose nothing, two threads on a core that is shared lose most of it
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
mkdir -p "$DATA" "$RUNS"

streamchar() { nice -n 5 "$PYTHON" -m streamchar "$@"; }

once() { # NAME COMMAND...: skipped when it has been done; its output in $RUNS/NAME.txt
    local name=$1
    shift
    if [ -e "$RUNS/.done-$name" ]; then
        echo "done before: $name"
        return
    fi
    echo "$(date +%H:%M:%S) $name"
    "$@" >>"$RUNS/$name.txt" 2>&1 || { echo "failed: $name, see $RUNS/$name.txt" >&2; return 1; }
    touch "$RUNS/.done-$name"
}

stage() { # NAME MINUTES DATA FOLDER [options]: train, resumed if a checkpoint or a codec's weights are there
    local name=$1 minutes=$2 data=$3 out=$4 found
    shift 4
    for found in checkpoint checkpoint.old training model.safetensors; do
        [ ! -e "$out/$found" ] || { set -- "$@" --resume && break; }
    done
    streamchar train "$name" --preset "$PRESET" --data "$data" --out "$out" --minutes "$minutes" "$@"
}

audio_codec() {
    once speech-raw streamchar world --speech-raw "$DATA/speech_raw" --hours "$RAW_HOURS" --workers "$1" || return 1
    once audio-codec stage audio-codec "$AUDIO_MINUTES" "$DATA/speech_raw" "$RUNS/audio_codec" || return 1
    once audio-decoder stage audio-codec "$VOCODER_MINUTES" "$DATA/speech_raw" "$RUNS/audio_codec" --freeze-encoder
}

video_codec() {
    once clips-raw streamchar world --clips-raw "$DATA/clips_raw" --clips "$CLIPS" --workers "$1" || return 1
    once video-codec stage video-codec "$VIDEO_MINUTES" "$DATA/clips_raw" "$RUNS/video_codec"
}

shards() { # NAME FOLDER HOURS WORKERS [options]: held-out ones first
    local name=$1 folder=$2 hours=$3 workers=$4
    shift 4
    set -- --audio-codec "$RUNS/audio_codec" --shard-seconds "$SHARD_SECONDS" "$@"
    once "$name-held-out" streamchar world --shards "$folder/held_out" --held-out --seed 900 \
        --hours "$("$PYTHON" -c "print(2 * $SHARD_SECONDS / 3600)")" "$@" || return 1
    once "$name" streamchar world --shards "$folder" --hours "$hours" --workers "$workers" "$@"
}

# 1. codecs, side by side
audio_codec 1 & first=$!
video_codec 1 & second=$!
wait "$first" && wait "$second"

# 2. the prompt encoder, frozen from here on
once prompt-encoder streamchar train prompt-encoder --preset "$PRESET" --out "$RUNS/prompt_encoder" \
    --minutes "$PROMPT_MINUTES"

# 3. speech for stage 1; clips are drawn while it trains
shards speech "$DATA/speech" "$SPEECH_HOURS" "$WORKERS" --speech-only
shards clips "$DATA/clips" "$VIDEO_HOURS" 1 --video-codec "$RUNS/video_codec" --size "$SIZE" & drawing=$!

# 4. stage 1, then stage 2 from it
once orchestrator stage orchestrator "$ORCHESTRATOR_MINUTES" "$DATA/speech" "$RUNS/orchestrator" --cooldown "$COOLDOWN"
wait "$drawing"
once joint stage joint "$JOINT_MINUTES" "$DATA/clips" "$RUNS/joint" --speech "$DATA/speech" --cooldown "$COOLDOWN" \
    --start "$RUNS/orchestrator" --prompt-encoder "$RUNS/prompt_encoder"

# 5. the base model, as a folder that plays: the teacher of what follows
assemble() { once "$1" "$PYTHON" scripts/assemble.py --preset "$PRESET" --codecs "$RUNS" "${@:2}"; }
assemble base --speech "$RUNS/joint" --out "$RUNS/base" --steps 4 --guidance 2 --temperature 0.5 \
    --picture-guidance 3 --picture-guidance-above 0.88 --picture-temperature 0.25

# 6. stages 3 and 4: the student
student=(--teacher "$RUNS/base" --guidance 1.5 --picture-guidance 2 --temperature 0.5 --picture-temperature 1
    --rate 1e-4 --fake-rate 3e-4 --follow 3 --cooldown "$COOLDOWN")
once distill stage distill "$DISTILL_MINUTES" "$DATA/clips" "$RUNS/distill" "${student[@]}" --batch 4
once rollout stage rollout "$ROLLOUT_MINUTES" "$DATA/clips" "$RUNS/rollout" "${student[@]}" --batch 2 --grow 10 \
    --start "$RUNS/distill"
played=(--speech "$RUNS/rollout" --base "$RUNS/base" --guidance 1.5 --picture-guidance 1)
assemble student "${played[@]}" --out "$RUNS/student"

# 7. what the decoder takes from the still, learned on the student's own latents; these stay what they are. Then
# streamchar say "..." --model $RUNS/model
once reference stage reference "$REFERENCE_MINUTES" "$DATA/clips" "$RUNS/reference" --start "$RUNS/student" \
    --clips "$EXAMPLES"
assemble model "${played[@]}" --video-codec "$RUNS/reference" --out "$RUNS/model"
echo "$RUNS/model"
