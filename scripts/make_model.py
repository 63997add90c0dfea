#!/usr/bin/env python3
"""Writes a GGUF model of any shape with random weights, for benchmarks and tests (standard library only).

The shape is right and the numbers are sane (logits are finite, about 3 wide), the text is noise.
Weights come from a pool of random blocks that is written over and over, each tensor from another
place in it, so that a model of many gigabytes is made as fast as the disk takes it. The same
options give the same bytes.

The tokenizer is a byte-level BPE over all 256 bytes: merges of pairs, then of pairs and a byte,
fill the vocabulary; the last two tokens are <|begin|> and <|end|>.

  make_model.py --out small.gguf
  make_model.py --arch qwen3 --n-embd 1024 --layers 28 --heads 16 --kv-heads 8 --head-dim 128 \\
      --ffn 3072 --vocab 151936 --tied --type Q8_0 --out draft.gguf
  make_model.py --n-embd 4096 --layers 32 --heads 32 --kv-heads 8 --ffn 14336 --vocab 128256 \\
      --type Q4_K_M --out target.gguf

A mixture of experts, --experts of them as wide as --ffn:

  make_model.py --arch qwen3moe --n-embd 1024 --layers 12 --ffn 512 --experts 64 --experts-used 8 \\
      --type Q4_K --out mixture.gguf

with --router-skew S some of them are hot: of a layer's, in an order of its own, the r-th is asked about
r^-S times as often as the first, but none by more than 45 % of the rows (the router has no bias, so
the rows of its matrix are scaled, and a logit of any width is below 0 half of the time).

A hybrid: every fourth layer attends, the others have a state (the gated delta rule), with as many
heads, of the same size:

  make_model.py --arch qwen35 --n-embd 1024 --layers 8 --heads 16 --kv-heads 4 --type Q8_0 --out hybrid.gguf

A pair whose draft is right often: layers from --faint-from on add F times what others do, and the
model that ends before them is the same but for those (all other options alike, no Q4_K_M):

  make_model.py --layers 8 --faint-from 2 --faint 0.05 --type Q8_0 --out target.gguf
  make_model.py --layers 2 --type Q8_0 --out draft.gguf
"""
import argparse
import array
import bisect
import math
import os
import random
import statistics
import struct
import sys

ALIGNMENT = 32
POOL_ELEMENTS = 1 << 18
# name: (id, elements of a block, bytes of a block)
TYPES = {
    "F32": (0, 1, 4), "F16": (1, 1, 2), "BF16": (30, 1, 2),
    "Q4_0": (2, 32, 18), "Q4_1": (3, 32, 20), "Q5_0": (6, 32, 22), "Q5_1": (7, 32, 24),
    "Q8_0": (8, 32, 34), "Q2_K": (10, 256, 84), "Q3_K": (11, 256, 110), "Q4_K": (12, 256, 144),
    "Q5_K": (13, 256, 176), "Q6_K": (14, 256, 210), "IQ2_XXS": (16, 256, 66),
    "IQ2_XS": (17, 256, 74), "IQ3_XXS": (18, 256, 98), "IQ1_S": (19, 256, 50),
    "IQ4_NL": (20, 32, 18), "IQ3_S": (21, 256, 110), "IQ2_S": (22, 256, 82),
    "IQ4_XS": (23, 256, 136), "IQ1_M": (29, 256, 56), "TQ1_0": (34, 256, 54),
    "TQ2_0": (35, 256, 66), "MXFP4": (39, 32, 17), "NVFP4": (40, 64, 36), "Q1_0": (41, 128, 18),
    "Q2_0": (42, 64, 18),
}
N_CONV = 4      # positions that a hybrid's convolution sees
INTERVAL = 4    # a hybrid's layers up to one of attention, with it
HOTTEST = 0.45  # of rows that ask an expert, where routers are skewed
LOUD = 30.0     # sigma of a bias of keys as the first and last layers of Qwen2.5 have it
GUESSED = 1024  # a file type that says: look at the tensors
FILE_TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10,
    "Q3_K": 11, "Q4_K": 14, "Q4_K_M": 15, "Q5_K": 16, "Q6_K": 18, "IQ2_XXS": 19, "IQ2_XS": 20,
    "IQ3_XXS": 23, "IQ1_S": 24, "IQ4_NL": 25, "IQ3_S": 26, "IQ2_S": 28, "IQ4_XS": 30, "IQ1_M": 31,
    "BF16": 32, "TQ1_0": 36, "TQ2_0": 37, "MXFP4": 38, "NVFP4": GUESSED, "Q1_0": GUESSED,
    "Q2_0": GUESSED,
}
VECTORS = {"norm": (1, 0.1), "bias": (0, 0.1), "loud": (0, LOUD), "decay": (-1, 0.2)}  # mean, sigma
U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9  # value types of the format


