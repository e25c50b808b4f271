#!/usr/bin/env bash
# Stage 2 for as long as one call lasts, from stage 1's run of this machine or from .pieces/orchestrator.
# Clips are drawn and encoded on all cores but a few, which speak for the steps on speech alone.
. "$(dirname "$0")/setup.sh"

bring_in orchestrator
bring_in joint
speakers=${SPEAKERS:-$((CORES > 4 ? CORES / 4 : 1))}
start_shards data/clips "${WORKERS:-$((CORES > 4 ? CORES - speakers - 2 : 1))}" "${SHARD_SECONDS:-60}" \
    --audio-codec "$AUDIO_CODEC" --video-codec "$VIDEO_CODEC" --size "$SIZE"
speech=(--freeze-speech)
if [ -z "${FREEZE_SPEECH:-}" ]; then
    start_shards data/speech "$speakers" "${SPEECH_SECONDS:-300}" --speech-only --audio-codec "$AUDIO_CODEC"
    wait_for_shards data/speech
    speech=(--speech data/speech)
fi
wait_for_shards data/clips

start=${START:-runs/orchestrator} # a folder with orchestrator/ and dit/: stage 1's export, or any model folder
[ -d "$start/dit" ] || start=$BASE
mkdir -p runs/joint
say "training for $(minutes_left) minutes, begun from $start"
# shellcheck disable=SC2046
streamchar train joint --preset "$PRESET" --data data/clips "${speech[@]}" --out runs/joint \
    --minutes "$(minutes_left)" --device "$DEVICE" --batch "${BATCH:-64}" --rate "${RATE:-1e-3}" \
    --cooldown "${COOLDOWN:-0}" --start "$start" --prompt-encoder "$PROMPT_ENCODER" \
    $(resume_of joint) 2>&1 | tee -a runs/joint/log.txt
stop_data
say "$(shards_in data/clips) shards in data/clips"
send_home joint
say done
