#!/usr/bin/env bash
# What toon's video decoder takes from the still, learned on a student's own latents, for as long as one call lasts.
# MODEL: the student's folder; it comes back as $OUT/reference, for `scripts/assemble.py --video-codec`. A schedule
# belongs to one call; a later call on the same machine keeps the examples (one process draws two a second: give it
# more CLIPS) and begins from the codec of the first. CRITIC=1: then the whole decoder, sharpened.
. "$(dirname "$0")/setup.sh"

MODEL=${MODEL:-$ASSETS}
[ -e "$MODEL/model_index.json" ] || { say "no model folder in $MODEL: set MODEL" && exit 2; }

start_shards data/clips "${WORKERS:-$((CORES > 2 ? CORES - 2 : 1))}" "${SHARD_SECONDS:-60}" \
    --audio-codec "$AUDIO_CODEC" --video-codec "$VIDEO_CODEC" --size "$SIZE"
wait_for_shards data/clips
stop_data # the cores are needed for the examples now

run=runs/reference
if [ -e "$run/model.safetensors" ]; then # of another call: its examples and its codec go on
    rm -rf "$run/start" "$run/training"
    cp -r "$MODEL" "$run/start"
    mv "$run/model.safetensors" "$run/config.json" "$run/start/video_codec/"
    rm -rf "$run.examples" && mv "$run/examples" "$run.examples"
    MODEL=$run/start
fi
mkdir -p "$run"
[ ! -d "$run.examples" ] || mv "$run.examples" "$run/examples"
say "training for $(minutes_left) minutes, with examples drawn first"
streamchar train reference --preset "$PRESET" --data data/clips --start "$MODEL" --out "$run" --device "$DEVICE" \
    --minutes "$(calculate "$(minutes_left) * ${SHARE:-0.6}")" --batch "${BATCH:-16}" --clips "${CLIPS:-192}" \
    ${CRITIC:+--critic} \
    2>&1 | tee -a "$run/log.txt"
mkdir -p "$OUT/reference"
cp "$run/config.json" "$run/model.safetensors" "$OUT/reference/"
tail -n 4000 "$run/log.txt" >"$OUT/reference/log.txt"
say done
