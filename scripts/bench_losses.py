#!/usr/bin/env python3
"""What the loss of a stage costs a batch of prompts: two workers of one core each, the second of which is
killed (SIGKILL) in the middle and started again by a loop, or replaced by a spare.

usage: scripts/bench_losses.py MODEL.gguf [--tandem PROGRAM] [--turns N] [--prompts N] [--parallel N] [-n N]

Prints of each turn, and as medians of N turns (3) in alternation: seconds undisturbed and with a loss, their
ratio, seconds from the loss to the next token, and positions computed again."""
import argparse
import json
import os
import socket
import statistics
import subprocess
import tempfile
import threading
import time


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


class Worker:
    """Started again whenever it ends, until it is stopped."""

    def __init__(self, tandem, folder, core, is_kept=True):
        self.endpoint = 'tcp://127.0.0.1:%d' % free_port()
        self.command = ['taskset', '-c', str(core), tandem, 'stage', '--device', 'host:1', '--models', folder, '--bind', self.endpoint]
        self.is_kept = is_kept
        self.start()
        self.thread = threading.Thread(target=self.keep, daemon=True)
        self.thread.start()

    def start(self):
        self.process = subprocess.Popen(self.command, stderr=subprocess.DEVNULL)

    def keep(self):
        while True:
            self.process.wait()
            if not self.is_kept:
                return
            self.start()

    def stop(self):
        self.is_kept = False
        self.process.kill()
        self.thread.join()


def run(args, folder, loss, kill_s):
    models = os.path.dirname(os.path.abspath(args.model))
    workers = {'a': Worker(args.tandem, models, 0), 'b': Worker(args.tandem, models, 1, loss != 'spare'),
               'c': Worker(args.tandem, models, 1)}
    path, out, stats = (os.path.join(folder, name) for name in ('in.jsonl', 'out.jsonl', 'stats.json'))
    with open(path, 'w') as f:
        for i in range(args.prompts):
            f.write(json.dumps({'id': str(i), 'prompt': 'Once upon a time there was number %d, and' % i}) + '\n')
    if os.path.exists(out):
        os.remove(out)
    hosts = [x for name, w in workers.items() for x in ('--host', '%s=%s' % (name, w.endpoint))]
    try:
        p = subprocess.Popen([args.tandem, 'generate', '--target', args.model, '--in', path, '--out', out, '--stats', stats, '--quiet',
                              '-n', str(args.n), '--ignore-eos', '--no-measure', '--ctx', '1024', '--parallel', str(args.parallel or args.prompts), *hosts,
                              '--device', 'a/host:1', '--device', 'b/host:1', *(['--spare', 'c/host:1'] if loss == 'spare' else [])],
                             stderr=subprocess.PIPE, text=True)
        if loss:
            time.sleep(kill_s)
            workers['b'].process.kill()
        _, text = p.communicate()
    finally:
        for w in workers.values():
            w.stop()
    if p.returncode:
        raise SystemExit(text)
    with open(stats) as f:
        s = json.load(f)
    with open(out) as f:
        return s, {line['id']: line['tokens'] for line in map(json.loads, f)}


def main():
    p = argparse.ArgumentParser()
    p.add_argument('model')
    p.add_argument('--tandem', default='build/default/tandem')
    p.add_argument('--turns', type=int, default=3)
    p.add_argument('--prompts', type=int, default=64)
    p.add_argument('--parallel', type=int)  # as many as prompts
    p.add_argument('-n', type=int, default=128)
    args = p.parse_args()
    rows = {'restarted': [], 'spare': []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.turns):
            plain, wanted = run(args, folder, None, 0)
            plain_s = plain['totals']['seconds']
            for loss, figures in rows.items():
                s, lines = run(args, folder, loss, plain_s / 2)
                if lines != wanted:
                    raise SystemExit('another text')
                if not s['losses']:
                    raise SystemExit('nothing was lost')
                at = s['losses'][0]
                figures.append((plain_s, s['totals']['seconds'], s['totals']['seconds'] / plain_s, at['away_ms'] / 1000,
                                at['next_token_ms'] / 1000, at['replayed_positions']))
                print('%s: %s' % (loss, show(figures[-1])), flush=True)
    for loss, figures in rows.items():
        print('%s, median of %d: %s' % (loss, args.turns, show([statistics.median(column) for column in zip(*figures)])))


def show(figures):
    return '%.1f s undisturbed, %.1f s: %.2fx; back after %.2f s, next token after %.2f s; %d positions again' % tuple(figures)


if __name__ == '__main__':
    main()
