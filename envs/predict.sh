#!/bin/sh
# Segment every image of FLARE_INPUTS into FLARE_OUTPUTS: case_0000.nii.gz becomes case.nii.gz. Only label maps are left
# there. FLARE_MODELS holds the chain of a finished run (inference.json and models), or model folders, which are averaged.
# Exit codes are those of `labelloop infer`: 0 all cases, 1 some failed, 2 none could be done.
set -eu

inputs=${FLARE_INPUTS:-/workspace/inputs}
outputs=${FLARE_OUTPUTS:-/workspace/outputs}
models=${FLARE_MODELS:-/workspace/models}

if [ "$(cd "$inputs" && pwd -P)" = "$(cd "$outputs" && pwd -P)" ]; then
    echo "predict.sh: $outputs holds the inputs; name another folder for the label maps" >&2
    exit 2
fi
work=$(mktemp -d "$outputs/.labelloop-XXXXXX") # on the same file system, so that moving is renaming
trap 'rm -rf "$work"' EXIT

if [ -f "$models/inference.json" ]; then # the chain of a finished run
    set -- --results "$models"
else
    set --
    for model in "$models"/*/; do
        [ -f "$model/model.json" ] || { echo "predict.sh: no model.json in $model" >&2; exit 2; }
        set -- "$@" --model "$model"
    done
fi

code=0
labelloop infer "$inputs" "$@" --out "$work" ${FLARE_OPTIONS:---mode fast} || code=$?
for label in "$work"/*.nii.gz; do
    [ -e "$label" ] && mv "$label" "$outputs/"
done
exit "$code"
