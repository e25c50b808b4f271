#!/usr/bin/env bash
# Distillation for as long as one call lasts: stage I from TEACHER, or with STAGE=rollout stage II from stage I's run.
# TEACHER: a model folder (model_index.json and components), at home the one that scripts/assemble.py wrote. What else
# `streamchar train` takes goes into OPTIONS; an ablation is NAME=no-sink OPTIONS=--no-sink, or NO_STAGE_1=1.
. "$(dirname "$0")/setup.sh"

STAGE=${STAGE:-distill}
NAME=${NAME:-$STAGE} # of the run: an ablation needs its own
TEACHER=${TEACHER:-$BASE}
case $STAGE in distill | rollout) ;; *) say "STAGE is distill or rollout, got $STAGE" && exit 2 ;; esac
[ -e "$TEACHER/model_index.json" ] || { say "no model folder in $TEACHER: set TEACHER" && exit 2; }

bring_in "$NAME"
start_shards data/clips "${WORKERS:-$((CORES > 2 ? CORES - 2 : 1))}" "${SHARD_SECONDS:-60}" \
    --audio-codec "$AUDIO_CODEC" --video-codec "$VIDEO_CODEC" --size "$SIZE"
wait_for_shards data/clips

read -ra options <<<"${OPTIONS:-}"
batch=32
if [ "$STAGE" = rollout ]; then
    batch=8 # streams are played one after another
    if [ -n "${NO_STAGE_1:-}" ]; then
        options+=(--no-stage-1)
    elif [ -z "$(resume_of "$NAME")" ]; then
        [ -n "${START:-}" ] || bring_in distill
        options+=(--start "${START:-runs/distill}")
    fi
fi
[ -z "${RATE:-}" ] || options+=(--rate "$RATE")
mkdir -p "runs/$NAME"
say "$STAGE for $(minutes_left) minutes, teacher $TEACHER"
# shellcheck disable=SC2046
streamchar train "$STAGE" --preset "$PRESET" --data data/clips --teacher "$TEACHER" --out "runs/$NAME" \
    --minutes "$(minutes_left)" --device "$DEVICE" --batch "${BATCH:-$batch}" --cooldown "${COOLDOWN:-0}" \
    "${options[@]}" $(resume_of "$NAME") 2>&1 | tee -a "runs/$NAME/log.txt"
stop_data
say "$(shards_in data/clips) shards in data/clips"
send_home "$NAME"
say done
