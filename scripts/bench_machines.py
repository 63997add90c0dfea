#!/usr/bin/env python3
"""Two stage workers of one core each against one, in network namespaces joined by veth pairs.

usage: scripts/bench_machines.py MODEL.gguf [--tandem PROGRAM] [--turns N] [--rows prompt,many,one]
                                 [--delay MS,..] [--rate GBIT] [--wire f16]
                                 [--tokens N] [--rpc-server PROGRAM --rpc-bench PROGRAM]
                                 [--draft D.gguf | --curve | --all]

Needs root and iproute2. Prints, as medians of N turns (3) of each in alternation, tokens/s of one host,
of two, and their ratio, which is paired: a prompt of 2,048 tokens, 32 sequences of 48 tokens (--tokens), one
sequence; the most that each gave, how many groups of sequences took turns, and what came to the second host by
the pair for a token of one sequence, encryption and TCP's own included. Everything is encrypted, as it is between machines.
With llama.cpp's RPC server and llama-bench (and llama-batched-bench in the same folder) its rows stand beside.

--delay: for each of them, round trips of so many ms to every host, by tests/relay.py beside it; 0: as the
pairs are. --rate: what the pairs let through each way, by tc's tbf, in Gb/s.

--draft: instead one sequence with a draft on another machine, behind tests/relay.py with round trips of
0, 5 and 10 ms, and with none; lengths as they are chosen and 4 always. --curve: instead the first two rows
of two workers on loopback, with keys and without. --all: all of it one after the other, with round trips of 0
and 5 ms (--draft as well where a model is given), then scripts/bench_losses.py, and the figures as one table."""
import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time

NAMES = [f'td{os.getpid() % 10000}{x}' for x in 'ab']  # several may measure at a time
NET = f'10.{64 + os.getpid() % 64}'
RELAY = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'tests', 'relay.py')
ROWS = {'prompt': 'prompt of 2,048', 'many': '32 sequences', 'one': 'one sequence'}


def sh(line):
    subprocess.run(line, shell=True, check=True, stdout=subprocess.DEVNULL)


