#!/bin/sh
# The study behind docs/quality.md: what window, sinks and widths cost on the bundled models.
#   scripts/quality-study.sh OUT [CHUNKS] [BIN]
# Leaves tables (Markdown and JSON) and plots in OUT. Can be stopped and run again: results are kept in OUT and not
# computed twice. CHUNKS: contexts of each text (default 8; intervals need 4). BIN: folder of mixed-kv-eval (default
# build/bin).
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
out=${1:?usage: quality-study.sh OUT [CHUNKS] [BIN]}
chunks=${2:-8}
bin=${3:-$root/build/bin}
mkdir -p "$out"

hosts="host:f16 host:q8_0 host:q5_1 host:q5_0 host:q4_1 host:q4_0 host:iq4_nl"
norot="host:q8_0:norot host:q5_0:norot host:q4_0:norot host:iq4_nl:norot"
presets="mixed:quality mixed:balanced mixed:small"

# Like for like: with the presets' windows and sinks the host's types; one format for all cold rows, ours and the
# host's, with the rows in FP16 of `balanced` and without any.
same=""
for type in q8_0 q5_0 q4_0; do
    for rows in 128+4 64+4 32+4 0+0; do same="$same host:$type+$rows"; done
done
for format in q8 q6 q5 q4 q3 q2; do same="$same mixed:k=$format,v=$format,window=64,sinks=4 format:$format+0+0"; done

# study NAME MODEL TEXT CONTEXT UBATCH CONFIGS [more options]
study() {
    name=$1 model=$2 text=$3 context=$4 ubatch=$5 configs=$6
    shift 6
    for format in --json ""; do # the second pass takes everything from the results of the first
        suffix=${format:+json}
        "$bin/mixed-kv-eval" -m "$root/models/$model" -f "$root/models/$text" -c "$context" --ubatch "$ubatch" \
            -t 1 --chunks "$chunks" --configs "$configs" --resume "$out/results.jsonl" $format \
            --plot "$out/$name" "$@" > "$out/$name.${suffix:-md}"
    done
    echo "$out/$name.md"
}

first="tiny-recall.gguf eval.txt 2048"
second="outliers/tiny-outliers.gguf outliers/eval-addresses.txt 1024"
models="first second"

widths=""
for k in q8 q6 q5 q4 q3 q2; do
    for v in q8 q6 q5 q4 q3 q2; do widths="$widths mixed:k=$k,v=$v,window=64,sinks=4"; done
done
grid() { # of one width
    for window in 0 32 64 128 256; do
        for sinks in 0 1 4 16; do printf ' mixed:k=%s,v=%s,window=%s,sinks=%s' "$1" "$1" $window $sinks; done
    done
}

for model in $models; do
    eval "set -- \$$model"
    baseline="--baseline host:q4_0"
    study "$model-formats" "$1" "$2" "$3" 64 "$hosts $norot $presets" $baseline
    study "$model-same" "$1" "$2" "$3" 64 "host:q4_0 $presets $same" $baseline
    study "$model-same-1024" "$1" "$2" 1024 64 "host:q4_0 $presets $same" $baseline
    study "$model-widths" "$1" "$2" "$3" 64 "host:q4_0 $widths" $baseline
    for width in q4 q3 q2; do study "$model-grid-$width" "$1" "$2" "$3" 64 "host:q4_0 $(grid $width)" $baseline; done
    for ubatch in 1 32 512; do
        study "$model-ubatch-$ubatch" "$1" "$2" "$3" $ubatch "host:q5_0 host:q4_0 $presets" $baseline
    done
done

# A second text, for the models that were tuned on their own.
study first-novels tiny-recall.gguf novels/eval-novels.txt 2048 64 "host:q4_0 $presets $same" --baseline host:q4_0
study second-novels outliers/tiny-outliers.gguf novels/eval-novels.txt 1024 64 "host:q4_0 $presets $same" --baseline host:q4_0

# Recall and greedy continuations, by preset. These are not kept: each run computes them again.
for model in $models; do
    eval "set -- \$$model"
    case $model in
        first) recall=recall.jsonl ;;
        second) recall=outliers/recall-outliers.jsonl ;;
    esac
    "$bin/mixed-kv-eval" -m "$root/models/$1" -f "$root/models/$2" -c "$3" --ubatch 64 -t 1 --chunks "$chunks" \
        --configs "host:q4_0 $presets mixed:k=q2,v=q2" --resume "$out/results.jsonl" --plot "$out/$model" \
        --recall "$root/models/$recall" --greedy 256 --greedy-prompts 40 > "$out/$model-recall.md"
    echo "$out/$model-recall.md"
done

# A budget that a calibration divides, beside the presets of about its size.
for model in $models; do
    eval "set -- \$$model"
    file=$out/$model.kv-calibration
    [ -s "$file" ] || "$bin/mixed-kv-eval" --calibrate "$root/models/$1" -f "$root/models/$2" -c "$3" --ubatch 64 -t 1 \
        --chunks 1 --output "$file"
    budgets=""
    for bits in 6.3 4.5 3.4 2.6; do budgets="$budgets mixed:bits=$bits,calibration=$file"; done
    study "$model-budgets" "$1" "$2" "$3" 64 "host:q4_0 $budgets" --baseline host:q4_0
done

if /usr/bin/python3 -c 'import numpy' 2> /dev/null; then
    "$root/scripts/quality-synthetic.py" > "$out/synthetic.md"
    echo "$out/synthetic.md"
else
    echo "quality-study.sh: no python3-numpy: the synthetic rows are left out" >&2
fi
