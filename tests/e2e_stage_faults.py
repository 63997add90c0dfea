#!/usr/bin/env python3
"""Losses of stages on other machines, by seed: workers that are killed and started again, stopped and
continued, and connections through a relay that delays, stalls, cuts, resets and parts. Whatever
happens, the run ends well and its text is that of an undisturbed one.

usage: e2e_stage_faults.py TANDEM   (run from the source root; standard library only)
FAULT_RUNS seeds (4) from FAULT_SEED (1) on; a failure names the seed that replays it."""
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest

import relay

TANDEM = os.path.abspath(sys.argv.pop(1)) if len(sys.argv) > 1 else 'build/tandem'
TARGET = 'configs/tales/tales-target.q8_0.gguf'
DRAFT = 'configs/tales/tales-draft.q8_0.gguf'
N_RUNS = int(os.environ.get('FAULT_RUNS') or 4)
SEED = int(os.environ.get('FAULT_SEED') or 1)
N_TOKENS = 600

SPLITS = [['a/host:1', 'b/host:1'], ['host:1', 'a/host:1', 'b/host:1'], ['a/host:1', 'host:1', 'b/host:1'],
          ['a/host:1', 'host:1']]
WAYS = [['--parallel', '4'], ['--parallel', '4', '--draft', DRAFT, '--draft-device', 'host:1', '--draft-fixed', '3'],
        ['--parallel', '2', '--draft-ngram']]
LINES = [(None, {}), ('delayed', {'delay': 0.001, 'jitter': 0.001}), ('stalling', {'stall': (0.002, 0.25)}),
         ('cut', {'cut': 0.0005}), ('far', {'delay': 0.005, 'jitter': 0.004})]
INCIDENTS = ['kill', 'stop', 'partition', 'reset', 'half_close']


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


class Worker:
    """One on a port of its own, with a relay before it."""

    def __init__(self, seed, line):
        self.port, front = free_port(), free_port()
        self.relay = relay.Relay(front, self.port, seed, **line)
        self.endpoint = 'tcp://127.0.0.1:%d' % front
        self.start()

    def start(self):
        self.process = subprocess.Popen([TANDEM, 'stage', '--bind', 'tcp://127.0.0.1:%d' % self.port, '--models',
                                         'configs/tales', '--device', 'host:1'], stderr=subprocess.DEVNULL)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def close(self):
        self.process.send_signal(signal.SIGCONT)
        self.kill()
        self.relay.close()

    def suffer(self, incident, rng):
        """True when it is over."""
        if incident == 'kill':
            self.kill()
            time.sleep(rng.random() * 2)
            self.start()
        elif incident == 'stop':
            self.process.send_signal(signal.SIGSTOP)
            time.sleep(rng.choice([0.2, 1, 6]) * (0.5 + rng.random()))
            self.process.send_signal(signal.SIGCONT)
        elif incident == 'partition':
            self.relay.order('partition', rng.choice([0.2, 1, 6]) * (0.5 + rng.random()))
        else:
            self.relay.order(incident)


class Faults(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.TemporaryDirectory()
        self.addCleanup(self.dir.cleanup)
        self.prompts = os.path.join(self.dir.name, 'prompts.jsonl')
        with open(self.prompts, 'w') as f:
            for i, prompt in enumerate(['Once upon a time', 'The fox said', 'A king had three sons, and',
                                        ' '.join(['There was a house in the wood.'] * 40)]):
                for temp in (0, 0.8):
                    f.write(json.dumps({'id': '%d-%g' % (i, temp), 'prompt': prompt, 'temp': temp, 'seed': i}) + '\n')
        self.wanted = self.texts(subprocess.run(self.command('--device', 'host:1', '--device', 'host:1', '--parallel', '4'),
                                                capture_output=True, text=True, timeout=300, check=True).stdout)
        self.assertEqual(len(self.wanted), 8)

    def command(self, *args):
        return [TANDEM, 'generate', '--target', TARGET, '--in', self.prompts, '-n', str(N_TOKENS), '--ctx', '1024', *args]

    @staticmethod
    def texts(lines):
        return {line['id']: (line['status'], line.get('tokens')) for line in map(json.loads, lines.splitlines())}

    def run_seed(self, seed):
        rng = random.Random(seed)
        split, way, (name, line) = SPLITS[seed % len(SPLITS)], rng.choice(WAYS), rng.choice(LINES)
        stats = os.path.join(self.dir.name, 'stats.json')
        workers = {host: Worker(seed, line) for host in 'ab' if any(x.startswith(host) for x in split)}
        try:
            args = [x for host, worker in workers.items() for x in ('--host', '%s=%s' % (host, worker.endpoint))]
            args += [x for spec in split for x in ('--device', spec)] + way + ['--stats', stats]
            p = subprocess.Popen(self.command(*args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            done = []
            for _ in range(rng.randrange(1, 4)):
                time.sleep(0.2 + rng.random())
                if p.poll() is None:
                    done.append(rng.choice(INCIDENTS))
                    workers[rng.choice(list(workers))].suffer(done[-1], rng)
            out, err = p.communicate(timeout=300)
        finally:
            for worker in workers.values():
                worker.close()
        what = 'seed %d: %s, %s, line %s, %s: ' % (seed, '+'.join(split), ' '.join(way), name, ', '.join(done) or 'nothing')
        self.assertEqual(p.returncode, 0, what + err)
        self.assertEqual(self.texts(out), self.wanted, what + err)
        with open(stats) as f:
            s = json.load(f)
        losses, away = s['totals']['target_losses'], s['totals']['target_away_ms']
        print('%s%d losses, %d positions again, %.1f s away' % (what, losses, s['coordinator']['replayed_positions'],
                                                               away / 1000), flush=True)
        return losses

    def test_losses_change_no_text(self):
        losses = [self.run_seed(seed) for seed in range(SEED, SEED + N_RUNS)]
        print('%d runs, %d losses, in %d of the runs' % (N_RUNS, sum(losses), sum(n > 0 for n in losses)))
        self.assertGreater(sum(losses), 0)


if __name__ == '__main__':
    unittest.main()