def make_namespaces(rate):
    for i, name in enumerate(NAMES):
        sh(f'ip netns add {name} && ip link add {name}0 type veth peer name {name}1 && ip link set {name}1 netns {name}')
        sh(f'ip addr add {NET}.{i}.1/24 dev {name}0 && ip link set {name}0 up')
        sh(f'ip -n {name} addr add {NET}.{i}.2/24 dev {name}1 && ip -n {name} link set {name}1 up && ip -n {name} link set lo up')
        sh(f'ip -n {name} route add default via {NET}.{i}.1')
        if rate:
            sh(f'tc qdisc add dev {name}0 root tbf rate {rate}gbit burst 1mb latency 50ms')
            sh(f'tc -n {name} qdisc add dev {name}1 root tbf rate {rate}gbit burst 1mb latency 50ms')
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
        space = ['ip', 'netns', 'exec', NAMES[i]] if i is not None else []
        self.workers.append(subprocess.Popen([*space, 'taskset', '-c', str(core), *command], env=self.keys,
                                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    def stop(self):
        for worker in self.workers:
            worker.kill()
            worker.wait()
        self.workers = []

    def hop_bytes(self, placing):
        """Of one sequence, a token: what went into the second host."""
        def count(n):
            before = self.received()
            self.run(['Once upon a time'], n, 1, *placing)
            return self.received() - before
        return (count(160) - count(32)) / 128

    @staticmethod
    def received():
        with open(f'/sys/class/net/{NAMES[1]}0/statistics/tx_bytes') as f:
            return int(f.read())

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
        rows, out = self.args.rows, {}
        if 'prompt' in rows:
            t = self.run([self.prompt], 1, 1, *placing)['totals']
            out[ROWS['prompt']] = t['prompt_tokens'] / t['seconds']
        if 'many' in rows:
            s = self.run([' '.join(self.words[i:i + 8]) for i in range(32)], self.args.tokens, 32, *placing)
            out[ROWS['many']] = s['totals']['tokens_per_second']
            out['groups of them'] = s['coordinator']['groups']
        if 'one' in rows:
            s = self.run(['Once upon a time'], 96, 1, *placing)
            out[ROWS['one']] = s['totals']['tokens_per_second']
            out['coordinator us a round'] = s['coordinator']['loop_cpu_us_per_round']
        return out

    def rpc_rows(self, servers):
        """llama-bench's, and 32 sequences by llama-batched-bench beside it: their prompts' time counts, as it does for tandem."""
        args, out = self.args, {}
        common = ['-m', args.model, '--rpc', ','.join(servers), '-ngl', '99', '-t', '1']
        def run(program, *flags):
            return json.loads(subprocess.run([program, *common, *flags], check=True, capture_output=True, text=True).stdout)
        for row, flags in {'prompt': ['-p', '2048', '-n', '0'], 'one': ['-p', '0', '-n', '96']}.items():
            if row in args.rows:
                out[ROWS[row]] = run(args.rpc_bench, '-r', '1', '-o', 'json', *flags)[0]['avg_ts']
        batched = os.path.join(os.path.dirname(args.rpc_bench), 'llama-batched-bench')
        if 'many' in args.rows and os.path.exists(batched):
            n = args.tokens
            t = run(batched, '-c', str(32 * (n + 32)), '-npp', '24', '-ntg', str(n), '-npl', '32', '--output-format', 'jsonl')
            out[ROWS['many']] = 32 * n / t['t']
        return out


def main():
    p = argparse.ArgumentParser()
    p.add_argument('model')
    p.add_argument('--tandem', default='build/default/tandem')
    p.add_argument('--turns', type=int, default=3)
    p.add_argument('--rows', type=lambda text: text.split(','), default=list(ROWS))
    p.add_argument('--delay', type=lambda text: [float(ms) for ms in text.split(',')])
    p.add_argument('--rate', type=float)
    p.add_argument('--wire', choices=['f32', 'f16'], default='f32')
    p.add_argument('--tokens', type=int, default=48)
    p.add_argument('--all', action='store_true')
    p.add_argument('--rpc-server')
    p.add_argument('--rpc-bench')
    p.add_argument('--draft')
    p.add_argument('--curve', action='store_true')
    args = p.parse_args()
    args.tandem = os.path.abspath(args.tandem)
    args.delay = args.delay or ([0.0, 5.0] if args.all else [0.0])
    ways = [measure_draft] if args.draft else [measure_curve] if args.curve else [measure]
    if args.all:
        ways = [measure, *([measure_draft] if args.draft else []), measure_curve, measure_losses]
    table = []
    for way in ways:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(args, folder)
            try:
                if way is measure:
                    make_namespaces(args.rate)
                table += way(args, bench)
            finally:
                bench.stop()
                if way is measure:
                    drop_namespaces()
    if args.all:
        print('\n| work | found |\n|---|---|')
        for work, found in table:
            print(f'| {work} | {found} |')


def measure_losses(args, _):
    script = os.path.join(os.path.dirname(RELAY), '..', 'scripts', 'bench_losses.py')
    r = subprocess.run([sys.executable, script, args.model, '--tandem', args.tandem, '--turns', str(args.turns)], check=True,
                       capture_output=True, text=True)
    print(r.stdout, end='')
    return [('a stage lost in a batch: ' + line.split(', median')[0], line.partition(': ')[2])
            for line in r.stdout.splitlines() if ', median of' in line]


def measure_draft(args, bench):
    sys.path.insert(0, os.path.dirname(RELAY))
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
    found = []
    for (way, ms), runs in table.items():
        best = max(runs, key=lambda t: t['tokens_per_second'])
        whole = max(t['tokens_per_second'] for t in table.get((way, '0 ms'), runs))
        paired = statistics.median(t['tokens_per_second'] / b['tokens_per_second'] for t, b in zip(runs, table.get((way, '0 ms'), runs)))
        text = (f'{best["tokens_per_second"]:7.1f} tokens/s, {best["tokens_per_second"] / whole:.2f} of the best at 0 ms, '
                f'{paired:.2f} paired; accepted {best["accepted"]} of {best["drafted"]}')
        print(f'{way:16} {ms:6} {text}')
        found.append((f'one sequence, its draft elsewhere, {way} {ms}', text.strip()))
    return found


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
    found = []
    for name, kinds in table.items():
        if name == 'groups of them':
            continue
        paired = statistics.median(a / b for a, b in zip(kinds[True], kinds[False]))
        text = (f'keys {max(kinds[True]):.1f}, none {max(kinds[False]):.1f}: {max(kinds[True]) / max(kinds[False]):.2f} of the best, '
                f'{paired:.2f} paired')
        print(f'{name:26} {text}')
        found.append(('with keys and without: ' + name, text))
    return found


def describe(name, kinds):
    m = {kind: statistics.median(values) for kind, values in kinds.items()}
    text = f'one {m["one"]:.1f}, two {m["two"]:.1f}' if 'one' in m else f'{m["two"]:.1f}'
    if name in ROWS.values():
        paired = statistics.median(two / one for one, two in zip(kinds['one'], kinds['two']))
        text += f': {paired:.2f}x; at most {max(kinds["one"]):.1f}, {max(kinds["two"]):.1f}'
    if 'RPC one' in m:
        text += f'; llama.cpp RPC one {m["RPC one"]:.1f}, two {m["RPC two"]:.1f}: {m["RPC two"] / m["RPC one"]:.2f}x'
    return text


def measure(args, bench):
    folder = os.path.dirname(os.path.abspath(args.model))
    ports = {ms: 5600 + i if ms else 5556 for i, ms in enumerate(args.delay)}

    def relay(i):
        # Whatever else is at work on that core: a link does not wait for one.
        delays = [f'{port}={ms / 2000}' for ms, port in ports.items() if ms]
        return ['chrt', '-f', '10', sys.executable, RELAY, f'{NET}.{i}.2', '5556', *delays]

    for i in range(2):
        bench.start(i, i, args.tandem, 'stage', '--device', 'host:1', '--models', folder, '--bind', 'tcp://*:5556')
        bench.start(i, i, *relay(i))
    time.sleep(2)
    tables = {ms: {} for ms in args.delay}

    def note(table, kind, rows):
        for name, value in rows.items():
            table.setdefault(name, {}).setdefault(kind, []).append(value)
    for _ in range(args.turns):
        for ms, table in tables.items():
            hosts = ['--wire', args.wire]
            for i in range(2):
                hosts += ['--host', f'{"ab"[i]}=tcp://{NET}.{i}.2:{ports[ms]},lab']
            note(table, 'one', bench.rows(*hosts, '--device', 'a/host:1'))
            two = [*hosts, '--device', 'a/host:1', '--device', 'b/host:1']
            note(table, 'two', bench.rows(*two))
            if 'one' in args.rows:
                note(table, 'two', {'bytes a token and hop': bench.hop_bytes(two)})
    bench.stop()
    if args.rpc_server:
        for i in range(2):
            bench.start(i, i, args.rpc_server, '-H', '0.0.0.0', '-p', '5556', '-t', '1')
            bench.start(i, i, *relay(i))
        time.sleep(2)
        for _ in range(args.turns):
            for ms, table in tables.items():
                servers = [f'{NET}.{i}.2:{ports[ms]}' for i in range(2)]
                note(table, 'RPC one', bench.rpc_rows(servers[:1]))
                note(table, 'RPC two', bench.rpc_rows(servers))
        bench.stop()
    found = []
    for ms, table in tables.items():
        where = f'round trips of {ms:g} ms' if ms else 'as the pairs are'
        print(where)
        for name, kinds in table.items():
            found.append((f'{name}, {where}', describe(name, kinds)))
            print(f'{name}: {found[-1][1]}', flush=True)
    return found


if __name__ == '__main__':
    main()
