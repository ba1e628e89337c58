"""What PyTorch makes of products in bf16 on this machine, as one JSON object.

    python3 torch_rate.py DEVICE ROWS N,K [N,K ...]        # DEVICE: cuda, or cpu to see that it runs

`rates`: of y[ROWS, N] = x[ROWS, K] · W[N, K]ᵀ, operations per second (2 · ROWS · N · K), the best of several runs of many calls.
Without torch, or without the device, `why` says so and the exit code is 0.
"""
import json, sys, time

device, rows, *shapes = sys.argv[1:]
try:
    import torch
    if device == "cuda" and not torch.cuda.is_available():
        raise ImportError("torch sees no GPU")
except ImportError as e:
    print(json.dumps({"why": str(e)}))
    sys.exit()

wait = torch.cuda.synchronize if device == "cuda" else lambda: None
rates = []
for shape in shapes:
    n, k = map(int, shape.split(","))
    x, w = (torch.randn(m, k, dtype=torch.bfloat16, device=device) for m in (int(rows), n))
    count = 20 if device == "cuda" else 1
    best = float("inf")
    for _ in range(8):
        wait()
        start = time.perf_counter()
        for _ in range(count):
            torch.nn.functional.linear(x, w)
        wait()
        best = min(best, (time.perf_counter() - start) / count)
    rates.append({"rows": int(rows), "n": n, "k": k, "flops": 2 * int(rows) * n * k / best})
print(json.dumps({"version": torch.__version__, "rates": rates}))