# --- blocks of random weights with standard deviation sigma ---

# Quants without their odd one out (-128, -8), so that weights have mean 0.
NO_MINUS_128 = bytes(0 if b == 0x80 else b for b in range(256))
NO_MINUS_8 = bytes((b & 15 or 8) | (b >> 4 or 8) << 4 for b in range(256))


def block_q8_0(rng, sigma):
    return struct.pack("<e", sigma / 73.3) + rng.randbytes(32).translate(NO_MINUS_128)


def block_q4_0(rng, sigma):
    return struct.pack("<e", sigma / 4.18) + rng.randbytes(16).translate(NO_MINUS_8)


def block_q4_k(rng, sigma):
    """value = d * scale * q - d_min * minimum; with minimum = scale and d_min = 7.5 d, mean 0."""
    d = sigma / (4.61 * 33.3)
    s = [rng.randint(16, 48) for _ in range(8)]
    head = [s[i] | (s[i + 4] >> 4) << 6 for i in range(4)]
    tail = [(s[i] & 15) | (s[i] & 15) << 4 for i in range(4, 8)]
    return struct.pack("<ee", d, 7.5 * d) + bytes(head + head + tail) + rng.randbytes(128)


def block_q6_k(rng, sigma):
    d = sigma / (18.5 * 33.3)
    scales = [rng.randint(16, 48) * rng.choice((-1, 1)) for _ in range(16)]
    return rng.randbytes(192) + struct.pack("<16be", *scales, d)


def block_q4_1(rng, sigma):
    d = sigma / 4.61
    return struct.pack("<ee", d, -7.5 * d) + rng.randbytes(16)


def block_q5_1(rng, sigma):
    d = sigma / 9.23
    return struct.pack("<ee", d, -15.5 * d) + rng.randbytes(20)


def block_q2_k(rng, sigma):
    """Scale and minimum alike, as in Q4_K."""
    d = sigma / (1.118 * 8.8)
    scales = bytes(s | s << 4 for s in rng.choices(range(16), k=16))
    return scales + rng.randbytes(64) + struct.pack("<ee", d, 1.5 * d)


def block_q5_k(rng, sigma):
    d = sigma / (9.23 * 33.3)
    return struct.pack("<ee", d, 15.5 * d) + block_q4_k(rng, 1.0)[4:16] + rng.randbytes(160)


def pick(rng, levels, rms):
    """The number of one of the two levels around rms, their squares averaging to rms^2."""
    i = max(bisect.bisect(levels, rms) - 1, 0)
    low, high = levels[i] ** 2, levels[i + 1] ** 2
    return i + (rng.random() * (high - low) < rms * rms - low)


E2M1_RMS = 2.926  # of 4-bit floats
E8M0 = [2.0 ** (e - 127) for e in range(255)]
E4M3 = [(m / 8 + (e > 0)) * 2.0 ** (max(e, 1) - 7) for e in range(16) for m in range(8)]


def block_mxfp4(rng, sigma):
    return bytes([pick(rng, E8M0, sigma / E2M1_RMS)]) + rng.randbytes(16)


