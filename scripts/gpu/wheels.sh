#!/usr/bin/env bash
# At home, once: fetch what the GPU machine lacks as wheels into .whl/, which travels with the tree.
#   scripts/gpu/wheels.sh [NAME[==VERSION] ...]     more than the default list; for bench_paper.sh: diffusers
# PYTHON_VERSION and GLIBC say what runs there (Linux on x86-64); versions come from constraints.txt.
set -euo pipefail
cd "$(dirname "$0")/../.."

pinned() { sed -n "s/^\($1==[^;]*\).*/\1/p" constraints.txt; }

# Training needs torch, numpy, safetensors, transformers, einops, onnx, onnxruntime and typer beside these;
# a CUDA image for machine learning has them. diffusers is needed by the paper preset alone.
names=("$(pinned hibari-tts)" "$(pinned soxr)")
for name in "$@"; do
    case $name in *==*) names+=("$name") ;; *) names+=("$(pinned "$name")") ;; esac
    [ -n "${names[-1]}" ] || { echo "constraints.txt has no version of $name: write $name==VERSION" >&2 && exit 2; }
done
platforms=()
for minor in $(seq "${GLIBC:-39}" -1 5) ; do platforms+=(--platform "manylinux_2_${minor}_x86_64"); done
for old in manylinux2014 manylinux2010 manylinux1; do platforms+=(--platform "${old}_x86_64"); done

mkdir -p .whl
"${PYTHON:-python3}" -m pip --disable-pip-version-check download -q --no-deps --only-binary=:all: \
    --python-version "${PYTHON_VERSION:-3.12}" --implementation cp "${platforms[@]}" -d .whl "${names[@]}"
du -ch .whl/*.whl
