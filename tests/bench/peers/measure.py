"""The engine and its server beside llama.cpp's and others, in one run: each case goes to all in turn, round after
round, so that a busy moment hits all of them, and is told as medians and ratios.

    python3 tests/bench/peers/measure.py engine --llama BIN --model FILE.gguf --rounds 5
    python3 tests/bench/peers/measure.py serve --concurrency 16 --prompt-tokens 83 \\
        trireme=http://127.0.0.1:8080=KEY llama.cpp=http://127.0.0.1:8081=none vllm=http://127.0.0.1:8000=none

BIN is the folder that has `llama-bench` and `llama-batched-bench`, built on this machine with `GGML_NATIVE=ON`. Each of
llama.cpp's figures is the better one of flash attention on and off. Of us there is a column for each form of
activations that is asked for: two bytes, as by default, and one, which is what llama.cpp multiplies; bf16 where there is AMX.

`serve` asks servers that are already running, and stops all (SIGSTOP) but the one it asks where their process ids are
given (`trireme=URL=KEY=PID,PID`; vLLM's includes its engine's): idle servers, too, may spin. Each round asks prompts of its
own, the same of each server.
"""

import argparse
import functools
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import time

CLUSTER = pathlib.Path("target/release/cluster")


def run(command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{command[0]} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def ours(args, activations):
    """One measurement of each case: tokens a second."""
    common = [args.cluster, "bench", "engine", "--json", "--model", args.model, "--threads", args.threads]
    common += ["--gen-tokens", args.gen, "--prompt-tokens", args.prompt, "--activations", activations]
    short = json.loads(run([*common, "--batch", ",".join(map(str, [1, *args.batch]))]))
    long = json.loads(run([*common, "--batch", "1", "--context-tokens", args.prompt]))
    figures = {f"decode, {d['batch']} together": d["tokens_per_second"] for d in short["decode"]}
    figures[f"decode after {args.prompt}"] = long["decode"][0]["tokens_per_second"]
    figures[f"prefill {args.prompt}"] = short["prefill_tokens_per_second"]
    return figures


def llama(args):
    """The same of llama.cpp, each the better of flash attention on and off."""
    best = {}

    def note(case, speed):
        best[case] = max(best.get(case, 0), speed)

    bench = [args.llama / "llama-bench", "-m", args.model, "-t", args.threads, "-fa", "0,1", "-r", "1", "-o", "json"]
    for row in json.loads(run([*bench, "-p", args.prompt, "-n", args.gen])):
        prompt = row["n_prompt"] > 0
        note(f"prefill {args.prompt}" if prompt else "decode, 1 together", row["avg_ts"])
    for row in json.loads(run([*bench, "-p", "0", "-n", args.gen, "-d", args.prompt])):
        note(f"decode after {args.prompt}", row["avg_ts"])
    for flash in ["on", "off"]:
        batched = [args.llama / "llama-batched-bench", "-m", args.model, "-t", args.threads, "-fa", flash]
        batched += ["-c", "16384", "-npp", "1", "-ntg", args.gen, "-npl", ",".join(map(str, args.batch))]
        for line in run([*batched, "--output-format", "jsonl"]).splitlines():
            if line.startswith("{"):
                row = json.loads(line)
                note(f"decode, {row['pl']} together", row["speed_tg"])
    return best


def table(rows, unit):
    """`rows`: name -> case -> figures of each round. Ratios are to the last row."""
    names = list(rows)
    peer = names[-1]
    print(f"\n{'':24}" + "".join(f"{name:>20}" for name in names) + f"   {unit}, medians (ratios to {peer})")
    for case in rows[peer]:
        medians = [statistics.median(rows[name][case]) for name in names]
        cells = [f"{m:12.1f} ({m / medians[-1]:4.2f})" for m in medians[:-1]] + [f"{medians[-1]:20.1f}"]
        print(f"{case:24}" + "".join(f"{cell:>20}" for cell in cells), flush=True)


def engine(args):
    asked = {activations: functools.partial(ours, args, activations) for activations in args.activations}
    asked["llama.cpp"] = functools.partial(llama, args)
    rows = {name: {} for name in asked}
    for number in range(1, args.rounds + 1):
        for name, ask in asked.items():
            print(f"round {number} of {args.rounds}: {name}", file=sys.stderr, flush=True)
            for case, speed in ask().items():
                rows[name].setdefault(case, []).append(speed)
    table(rows, "tok/s")


class Server:
    def __init__(self, text):
        self.name, self.url, self.key, *pids = text.split("=")
        self.pids = [int(pid) for pid in pids[0].split(",")] if pids else []

    def signal(self, which):
        for pid in self.pids:
            try:
                os.kill(pid, which)
            except ProcessLookupError:
                sys.exit(f"{self.name}: there is no process {pid}; give those that serve now")


def serve(args):
    servers = [Server(text) for text in args.servers]
    rows = {server.name: {} for server in servers}
    try:
        for number in range(1, args.rounds + 1):
            for asked in servers:
                print(f"round {number} of {args.rounds}: {asked.name}", file=sys.stderr, flush=True)
                for server in servers:
                    server.signal(signal.SIGCONT if server is asked else signal.SIGSTOP)
                command = [args.cluster, "bench", "serve", "--json", "--url", asked.url, "--api-key", asked.key]
                command += ["--concurrency", args.concurrency, "--prompt-tokens", args.prompt_tokens]
                command += ["--max-tokens", args.gen, "--requests", args.requests, "--seed", args.seed + number]
                measured = json.loads(run(command))["results"][0]
                if measured["failures"]:
                    sys.exit(f"{asked.name}: {measured}")
                for case in args.figures:
                    # There is no time between tokens where each answer is one.
                    if measured[case] is not None:
                        rows[asked.name].setdefault(case, []).append(measured[case])
    finally:
        for server in servers:
            server.signal(signal.SIGCONT)
    table(rows, "")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cluster", type=pathlib.Path, default=CLUSTER, help=f"our binary [default: {CLUSTER}]")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gen", type=int, default=128, help="tokens of each answer")
    what = parser.add_subparsers(required=True)
    of = what.add_parser("engine")
    of.add_argument("--llama", type=pathlib.Path, required=True)
    of.add_argument("--model", type=pathlib.Path, required=True)
    of.add_argument("--threads", type=int, default=2)
    of.add_argument("--activations", type=lambda text: text.split(","), default=["int16", "int8"])
    of.add_argument("--prompt", type=int, default=512)
    of.add_argument("--batch", type=int, nargs="+", default=[16, 32])
    of.set_defaults(call=engine)
    of = what.add_parser("serve")
    of.add_argument("servers", nargs="+", metavar="NAME=URL=KEY[=PID,PID]")
    of.add_argument("--concurrency", type=int, default=16)
    of.add_argument("--prompt-tokens", type=int, default=83)
    of.add_argument("--requests", type=int, default=64)
    of.add_argument("--seed", type=int, default=time.time_ns(), help="of the first round's prompts [default: a new one]")
    of.add_argument(
        "--figures", nargs="+", default=["output_tokens_per_second", "ttft_p50_ms", "inter_token_p99_ms"]
    )
    of.set_defaults(call=serve)
    args = parser.parse_args()
    args.call(args)


if __name__ == "__main__":
    main()