def block_nvfp4(rng, sigma):
    return bytes(pick(rng, E4M3, sigma / E2M1_RMS) for _ in range(4)) + rng.randbytes(32)


def block_iq1_m(rng, sigma):
    """The scale lies in the top nibbles of the last four words."""
    block = bytearray(rng.randbytes(56))
    half, = struct.unpack("<H", struct.pack("<e", rng.choice((-1, 1)) * sigma / 7.19))
    for i in range(4):
        block[49 + 2 * i] = block[49 + 2 * i] & 15 | (half >> 4 * i & 15) << 4
    return bytes(block)


BLOCKS = {"Q8_0": block_q8_0, "Q4_0": block_q4_0, "Q4_K": block_q4_k, "Q6_K": block_q6_k,
          "Q4_1": block_q4_1, "Q5_1": block_q5_1, "Q2_K": block_q2_k, "Q5_K": block_q5_k,
          "MXFP4": block_mxfp4, "NVFP4": block_nvfp4, "IQ1_M": block_iq1_m}

# Types whose blocks are random bits but for one half d: (its place, root mean square of the values
# where d is 1). The sign of d is random, which makes the mean 0.
RANDOM_BITS = {
    "Q5_0": (0, 9.25), "Q3_K": (108, 43.3), "IQ2_XXS": (0, 53.2), "IQ2_XS": (0, 55.7),
    "IQ2_S": (0, 56.3), "IQ3_XXS": (0, 142.5), "IQ3_S": (0, 140.6), "IQ1_S": (0, 7.19),
    "IQ4_NL": (0, 67.2), "IQ4_XS": (0, 1245.5), "TQ1_0": (52, 0.817), "TQ2_0": (64, 1.225),
    "Q1_0": (0, 1.0), "Q2_0": (0, 1.225),
}


def random_block(type_name, rng, sigma):
    if type_name in BLOCKS:
        return BLOCKS[type_name](rng, sigma)
    at, rms = RANDOM_BITS[type_name]
    block = bytearray(rng.randbytes(TYPES[type_name][2]))
    struct.pack_into("<e", block, at, rng.choice((-1, 1)) * sigma / rms)
    return bytes(block)


def round_bf16(value):
    """The upper half of a float's bits, to nearest even."""
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    return bits + 0x7FFF + (bits >> 16 & 1) >> 16


