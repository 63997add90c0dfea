#!/usr/bin/env python3
"""Two stage workers of one core each against one, in network namespaces joined by veth pairs.

usage: scripts/bench_machines.py MODEL.gguf [--tandem PROGRAM] [--turns N]
                                 [--rpc-server PROGRAM --rpc-bench PROGRAM | --draft D.gguf | --curve]

Needs root and iproute2. Prints, as medians of N turns (3) of each in alternation, tokens/s of one host,
of two, and their ratio: a prompt of 2,048 tokens, 32 sequences, one sequence. Everything is encrypted,
as it is between machines. With llama.cpp's RPC server and llama-bench its rows stand beside.

--draft: instead one sequence with a draft on another machine, behind tests/relay.py with round trips of
0, 5 and 10 ms, and with none; lengths as they are chosen and 4 always. --curve: instead the first two rows
of two workers on loopback, with keys and without."""
import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time

NAMES = ['tda', 'tdb']


def sh(line):
    subprocess.run(line, shell=True, check=True, stdout=subprocess.DEVNULL)


def make_namespaces():
    for i, name in enumerate(NAMES):
        sh(f'ip netns add {name} && ip link add {name}0 type veth peer name {name}1 && ip link set {name}1 netns {name}')
        sh(f'ip addr add 10.77.{i}.1/24 dev {name}0 && ip link set {name}0 up')
        sh(f'ip -n {name} addr add 10.77.{i}.2/24 dev {name}1 && ip -n {name} link set {name}1 up && ip -n {name} link set lo up')
        sh(f'ip -n {name} route add default via 10.77.{i}.1')
    sh('sysctl -qw net.ipv4.ip_forward=1')


def drop_namespaces():
    for name in NAMES:
        subprocess.run(f'ip link del {name}0; ip netns del {name}', shell=True, stderr=subprocess.DEVNULL, check=False)


class Bench:
    def __init__(self, args, folder):
        self.args, self.dir = args, folder
        self.keys = {**os.environ, 'TANDEM_KEYS_DIR': os.path.join(folder, 'keys')}
        subprocess.run([args.tandem, 'keys', 'new', 'lab'], env=self.keys, check=True, capture_output=True)
        public = subprocess.run([args.tandem, 'keys', 'show', 'lab'], env=self.keys, check=True, capture_output=True).stdout
        subprocess.run([args.tandem, 'keys', 'allow', 'lab', '-'], env=self.keys, input=public, check=True, capture_output=True)
        self.workers = []
        rng = random.Random(1)
        words = [''.join(rng.choices('abcdefghijklmnopqrstuvwxyz', k=rng.randrange(2, 8))) for _ in range(500)]
        self.words = words
        # One token a number is not known of a vocabulary: as many words as give about 2,048 tokens.
        text, low, high = '', 1, 4096
        while low < high:
            middle = (low + high + 1) // 2
            text = ' '.join(words[i % 500] for i in range(middle))
            n = len(json.loads(subprocess.run([args.tandem, 'tokenize', '--model', args.model, '--text', text], check=True,
                                              capture_output=True, text=True).stdout))
            low, high = (middle, high) if n <= 2048 else (low, middle - 1)
        self.prompt = ' '.join(words[i % 500] for i in range(low))

    def start(self, i, core, *command):
        self.workers.append(subprocess.Popen([*(['ip', 'netns', 'exec', NAMES[i]] if i is not None else []), 'taskset', '-c', str(core), *command],
                                             env=self.keys, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    def stop(self):
        for worker in self.workers:
            worker.kill()
            worker.wait()
        self.workers = []

    def run(self, lines, n, parallel, *more):
        path, stats = os.path.join(self.dir, 'in.jsonl'), os.path.join(self.dir, 'stats.json')
        with open(path, 'w') as f:
            for i, line in enumerate(lines):
                f.write(json.dumps({'id': str(i), 'prompt': line}) + '\n')
        subprocess.run([self.args.tandem, 'generate', '--target', self.args.model, '--in', path, '--quiet', '--temp', '0', '-n',
                        str(n), '--ignore-eos', '--ctx', '2304', '--parallel', str(parallel), '--stats', stats, *more],
                       env=self.keys, check=True, stdout=subprocess.DEVNULL)
        with open(stats) as f:
            s = json.load(f)
        return s

    def rows(self, *placing):
        t = self.run([self.prompt], 1, 1, *placing)['totals']
        prompt = t['prompt_tokens'] / t['seconds']
        many = self.run([' '.join(self.words[i:i + 8]) for i in range(32)], 48, 32, *placing)['totals']['tokens_per_second']
        s = self.run(['Once upon a time'], 96, 1, *placing)
        return {'prompt of 2,048': prompt, '32 sequences': many, 'one sequence': s['totals']['tokens_per_second'],
                'coordinator us a round': s['coordinator']['loop_cpu_us_per_round']}

    def rpc_rows(self, servers):
        out = {}
        for name, flags in {'prompt of 2,048': ['-p', '2048', '-n', '0'], 'one sequence': ['-p', '0', '-n', '96']}.items():
            r = subprocess.run([self.args.rpc_bench, '-m', self.args.model, '--rpc', ','.join(servers), '-ngl', '99', '-r', '1', '-t',
                                '1', '-o', 'json', *flags], check=True, capture_output=True, text=True)
            out[name] = json.loads(r.stdout)[0]['avg_ts']
        return out


def main():
    p = argparse.ArgumentParser()
    p.add_argument('model')
    p.add_argument('--tandem', default='build/default/tandem')
    p.add_argument('--turns', type=int, default=3)
    p.add_argument('--rpc-server')
    p.add_argument('--rpc-bench')
    p.add_argument('--draft')
    p.add_argument('--curve', action='store_true')
    args = p.parse_args()
    args.tandem = os.path.abspath(args.tandem)
    if args.draft or args.curve:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(args, folder)
            try:
                (measure_draft if args.draft else measure_curve)(args, bench)
            finally:
                bench.stop()
        return
    drop_namespaces()
    make_namespaces()
    try:
        with tempfile.TemporaryDirectory() as folder:
            measure(args, Bench(args, folder))
    finally:
        drop_namespaces()


def measure_draft(args, bench):
    sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'tests'))
    from relay import Relay
    bench.start(None, 1, args.tandem, 'stage', '--device', 'host:1', '--models', os.path.dirname(os.path.abspath(args.draft)),
                '--bind', 'tcp://127.0.0.1:5599', '--key', 'lab')
    relays = {ms: Relay(5600 + ms, 5599, delay=ms / 2000) for ms in (0, 5, 10)}
    time.sleep(2)
    table = {}
    for _ in range(args.turns):
        for way in ([], ['--draft-fixed', '4']):
            for ms in relays:
                t = bench.run(['Once upon a time'], 192, 1, '--device', 'host:1:0', '--draft', args.draft, '--draft-device', 'd/host:1',
                              '--host', f'd=tcp://127.0.0.1:{5600 + ms},lab', *way)['totals']
                table.setdefault((' '.join(way) or 'lengths chosen', f'{ms} ms'), []).append(t)
        table.setdefault(('no draft', ''), []).append(bench.run(['Once upon a time'], 192, 1, '--device', 'host:1:0')['totals'])
    for relay in relays.values():
        relay.close()
    for (way, ms), runs in table.items():
        best = max(runs, key=lambda t: t['tokens_per_second'])
        whole = max(t['tokens_per_second'] for t in table.get((way, '0 ms'), runs))
        paired = statistics.median(t['tokens_per_second'] / b['tokens_per_second'] for t, b in zip(runs, table.get((way, '0 ms'), runs)))
        print(f'{way:16} {ms:6} {best["tokens_per_second"]:7.1f} tokens/s, {best["tokens_per_second"] / whole:.2f} of the best at 0 ms, '
              f'{paired:.2f} paired; accepted {best["accepted"]} of {best["drafted"]}')


