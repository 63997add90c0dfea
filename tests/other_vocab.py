#!/usr/bin/env python3
"""Gives a GGUF model another vocabulary without changing what it computes (standard library only):
its tokens are renumbered, and some are replaced by words nobody writes.

usage: other_vocab.py IN.gguf OUT.gguf [--permute] [--scramble] [--replace SHARE]

--permute renumbers all tokens but the first and last 16; --scramble has the model take them for others,
with the vocabulary as it was: what it says is nonsense; --replace SHARE gives new texts to so many
of the tokens."""
import argparse
import random
import struct

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes by value type
STRING, ARRAY = 8, 9
BLOCKS = {0: (1, 4), 1: (1, 2), 8: (32, 34)}  # tensor type: elements and bytes of a block


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, n):
        self.at += n
        return self.data[self.at - n:self.at]

    def number(self, form):
        return struct.unpack('<' + form, self.take(struct.calcsize('<' + form)))[0]

    def string(self):
        return self.take(self.number('Q'))

    def value(self, kind):
        """Strings and lists of them are taken apart; anything else stays bytes."""
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            return self.take(SIZES[kind])
        item, n = self.number('I'), self.number('Q')
        return item, [self.value(item) for _ in range(n)]


def string(text):
    return struct.pack('<Q', len(text)) + text


def value(kind, v):
    if kind == STRING:
        return string(v)
    if kind != ARRAY:
        return v
    return struct.pack('<IQ', v[0], len(v[1])) + b''.join(value(v[0], x) for x in v[1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('input')
    parser.add_argument('output')
    parser.add_argument('--permute', action='store_true')
    parser.add_argument('--scramble', action='store_true')
    parser.add_argument('--replace', type=float, default=0)
    args = parser.parse_args()
    rng = random.Random(5)
    with open(args.input, 'rb') as file:
        r = Reader(file.read())
    head = r.take(8)
    n_tensors, n_keys = r.number('Q'), r.number('Q')
    keys = {}
    for _ in range(n_keys):
        key, kind = r.string(), r.number('I')
        keys[key] = (kind, r.value(kind))
    tensors = []
    for _ in range(n_tensors):
        name, dims = r.string(), r.number('I')
        shape = [r.number('Q') for _ in range(dims)]
        tensors.append((name, shape, r.number('I'), r.number('Q')))
    begin = (r.at + 31) // 32 * 32  # the default alignment

    tokens = keys[b'tokenizer.ggml.tokens'][1][1]
    assert b'tokenizer.ggml.merges' not in keys, 'for SentencePiece-type vocabularies only'
    types = keys[b'tokenizer.ggml.token_type'][1][1]
    n = len(tokens)
    order = list(range(n))  # new id -> old id
    if args.permute or args.scramble:
        middle = order[16:n - 16]
        rng.shuffle(middle)
        order[16:n - 16] = middle
    free = [i for i in range(n) if len(tokens[i]) > 1 and types[i] == struct.pack('<i', 1)]
    chosen = rng.sample(free, min(len(free), round(args.replace * n)))
    for i in chosen:
        tokens[i] = b'zqx%dxqz' % i
    named = list(range(n)) if args.scramble else order
    for key in (b'tokenizer.ggml.tokens', b'tokenizer.ggml.token_type', b'tokenizer.ggml.scores'):
        if key in keys:
            old = keys[key][1][1]
            keys[key][1][1][:] = [old[i] for i in named]
    new_id = {old: new for new, old in enumerate(named)}
    for key, (kind, v) in keys.items():
        if key.startswith(b'tokenizer.ggml.') and key.endswith(b'_token_id'):
            keys[key] = (kind, struct.pack('<I', new_id[struct.unpack('<I', v)[0]]))

    data = bytearray(r.data[begin:])
    for name, shape, kind, offset in tensors:
        if name in (b'token_embd.weight', b'output.weight'):
            elements, n_bytes = BLOCKS[kind]
            row = shape[0] // elements * n_bytes
            old = bytes(data[offset:offset + n * row])
            data[offset:offset + n * row] = b''.join(old[i * row:(i + 1) * row] for i in order)
    out = head + struct.pack('<QQ', n_tensors, n_keys)
    for key, (kind, v) in keys.items():
        out += string(key) + struct.pack('<I', kind) + value(kind, v)
    for name, shape, kind, offset in tensors:
        out += string(name) + struct.pack('<I', len(shape))
        out += b''.join(struct.pack('<Q', d) for d in shape) + struct.pack('<IQ', kind, offset)
    out += bytes(-len(out) % 32)
    with open(args.output, 'wb') as file:
        file.write(out + data)
    print('%d of %d tokens replaced' % (len(chosen), n))


if __name__ == '__main__':
    main()
