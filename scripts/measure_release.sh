#!/usr/bin/env bash
# The figures of toon's card, all of them: two lanes side by side, about half an hour of two cores. What is there is
# not measured again.
#   scripts/measure_release.sh OUT MOONSHINE_DIR WESPEAKER.onnx
set -euo pipefail
out=$(mkdir -p "$1" && cd "$1" && pwd) moonshine=$(cd "$2" && pwd) speaker=$(realpath "$3")
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
SENTENCES=${SENTENCES:-../shared/checks/sentences.txt} # one a line
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" STREAMCHAR_MOONSHINE=$moonshine OMP_NUM_THREADS=1

once() { # NAME COMMAND...: skipped when it has been done
    local name=$1
    shift
    [ ! -e "$out/.done-$name" ] || return 0
    "$@" >"$out/$name.log" 2>&1 || { echo "failed: $name, see $out/$name.log" >&2; return 1; }
    touch "$out/.done-$name"
    echo "$(date +%H:%M:%S) $name"
}

suite() { # NAME OPTIONS...
    local name=$1
    shift
    once "$name" "$PYTHON" -m streamchar eval run "$@" --speaker "$speaker" --out "$out/$name" --cache "$out/cache" --json
}

sentences() { # NAME MODEL
    once "$1" "$PYTHON" scripts/measure_toon.py --model "$2" --moonshine "$moonshine" --sentences "$SENTENCES" \
        --clips 0 --out "$out/$1.json"
}

first() {
    suite suite-toon --model toon --protocol short --clips 12
    suite long-toon --model toon --protocol long --clips 3
    sentences sentences-base toon-base
}

second() {
    sentences sentences-toon toon
    suite suite-base --model toon-base --protocol short --clips 12
    suite odd-toon --model toon --protocol short --clips 36 --metrics wer
    suite odd-base --model toon-base --protocol short --clips 36 --metrics wer
    once voices "$PYTHON" scripts/measure_voice.py --model toon --speaker "$speaker" --out "$out/voices.json"
    once speech-codec "$PYTHON" scripts/measure_speech_codec.py toon --moonshine "$moonshine" --speaker "$speaker" \
        --out "$out/speech-codec.json"
    once codecs "$PYTHON" scripts/measure_toon.py --model toon --moonshine "$moonshine" --sentences "$SENTENCES" \
        --count 0 --clips 16 --out "$out/codecs.json"
}

first &
lane=$!
second || { wait "$lane" || true; exit 1; }
wait "$lane"
