#!/usr/bin/env bash
# Stage 1 for as long as one call lasts: speech is made on all cores while the GPU trains on what is there.
. "$(dirname "$0")/setup.sh"

bring_in orchestrator
start_shards data/speech "${WORKERS:-$((CORES > 2 ? CORES - 2 : 1))}" "${SHARD_SECONDS:-300}" \
    --speech-only --audio-codec "$AUDIO_CODEC"
wait_for_shards data/speech

mkdir -p runs/orchestrator
say "training for $(minutes_left) minutes"
# shellcheck disable=SC2046
streamchar train orchestrator --preset "$PRESET" --data data/speech --out runs/orchestrator \
    --minutes "$(minutes_left)" --device "$DEVICE" --batch "${BATCH:-128}" --rate "${RATE:-1e-3}" \
    --cooldown "${COOLDOWN:-0}" $(resume_of orchestrator) 2>&1 | tee -a runs/orchestrator/log.txt
stop_data
say "$(shards_in data/speech) shards in data/speech"
send_home orchestrator
say done
