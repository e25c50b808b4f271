#!/usr/bin/env bash
# The audio and the video codec of toon, each in a share of one call. A codec's schedule belongs to one
# call: nothing is resumed. Latents change with it, and shards and stages 1 and 2 have to be made again;
# not so with FREEZE_ENCODER=1, which trains the decoders of $AUDIO_CODEC and $VIDEO_CODEC alone.
. "$(dirname "$0")/setup.sh"

train_codec() { # NAME FOLDER OPTIONS...: for $minutes
    local name=$1 data=$2
    shift 2
    case " $* " in
    *" --resume "*) ;;
    *) [ ! -e "runs/$name/model.safetensors" ] || mv "runs/$name" "runs/$name.$(date +%s)" ;; # of another call
    esac
    mkdir -p "runs/$name"
    streamchar train "$name" --preset "$PRESET" --data "$data" --out "runs/$name" --minutes "$minutes" \
        --device "$DEVICE" "$@" 2>&1 | tee -a "runs/$name/log.txt"
    mkdir -p "$OUT/$name"
    cp "runs/$name/config.json" "runs/$name/model.safetensors" "$OUT/$name/"
    tail -n 4000 "runs/$name/log.txt" >"$OUT/$name/log.txt"
}

which=${CODECS:-audio-codec video-codec}
case "$which" in *audio-codec*)
    say "speech"
    OMP_NUM_THREADS=1 streamchar world --speech-raw data/speech_raw --hours "${HOURS:-8}" --workers "$CORES"
    ;;
esac
case "$which" in *video-codec*)
    say "pictures"
    OMP_NUM_THREADS=1 streamchar world --clips-raw data/clips_raw --clips "${CLIPS:-768}" --workers "$CORES"
    ;;
esac
minutes=$(minutes_left)
[ "$which" = "audio-codec" ] || [ "$which" = "video-codec" ] || minutes=$(calculate "$minutes / 2")
say "training for $minutes minutes each: $which"
audio=(--batch "${BATCH:-48}") video=()
if [ -n "${FREEZE_ENCODER:-}" ]; then
    mkdir -p runs/audio-codec
    cp "$AUDIO_CODEC"/* runs/audio-codec/
    audio+=(--freeze-encoder --resume)
    video+=(--freeze-encoder --start "$VIDEO_CODEC")
fi
for name in $which; do
    case "$name" in
    audio-codec) train_codec audio-codec data/speech_raw "${audio[@]}" ;;
    video-codec) train_codec video-codec data/clips_raw "${video[@]}" ;;
    *)
        say "unknown codec $name"
        exit 2
        ;;
    esac
done
say done
