"""Peak memory of a conversion with many experts, from a checkpoint of a size that matters.

    python3 expert_heavy.py ASHLAR WORK [--memory 512MiB] [--layers 5] [--recipe deepseek-v3-2bit-experts] [--sparse]

Writes to WORK a checkpoint in the naming and precision of DeepSeek-V3 (FP8 in blocks of 128, 256 experts in each layer but the
first; 5 layers are 6.5 GB), converts it, and prints VmHWM of the process, which must stay below --memory + 200 MB. Weights are
one random block over and over; with --sparse FP8 ones are holes in the file, which take no room on disk. What was written is
removed.
"""
import argparse, json, os, shutil, struct, subprocess, sys, time

HIDDEN, EXPERT, EXPERTS, RANK, HEADS = 2048, 1024, 256, 512, 8
CONFIG = dict(
    architectures=["DeepseekV3ForCausalLM"], model_type="deepseek_v3", hidden_size=HIDDEN, intermediate_size=4096, moe_intermediate_size=EXPERT,
    first_k_dense_replace=1, num_attention_heads=HEADS, num_key_value_heads=HEADS, q_lora_rank=RANK, kv_lora_rank=RANK, qk_nope_head_dim=128,
    qk_rope_head_dim=64, v_head_dim=128, n_routed_experts=EXPERTS, num_experts_per_tok=8, n_shared_experts=1, n_group=8, topk_group=4,
    norm_topk_prob=True, routed_scaling_factor=2.5, scoring_func="sigmoid", topk_method="noaux_tc", rms_norm_eps=1e-6, rope_theta=10000,
    max_position_embeddings=4096, vocab_size=32000, hidden_act="silu", tie_word_embeddings=False,
    quantization_config=dict(quant_method="fp8", fmt="e4m3", weight_block_size=[128, 128]))


def tensors(layers):
    def fp8(name, n, k):
        yield name, "F8_E4M3", [n, k]
        yield name + "_scale_inv", "F32", [-(-n // 128), -(-k // 128)]

    yield "model.embed_tokens.weight", "BF16", [32000, HIDDEN]
    for i in range(layers):
        p = f"model.layers.{i}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield p + norm + ".weight", "BF16", [HIDDEN]
        a = p + "self_attn."
        yield from fp8(a + "q_a_proj.weight", RANK, HIDDEN)
        yield a + "q_a_layernorm.weight", "BF16", [RANK]
        yield from fp8(a + "q_b_proj.weight", HEADS * 192, RANK)
        yield from fp8(a + "kv_a_proj_with_mqa.weight", RANK + 64, HIDDEN)
        yield a + "kv_a_layernorm.weight", "BF16", [RANK]
        yield from fp8(a + "kv_b_proj.weight", HEADS * 256, RANK)
        yield from fp8(a + "o_proj.weight", HIDDEN, HEADS * 128)
        mlps = [(p + "mlp.", 4096)]
        if i:
            yield p + "mlp.gate.weight", "BF16", [EXPERTS, HIDDEN]
            yield p + "mlp.gate.e_score_correction_bias", "F32", [EXPERTS]
            mlps = [(p + f"mlp.experts.{e}.", EXPERT) for e in range(EXPERTS)] + [(p + "mlp.shared_experts.", EXPERT)]
        for m, width in mlps:
            yield from fp8(m + "gate_proj.weight", width, HIDDEN)
            yield from fp8(m + "up_proj.weight", width, HIDDEN)
            yield from fp8(m + "down_proj.weight", HIDDEN, width)
    yield "model.norm.weight", "BF16", [HIDDEN]
    yield "lm_head.weight", "BF16", [32000, HIDDEN]


def write(src, layers, sparse):
    size = {"F8_E4M3": 1, "BF16": 2, "F32": 4}
    # Codes without NaN; bf16 and f32 of about 0.01.
    random = bytes(b & 0xF7 for b in os.urandom(4 << 20))
    fill = {"F8_E4M3": random, "BF16": b"\x24\x3c" * (2 << 20), "F32": struct.pack("<f", 0.01) * (1 << 20)}
    header, at, plan = {}, 0, []
    for name, dtype, shape in tensors(layers):
        n = size[dtype]
        for d in shape:
            n *= d
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + n]}
        plan.append((dtype, n))
        at += n
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(src, "model.safetensors"), "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for dtype, n in plan:
            block = fill[dtype]
            if sparse and dtype == "F8_E4M3":
                f.seek(n, os.SEEK_CUR)
                n = 0
            while n:
                f.write(block[:n])
                n -= min(n, len(block))
    json.dump(CONFIG | {"num_hidden_layers": layers}, open(os.path.join(src, "config.json"), "w"))
    return at


def bytes_of(text):
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("GB", 10**9), ("MB", 10**6)):
        if text.endswith(unit):
            return int(float(text[: -len(unit)]) * factor)
    return int(text)


def main():
    args = argparse.ArgumentParser()
    args.add_argument("ashlar")
    args.add_argument("work")
    args.add_argument("--memory", default="512MiB")
    args.add_argument("--layers", type=int, default=5)
    args.add_argument("--recipe", default="deepseek-v3-2bit-experts")
    args.add_argument("--sparse", action="store_true")
    a = args.parse_args()
    work = os.path.join(a.work, "expert-heavy")
    src, out = os.path.join(work, "src"), os.path.join(work, "out")
    os.makedirs(src)
    try:
        source = write(src, a.layers, a.sparse)
        start = time.time()
        child = subprocess.Popen([a.ashlar, "convert", src, "-o", out, "--recipe", a.recipe, "--memory", a.memory, "--quiet"])
        peak = 0
        while child.poll() is None:
            try:
                for line in open(f"/proc/{child.pid}/status"):
                    if line.startswith("VmHWM:"):
                        peak = max(peak, int(line.split()[1]) * 1024)
            except OSError:
                pass
            time.sleep(0.01)
        pack = sum(os.path.getsize(os.path.join(out, f)) for f in os.listdir(out))
        bound = bytes_of(a.memory) + 200_000_000
        print(f"source {source / 1e9:.2f} GB, pack {pack / 1e9:.2f} GB, {time.time() - start:.0f} s, peak resident {peak / 1e6:.0f} MB, bound {bound / 1e6:.0f} MB")
        sys.exit(child.returncode or (0 if peak <= bound else 1))
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