def measure_curve(args, bench):
    folder, table = os.path.dirname(os.path.abspath(args.model)), {}
    for i in range(2):
        for key in (False, True):
            bench.start(None, i, args.tandem, 'stage', '--device', 'host:1', '--models', folder, '--bind',
                        f'tcp://127.0.0.1:{5580 + 2 * i + key}', *(['--key', 'lab'] if key else []))
    time.sleep(2)
    for _ in range(args.turns):
        for key in (False, True):
            hosts = [x for i in range(2) for x in ('--host', f'{"ab"[i]}=tcp://127.0.0.1:{5580 + 2 * i + key}' + (',lab' if key else ''))]
            for name, value in bench.rows(*hosts, '--device', 'a/host:1', '--device', 'b/host:1').items():
                table.setdefault(name, {}).setdefault(key, []).append(value)
    for name, kinds in table.items():
        paired = statistics.median(a / b for a, b in zip(kinds[True], kinds[False]))
        print(f'{name:26} keys {max(kinds[True]):8.1f}, none {max(kinds[False]):8.1f}: {max(kinds[True]) / max(kinds[False]):.2f} of the '
              f'best, {paired:.2f} paired')


def measure(args, bench):
    ends = [f'10.77.{i}.2:5556' for i in range(2)]
    folder = os.path.dirname(os.path.abspath(args.model))
    for i in range(2):
        bench.start(i, i, args.tandem, 'stage', '--device', 'host:1', '--models', folder, '--bind', 'tcp://' + ends[i])
    time.sleep(2)
    hosts = [x for i in range(2) for x in ('--host', f'{"ab"[i]}=tcp://{ends[i]},lab')]
    one, two = [*hosts[:2], '--device', 'a/host:1'], [*hosts, '--device', 'a/host:1', '--device', 'b/host:1']
    table = {}

    def note(kind, rows):
        for name, value in rows.items():
            table.setdefault(name, {}).setdefault(kind, []).append(value)
    for _ in range(args.turns):
        note('one', bench.rows(*one))
        note('two', bench.rows(*two))
    bench.stop()
    if args.rpc_server:
        for i in range(2):
            bench.start(i, i, args.rpc_server, '-H', f'10.77.{i}.2', '-p', '5557', '-t', '1')
        time.sleep(2)
        servers = [f'10.77.{i}.2:5557' for i in range(2)]
        for _ in range(args.turns):
            note('RPC one', bench.rpc_rows(servers[:1]))
            note('RPC two', bench.rpc_rows(servers))
        bench.stop()
    for name, kinds in table.items():
        m = {kind: statistics.median(values) for kind, values in kinds.items()}
        text = f'{name}: one {m["one"]:.1f}, two {m["two"]:.1f}'
        if m['one'] > 0:
            text += f': {m["two"] / m["one"]:.2f}x'
        if 'RPC one' in m:
            text += f'; llama.cpp RPC one {m["RPC one"]:.1f}, two {m["RPC two"]:.1f}: {m["RPC two"] / m["RPC one"]:.2f}x'
        print(text, flush=True)


if __name__ == '__main__':
    main()
