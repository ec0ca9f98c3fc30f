"""What the PyTorch programs of this folder share: a server that makes steps and says how long they took.

It reads a line and answers by one line of JSON. The first line comes unasked, when it is ready:
{"ready": true, "parameters": .., "start_mib": .., "version": ..}; `start_mib` is what importing PyTorch alone takes.

    warmup N   N steps                                      {"seconds": [..], "cpu_seconds": [..], "peak_mib": .., "losses": {..}}
    step N     the same, meant to be looked at
    loss       losses without stochastic depth; nothing moves  {"losses": {"NAME": ..}}
    quit       the end                                      {"bye": true}

A request that fails is answered by {"error": ".."}.

Each program has a class: Step(folder, precision) with `train()`, which makes a step and gives its losses by name,
`losses()`, and `trained_numbers()`, how many numbers are trained; `version` is said instead of PyTorch's if it is there.
"""

import argparse
import json
import math
import pathlib
import sys
import time

import torch


def peak_mib():
    """Largest resident memory of the process so far."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024.0
    return None


def timed(step, count):
    seconds, cpu, losses = [], [], {}
    for _ in range(count):
        started, cpu_started = time.perf_counter(), time.process_time()
        losses = step.train()
        seconds.append(time.perf_counter() - started)
        cpu.append(time.process_time() - cpu_started)
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_mib": peak_mib(), "losses": losses}


def answer(step, line):
    match line.split():
        case ["warmup" | "step", count]:
            return timed(step, int(count))
        case ["loss"]:
            return {"losses": step.losses()}
        case ["quit"]:
            return {"bye": True}
    raise ValueError(f"`{line.strip()}`: there are `warmup N`, `step N`, `loss` and `quit`")


def say(reply):
    print(json.dumps(reply), flush=True)


def serve(make):
    """The whole program: `make` is the class of its step."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    start = peak_mib()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    step = make(arguments.folder, arguments.precision)
    version = getattr(step, "version", f"PyTorch {torch.__version__}")
    say({"ready": True, "parameters": step.trained_numbers(), "start_mib": start, "version": version})
    for line in sys.stdin:
        try:
            reply = answer(step, line)
            if not all(map(math.isfinite, reply.get("losses", {}).values())):
                reply = {"error": f"losses are not finite: {reply['losses']}"}
        except Exception as error:  # whoever asked decides what to do about it
            reply = {"error": f"{type(error).__name__}: {error}"}
        say(reply)
        if "bye" in reply:
            return
