#!/usr/bin/env bash
# All that is to be seen on a machine with a GPU, with a network or without.
#
#   bench/gpu/run.sh WHEELS OUT [checks | tests | server]
#
# WHEELS is a folder that `python bench/gpu/wheels.py collect WHEELS` has filled on another machine;
# what is there already is not installed, and nothing stays. Into OUT go a log of each stage, the
# benchmarks' JSON and summary.txt, the table that is printed last.
#
#   checks   the compiler, each way through the GPU once beside the CPU, the steps' benchmark: 5 min
#   tests    pytest -m gpu, then memcheck and racecheck of compute-sanitizer: 5 min
#   server   messages a second, on the GPU and on the CPU's cores with 1, 2, 4 and 8 shards: 10 min
#
# Without the third argument all of them, one after the other. Each stage has a limit of its own, and
# the next one comes whatever becomes of it. The exit code is 1 if a stage has failed, and 0 where
# there is no GPU. PYTHON names the interpreter (python3), STAGE_LIMIT_S a limit for every stage.
set -u
if [ $# -lt 2 ] || ! [[ ${3:-all} =~ ^(all|checks|tests|server)$ ]]; then
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
mkdir -p "$2"
wheels=$1 out=$(cd "$2" && pwd) part=${3:-all} python=${PYTHON:-python3} failed=0
[ ! -d "$wheels" ] || wheels=$(cd "$wheels" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
site=$(mktemp -d)
trap 'rm -rf "$site"; [ -z "${warming:-}" ] || kill "$warming" 2> /dev/null' EXIT
export PYTHONUNBUFFERED=1
export PYTHONPATH=$site:$PWD:$PWD/server:$PWD/clients:$PWD/bench${PYTHONPATH:+:$PYTHONPATH}
: > "$out/summary.txt"

# stage NAME LIMIT_S COMMAND...: run a command, its output into a log and its end into the summary.
stage() {
    local name=$1 limit=${STAGE_LIMIT_S:-$2} start=$SECONDS rc=0 word=fine last
    shift 2
    echo "== $name (at most $limit s)"
    timeout --kill-after=5 "$limit" "$@" > "$out/$name.log" 2>&1 || rc=$?
    case $rc in 0) ;; 124 | 137) word="limit" ;; *) word="failed ($rc)" ;; esac
    [ $rc = 0 ] || { failed=1 && tail -n 15 "$out/$name.log" | cut -c1-200; }
    last=$(grep -v '^[[:space:]]*$' "$out/$name.log" | tail -n 1 | cut -c1-100)
    printf '%-10s %-12s %4d s  %s\n' "$name" "$word" $((SECONDS - start)) "$last" >> "$out/summary.txt"
    return $rc
}

install() {
    [ ! -d "$wheels" ] || "$python" bench/gpu/wheels.py install "$wheels" "$site" "$@"
}

install
! command -v nvidia-smi > /dev/null || nvidia-smi \
    --query-gpu=name,driver_version,clocks.sm,clocks.max.sm,power.limit --format=csv
name='from streamrnn.kernels.cuda.compiler import gpu_name; print(gpu_name())'
if ! "$python" -c "$name" > "$out/gpu.log" 2>&1; then
    why=$(tail -n 1 "$out/gpu.log" | sed 's/^[[:alnum:].]*Error: //')
    # A GPU with which something is wrong is not the same as none.
    nvidia-smi -L 2> /dev/null | grep -q GPU && failed=1
    [ $failed = 1 ] || why="no GPU that can be used here: $why"
    echo "nothing was run; $why" | tee "$out/summary.txt"
    exit $failed
fi

if [ "$part" = all ] || [ "$part" = checks ]; then
    if ! stage compiler 60 "$python" bench/gpu/check.py; then
        # What is there does not do: all of the wheels.
        install --all && stage compiler-2 60 "$python" bench/gpu/check.py
    fi
    # The CPU's functions, which the GPU's outputs are compared with, are compiled beside its own.
    "$python" -m tests.support.compile engine > /dev/null 2>&1 &
    warming=$!
    stage smoke 120 "$python" -m tests.cuda.smoke
    stage step 120 "$python" -m streamrnn_server bench step --device cuda --rounds 7 --json "$out"
fi
if [ "$part" = all ] || [ "$part" = tests ]; then
    workers=$(nproc) && workers=$((workers < 14 ? workers : 14))
    stage tests 150 "$python" -m pytest tests/cuda/test_gpu.py -m gpu -n $workers -q -W default \
        -p no:cacheprovider -k "not sanitizer"
    for tool in memcheck racecheck; do
        stage $tool 70 compute-sanitizer --tool $tool --error-exitcode 9 \
            "$python" -m tests.cuda.smoke --tiny
    done
fi
if [ "$part" = all ] || [ "$part" = server ]; then
    stage compile 180 "$python" -m tests.support.compile shard
    throughput=("$python" -m streamrnn_server bench throughput --streams 10000 --json "$out")
    stage server-cuda 150 "${throughput[@]}" --device cuda
    stage server-cpu 240 "${throughput[@]}" --shards 1 2 4 8 --rounds 8
fi

"$python" bench/gpu/show.py "$out"/*.jsonl >> "$out/summary.txt" 2> /dev/null
echo
cat "$out/summary.txt"
exit $failed
