"""How much a gateway adds to a request: LiteLLM's proxy in front of a running cluster, beside the
cluster's own gateway, in one run.

    python3 -m venv peer && peer/bin/pip install 'litellm[proxy]==1.*'
    cluster up --model tiny.gguf --workers 1 --no-demo        # any model; a small one shows most
    peer/bin/python tests/bench/litellm/measure.py

Both are asked the same by the same client, in turn, so that a busy moment hits both. LiteLLM's overhead
is what a request takes through it less what it takes without it. The cluster's own is what its histogram
`trireme_gateway_overhead_seconds` has of the same requests: what they spend in the gateway before their
dispatch and after their last token, with authentication, admission, limits and durable settlement. LiteLLM
runs without a database, and so without keys of tenants, budgets and records: what it does is less.
"""

import argparse
import concurrent.futures
import http.client
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse

MASTER_KEY = "sk-measure"


def last_cluster():
    path = pathlib.Path.home() / ".local/state/trireme/last.json"
    known = json.loads(path.read_text())
    return known["coordinators"][0], known["api_key"]


class Client:
    """One kept-alive connection that asks for short completions."""

    def __init__(self, url, key, model):
        self.to = urllib.parse.urlparse(url)
        self.connection = http.client.HTTPConnection(self.to.hostname, self.to.port, timeout=60)
        self.headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        self.body = json.dumps(
            {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1, "temperature": 0}
        )

    def ask(self):
        """Seconds for one whole answer."""
        began = time.perf_counter()
        self.connection.request("POST", "/v1/chat/completions", self.body, self.headers)
        answer = self.connection.getresponse()
        text = answer.read()
        took = time.perf_counter() - began
        if answer.status != 200:
            raise RuntimeError(f"{self.to.netloc}: {answer.status} {text[:300]!r}")
        return took


def served_models(url, key):
    to = urllib.parse.urlparse(url)
    connection = http.client.HTTPConnection(to.hostname, to.port, timeout=60)
    connection.request("GET", "/v1/models", headers={"authorization": f"Bearer {key}"})
    return [model["id"] for model in json.loads(connection.getresponse().read())["data"]]


def histogram(url, name):
    """Cumulative counts by upper bound, summed over labels."""
    to = urllib.parse.urlparse(url)
    connection = http.client.HTTPConnection(to.hostname, to.port, timeout=60)
    connection.request("GET", "/metrics")
    counts = {}
    for line in connection.getresponse().read().decode().splitlines():
        if line.startswith(name + "_bucket{"):
            bound = float(line.split('le="')[1].split('"')[0].replace("+Inf", "inf"))
            counts[bound] = counts.get(bound, 0) + float(line.rsplit(" ", 1)[1])
    return counts


def quantile(before, after, share):
    """The upper bound of the bucket in which that share of what came between lies."""
    counts = {bound: after[bound] - before.get(bound, 0) for bound in sorted(after)}
    whole = counts[float("inf")]
    return next(bound for bound, count in counts.items() if count >= share * whole), int(whole)


def percentile(values, share):
    values = sorted(values)
    return values[max(0, -(-len(values) * share // 100) - 1)]


def start_peer(url, key, model, folder):
    config = {
        "model_list": [
            {
                "model_name": "peer",
                "litellm_params": {"model": f"openai/{model}", "api_base": f"{url}/v1", "api_key": key},
            }
        ],
        "general_settings": {"master_key": MASTER_KEY},
        "litellm_settings": {"telemetry": False, "request_timeout": 60},
    }
    path = pathlib.Path(folder) / "config.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    binary = pathlib.Path(sys.executable).parent / "litellm"
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    log = open(pathlib.Path(folder) / "peer.log", "w")
    port = 4711
    process = subprocess.Popen(
        [str(binary), "--config", str(path), "--host", "127.0.0.1", "--port", str(port)],
        stdout=log, stderr=log, env=environment,
    )
    peer = f"http://127.0.0.1:{port}"
    for _ in range(240):
        try:
            Client(peer, MASTER_KEY, "peer").ask()
            return process, peer
        except (OSError, RuntimeError, http.client.HTTPException):
            if process.poll() is not None:
                break
            time.sleep(0.5)
    process.kill()
    raise SystemExit("LiteLLM did not start:\n" + (pathlib.Path(folder) / "peer.log").read_text()[-2000:])


def in_turn(clients, requests):
    """Seconds of each client's requests, one of each after the other."""
    taken = [[] for _ in clients]
    for _ in range(requests):
        for client, times in zip(clients, taken):
            times.append(client.ask())
    return taken


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="the cluster's gateway (default: the last `cluster up`)")
    parser.add_argument("--api-key")
    parser.add_argument("--requests", type=int, default=300, help="of each, for each connection")
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--no-peer", action="store_true", help="only the cluster's own gateway")
    args = parser.parse_args()
    url, key = (args.url, args.api_key) if args.url else last_cluster()
    model = served_models(url, key)[0]
    name = "trireme_gateway_overhead_seconds"
    with tempfile.TemporaryDirectory() as folder:
        process, peer = (None, None) if args.no_peer else start_peer(url, key, model, folder)
        try:
            def connection(_):
                clients = [Client(url, key, model)] + ([Client(peer, MASTER_KEY, "peer")] if peer else [])
                in_turn(clients, 20)
                return in_turn(clients, args.requests)

            before, began = histogram(url, name), time.perf_counter()
            with concurrent.futures.ThreadPoolExecutor(args.connections) as pool:
                all_taken = list(pool.map(connection, range(args.connections)))
            seconds = time.perf_counter() - began
            after = histogram(url, name)
        finally:
            if process:
                process.terminate()
                process.wait(20)
    direct = [t for taken in all_taken for t in taken[0]]
    ours50, count = quantile(before, after, 0.50)
    ours99, _ = quantile(before, after, 0.99)
    ms = lambda seconds: f"{seconds * 1000:.2f} ms"
    print(f"{args.connections} connections, {count} requests through the cluster's gateway, {count / seconds:.0f} a second")
    print(f"the cluster's own overhead: p50 at most {ms(ours50)}, p99 at most {ms(ours99)} (its histogram)")
    print(f"a whole request to it: p50 {ms(percentile(direct, 50))}, p99 {ms(percentile(direct, 99))}")
    if peer:
        through = [t for taken in all_taken for t in taken[1]]
        added = statistics.median(through) - statistics.median(direct)
        print(f"the same through LiteLLM: p50 {ms(percentile(through, 50))}, p99 {ms(percentile(through, 99))}")
        print(f"LiteLLM adds {ms(added)} (p50): at least {added / ours50:.0f} times the cluster's own")


if __name__ == "__main__":
    main()