class Pools:
    """Bytes of random blocks by (type, sigma). Their number is odd, so that rows, whose blocks are
    mostly powers of two, do not repeat soon."""

    def __init__(self, seed, n_elements):
        self.seed = seed
        self.n_elements = min(n_elements, POOL_ELEMENTS)
        self.pools = {}

    def get(self, type_name, sigma):
        key = (type_name, sigma)
        if key not in self.pools:
            rng = random.Random("%d %s %r" % (self.seed, type_name, sigma))
            n = max(self.n_elements // TYPES[type_name][1], 2) - 1 | 1
            if TYPES[type_name][1] > 1:
                pool = b"".join(random_block(type_name, rng, sigma) for _ in range(n))
            elif type_name == "F16":
                pool = struct.pack("<%de" % n, *(rng.gauss(0, sigma) for _ in range(n)))
            else:
                values = array.array("f", (rng.gauss(0, sigma) for _ in range(n)))
                if type_name == "BF16":
                    values = array.array("H", (round_bf16(v) for v in values))
                if sys.byteorder == "big":
                    values.byteswap()
                pool = values.tobytes()
            self.pools[key] = pool
        return self.pools[key]


# --- the tokenizer ---

def byte_alphabet():
    """The 256 printable characters that stand for the bytes in byte-level BPE."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


def make_tokenizer(n_vocab):
    """(tokens, merges): bytes first, then what merges make, common letters first."""
    letters = byte_alphabet()
    common = [letters[b] for b in b" etaoinshrdlucmfwypvbgkjqxz"]
    order = common + [c for c in letters if c not in common]
    tokens, merges = list(letters), []
    n_words = n_vocab - 2
    left_halves = order
    while len(tokens) < n_words:
        made = []
        for left in left_halves:
            for right in order:
                if len(tokens) == n_words:
                    break
                tokens.append(left + right)
                merges.append(left + " " + right)
                made.append(left + right)
        left_halves = made
    return tokens + ["<|begin|>", "<|end|>"], merges


# --- the file ---

def string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def entry(key, value_type, value):
    head = string(key) + struct.pack("<I", value_type)
    if value_type == STRING:
        return head + string(value)
    if value_type == ARRAY:
        element, items = value
        head += struct.pack("<IQ", element, len(items))
        if element == STRING:
            return head + b"".join(string(item) for item in items)
        return head + struct.pack("<%d%s" % (len(items), {I32: "i"}[element]), *items)
    return head + struct.pack({U32: "<I", F32: "<f", BOOL: "<?"}[value_type], value)


def metadata(a):
    tokens, merges = make_tokenizer(a.vocab)
    arch = a.arch
    entries = [
        ("general.architecture", STRING, arch),
        ("general.name", STRING, "random weights, seed %d" % a.seed),
        ("general.file_type", U32, FILE_TYPES[a.type]),
        ("general.quantization_version", U32, 2),
        (arch + ".vocab_size", U32, a.vocab),
        (arch + ".context_length", U32, a.ctx),
        (arch + ".embedding_length", U32, a.n_embd),
        (arch + ".block_count", U32, a.layers),
        (arch + ".feed_forward_length", U32, a.ffn),
        (arch + ".attention.head_count", U32, a.heads),
        (arch + ".attention.head_count_kv", U32, a.kv_heads),
        (arch + ".attention.key_length", U32, a.head_dim),
        (arch + ".attention.value_length", U32, a.head_dim),
        (arch + ".attention.layer_norm_rms_epsilon", F32, 1e-6 if arch != "llama" else 1e-5),
        (arch + ".rope.freq_base", F32, a.rope_base),
        (arch + ".rope.dimension_count", U32, a.head_dim),
        ("tokenizer.ggml.model", STRING, "gpt2"),
        ("tokenizer.ggml.pre", STRING,
         {"llama": "llama-bpe", "qwen35": "qwen35"}.get(arch, "qwen2")),
        ("tokenizer.ggml.tokens", ARRAY, (STRING, tokens)),
        ("tokenizer.ggml.token_type", ARRAY, (I32, [1] * (a.vocab - 2) + [3, 3])),
        ("tokenizer.ggml.merges", ARRAY, (STRING, merges)),
        ("tokenizer.ggml.bos_token_id", U32, a.vocab - 2),
        ("tokenizer.ggml.eos_token_id", U32, a.vocab - 1),
        ("tokenizer.ggml.add_bos_token", BOOL, arch == "llama"),
    ]
    if arch == "qwen3moe":
        entries += [(arch + ".expert_count", U32, a.experts),
                    (arch + ".expert_used_count", U32, a.experts_used),
                    (arch + ".expert_feed_forward_length", U32, a.ffn)]
    if arch == "qwen35":
        quarter = a.head_dim // 8
        entries += [(arch + ".full_attention_interval", U32, INTERVAL),
                    (arch + ".rope.dimension_sections", ARRAY,
                     (I32, [a.head_dim // 2 - 2 * quarter, quarter, quarter, 0])),
                    (arch + ".ssm.conv_kernel", U32, N_CONV),
                    (arch + ".ssm.inner_size", U32, a.heads * a.head_dim),
                    (arch + ".ssm.state_size", U32, a.head_dim),
                    (arch + ".ssm.time_step_rank", U32, a.heads),
                    (arch + ".ssm.group_count", U32, a.kv_heads)]
    if a.chat_template is not None:
        entries.append(("tokenizer.chat_template", STRING, a.chat_template))
    return len(entries), b"".join(entry(*e) for e in entries)


def gets_more_bits(i, n):
    """The layers whose attn_v and ffn_down are Q6_K in a Q4_K_M file: the ends and every third."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


def fitting_type(name, n_in):
    """The type, or one with a smaller block when rows are no multiple of its block."""
    for candidate in (name, "Q8_0", "F16"):
        if n_in % TYPES[candidate][1] == 0:
            return candidate
    raise AssertionError("F16 fits every row")


def tensors(a):
    """(name, dims, type, kind): kind is one of VECTORS or the sigma of the weights."""
    n_q, n_kv = a.heads * a.head_dim, a.kv_heads * a.head_dim
    base = "Q4_K" if a.type == "Q4_K_M" else a.type
    better = "Q6_K" if a.type == "Q4_K_M" else a.type

    def matrix(name, n_in, n_out, type_name, sigma=None):
        return name, (n_in, n_out), fitting_type(type_name, n_in), sigma or n_in ** -0.5

    def experts(name, n_in, n_out, type_name):
        name, dims, type_name, sigma = matrix(name, n_in, n_out, type_name)
        return name, (*dims, a.experts), type_name, sigma

    def vector(name, n, kind):
        return name, (n,), "F32", kind

    yield matrix("token_embd.weight", a.n_embd, a.vocab, better if a.tied else base,
                 3 * a.n_embd ** -0.5 if a.tied else 1.0)
    for i in range(a.layers):
        p = "blk.%d." % i
        more = better if gets_more_bits(i, a.layers) else base
        faint = a.faint if i >= a.faint_from else 1
        is_hybrid = a.arch == "qwen35"
        has_state = is_hybrid and (i + 1) % INTERVAL != 0
        yield vector(p + "attn_norm.weight", a.n_embd, "norm")
        if has_state:
            yield matrix(p + "attn_qkv.weight", a.n_embd, n_q + 2 * n_kv, base)
            yield matrix(p + "attn_gate.weight", a.n_embd, n_q, base)
            yield matrix(p + "ssm_conv1d.weight", N_CONV, n_q + 2 * n_kv, "F32")
            yield vector(p + "ssm_dt.bias", a.heads, "bias")
            yield vector(p + "ssm_a", a.heads, "decay")
            yield matrix(p + "ssm_alpha.weight", a.n_embd, a.heads, base)
            yield matrix(p + "ssm_beta.weight", a.n_embd, a.heads, base)
            yield vector(p + "ssm_norm.weight", a.head_dim, "norm")
        else:
            yield matrix(p + "attn_q.weight", a.n_embd, n_q * (2 if is_hybrid else 1), base)
            yield matrix(p + "attn_k.weight", a.n_embd, n_kv, base)
            yield matrix(p + "attn_v.weight", a.n_embd, n_kv, more)
        if a.arch == "qwen2":
            yield vector(p + "attn_q.bias", n_q, "bias")
            yield vector(p + "attn_k.bias", n_kv, "loud" if i in a.loud_keys else "bias")
            yield vector(p + "attn_v.bias", n_kv, "bias")
        if a.arch.startswith("qwen3") and not has_state:
            yield vector(p + "attn_q_norm.weight", a.head_dim, "norm")
            yield vector(p + "attn_k_norm.weight", a.head_dim, "norm")
        output = "ssm_out" if has_state else "attn_output"
        yield matrix(p + output + ".weight", n_q, a.n_embd, base, faint * n_q ** -0.5)
        yield vector(p + ("post_attention" if is_hybrid else "ffn") + "_norm.weight", a.n_embd, "norm")
        if a.arch == "qwen3moe":
            router = matrix(p + "ffn_gate_inp.weight", a.n_embd, a.experts, "F32")
            yield router[:3] + ("router",) if a.router_skew else router
            yield experts(p + "ffn_gate_exps.weight", a.n_embd, a.ffn, base)
            yield experts(p + "ffn_up_exps.weight", a.n_embd, a.ffn, base)
            yield experts(p + "ffn_down_exps.weight", a.ffn, a.n_embd, more)
            continue
        yield matrix(p + "ffn_gate.weight", a.n_embd, a.ffn, base)
        yield matrix(p + "ffn_up.weight", a.n_embd, a.ffn, base)
        yield matrix(p + "ffn_down.weight", a.ffn, a.n_embd, more, faint * a.ffn ** -0.5)
    yield vector("output_norm.weight", a.n_embd, "norm")
    if not a.tied:
        yield matrix("output.weight", a.n_embd, a.vocab, better, 3 * a.n_embd ** -0.5)


def size_of(dims, type_name):
    _, n_block, n_bytes = TYPES[type_name]
    return math.prod(dims) // n_block * n_bytes


def router_scales(skew, n_experts, n_used):
    """Of the router's rows, by rank: an expert whose logit is s times as wide as others' is above a
    threshold of 1 with probability P(|normal| > 1 / s) / 2."""
    shares = [rank ** -skew for rank in range(1, n_experts + 1)]
    low, high = 0, n_experts ** (1 + skew)
    for _ in range(100):  # a row asks n_used of them
        middle = (low + high) / 2
        if sum(min(middle * share, HOTTEST) for share in shares) < n_used:
            low = middle
        else:
            high = middle
    normal = statistics.NormalDist()
    return [-1 / normal.inv_cdf(min(high * share, HOTTEST)) for share in shares]


def write_router(f, a, pools, rng, dims):
    n_embd, n_experts = dims
    pool = [value for value, in struct.iter_unpack("<f", pools.get("F32", n_embd ** -0.5))]
    scales = router_scales(a.router_skew, n_experts, a.experts_used)
    rng.shuffle(scales)
    at = rng.randrange(len(pool))
    for scale in scales:
        row = (scale * pool[(at + i) % len(pool)] for i in range(n_embd))
        f.write(struct.pack("<%df" % n_embd, *row))
        at += n_embd


def write_tensor(f, a, pools, index, dims, type_name, kind):
    rng = random.Random("%d tensor %d" % (a.seed, index))
    if kind == "router":
        write_router(f, a, pools, rng, dims)
        return
    if not isinstance(kind, float):
        mean, sigma = VECTORS[kind]
        f.write(struct.pack("<%df" % dims[0], *(rng.gauss(mean, sigma) for _ in range(dims[0]))))
        return
    pool = memoryview(pools.get(type_name, kind))
    n_block = TYPES[type_name][2]
    at = rng.randrange(len(pool) // n_block) * n_block
    left = size_of(dims, type_name)
    while left:
        n = min(left, len(pool) - at)
        f.write(pool[at:at + n])
        left -= n
        at = 0


def write_model(a, f):
    n_keys, keys = metadata(a)
    directory, offset, all_tensors = [], 0, list(tensors(a))
    for name, dims, type_name, _ in all_tensors:
        directory.append(string(name) + struct.pack("<I%dQIQ" % len(dims), len(dims), *dims,
                                                    TYPES[type_name][0], offset))
        offset += -(-size_of(dims, type_name) // ALIGNMENT) * ALIGNMENT
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(all_tensors), n_keys) + keys + b"".join(directory)
    f.write(head + bytes(-len(head) % ALIGNMENT))
    pools = Pools(a.seed, max(math.prod(dims) for _, dims, _, _ in all_tensors))
    per_layer = sum(name.startswith("blk.0.") for name, _, _, _ in all_tensors)
    n_faint = per_layer * (a.layers - a.faint_from)
    for i, (name, dims, type_name, kind) in enumerate(all_tensors):
        seed_index = i - n_faint if name.startswith("output") else i  # as in the draft's file
        write_tensor(f, a, pools, seed_index, dims, type_name, kind)
        f.write(bytes(-size_of(dims, type_name) % ALIGNMENT))
    return len(all_tensors)


def parse_args(argv):
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--arch", choices=("llama", "qwen2", "qwen3", "qwen3moe", "qwen35"), default="llama")
    p.add_argument("--n-embd", type=int, default=256)
    p.add_argument("--layers", type=int, default=4)
    p.add_argument("--heads", type=int, default=4)
    p.add_argument("--kv-heads", type=int, help="default: as many as heads")
    p.add_argument("--head-dim", type=int, help="default: n-embd / heads")
    p.add_argument("--ffn", type=int, help="default: 3 * n-embd")
    p.add_argument("--experts", type=int, default=32, help="of qwen3moe, each as wide as --ffn")
    p.add_argument("--experts-used", type=int, default=4)
    p.add_argument("--router-skew", type=float, default=0, metavar="S",
                   help="0..4: how much hotter some experts are (default: 0)")
    p.add_argument("--vocab", type=int, default=1024)
    p.add_argument("--ctx", type=int, default=4096)
    p.add_argument("--rope-base", type=float, help="default: 10000 (llama), 1000000 (qwen)")
    p.add_argument("--type", choices=sorted(FILE_TYPES), default="Q4_K_M")
    p.add_argument("--tied", action="store_true", help="no output.weight: token_embd serves twice")
    p.add_argument("--faint-from", type=int, metavar="LAYER", help="default: no layer is faint")
    p.add_argument("--faint", type=float, default=0.1, metavar="F", help="0.001..1 (default: 0.1)")
    p.add_argument("--loud-keys", type=int, nargs="+", default=[], metavar="LAYER",
                   help="qwen2: layers whose biases of keys are %g wide, others' 0.1" % LOUD)
    p.add_argument("--chat-template", metavar="TEXT", help="default: none")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--out", required=True)
    a = p.parse_args(argv)
    a.kv_heads = a.kv_heads if a.kv_heads is not None else a.heads
    if a.head_dim is None and a.heads > 0:
        a.head_dim = a.n_embd // a.heads
    a.ffn = a.ffn if a.ffn is not None else 3 * a.n_embd
    if a.rope_base is None:
        a.rope_base = 1e4 if a.arch == "llama" else 1e6
    if a.faint_from is None:
        a.faint_from = a.layers
    if not 0.001 <= a.faint <= 1:
        p.error("--faint is %g; 0.001..1 are allowed" % a.faint)
    if not 0 <= a.router_skew <= 4:
        p.error("--router-skew is %g; 0..4 are allowed" % a.router_skew)
    if a.router_skew and (a.arch != "qwen3moe" or a.experts_used > 0.4 * a.experts):
        p.error("--router-skew is for qwen3moe with no more than 2 of 5 experts asked")
    limits = {"n_embd": (32, 1 << 16), "layers": (1, 512), "heads": (1, 1024),
              "kv_heads": (1, 1024), "head_dim": (2, 1024), "ffn": (32, 1 << 18),
              "vocab": (258, 1 << 20), "ctx": (1, 1 << 24), "faint_from": (1, a.layers),
              "experts": (1, 1024), "experts_used": (1, min(a.experts, 64))}
    for name, (low, high) in limits.items():
        value = getattr(a, name)
        if not low <= value <= high:
            p.error("--%s is %d; %d..%d are allowed" % (name.replace("_", "-"), value, low, high))
    if a.heads % a.kv_heads:
        p.error("--heads (%d) must be a multiple of --kv-heads (%d)" % (a.heads, a.kv_heads))
    if a.arch == "qwen35" and a.faint_from < a.layers:
        p.error("--faint-from is for models whose layers are alike; qwen35's are not")
    if a.head_dim % 2:
        p.error("--head-dim is %d; it must be even" % a.head_dim)
    return a


def main(argv):
    a = parse_args(argv)
    try:
        with open(a.out, "wb") as f:
            n = write_model(a, f)
    except OSError as e:
        sys.exit("%s: %s" % (a.out, e.strerror))
    print("%s: %d tensors, %d bytes" % (a.out, n, os.path.getsize(a.out)))


if __name__ == "__main__":
    main(sys.argv[1:])
