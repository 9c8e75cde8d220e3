"""Steps a CPU second of 1 and 2 threads, spinning and sleeping, on a machine with other work.

.venv/bin/python benchmarks/threads.py --busy 8 --seconds 10
"""

import argparse
import os
import subprocess
import sys

STEPS = """
import sys, time, torch
torch.manual_seed(0)
torch.set_num_threads(int(sys.argv[1]))
D = 192
layers = [torch.nn.Sequential(torch.nn.LayerNorm(D), torch.nn.Linear(D, 4 * D), torch.nn.GELU(),
                              torch.nn.Linear(4 * D, D)) for _ in range(4)]
model, x = torch.nn.Sequential(*layers), torch.randn(2048, D)
model(x).square().mean().backward()
started, used, steps = time.perf_counter(), time.process_time(), 0
while time.perf_counter() - started < float(sys.argv[2]):
    model(x).square().mean().backward()
    steps += 1
print(steps / (time.perf_counter() - started), steps / (time.process_time() - used))
"""

WAITING = ((1, ""), (2, ""), (2, "GOMP_SPINCOUNT=3000"), (2, "OMP_WAIT_POLICY=passive"))


def main(arguments: list[str]) -> int:
    """Measure beside busy loops of its own, which end with it; print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--busy", type=int, default=8, help="busy processes beside it")
    parser.add_argument("--seconds", type=float, default=10)
    given = parser.parse_args(arguments)
    loops = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(given.busy)
    ]
    try:
        print("| threads | waiting | steps a second | steps a CPU second |\n|---|---|---|---|")
        for threads, waiting in WAITING:
            command = [sys.executable, "-c", STEPS, str(threads), str(given.seconds)]
            environment = os.environ | dict([waiting.split("=")] if waiting else [])
            done = subprocess.run(
                command, env=environment, stdout=subprocess.PIPE, text=True, check=True
            )
            rates = (f"{float(value):.2f}" for value in done.stdout.split())
            print(f"| {threads} | {waiting or 'unset'} | {' | '.join(rates)} |", flush=True)
    finally:
        for loop in loops:
            loop.kill()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
