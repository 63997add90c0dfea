#!/usr/bin/env python3
"""Losses of stages on other machines, by seed: workers that are killed and started again, stopped and
continued, connections through a relay that delays, stalls, cuts, resets and parts, and links between
network namespaces that are taken down. Whatever happens, the run ends well and its text is that of an
undisturbed one.

usage: e2e_stage_faults.py TANDEM   (run from the source root; standard library only)
FAULT_RUNS seeds (4) from FAULT_SEED (1) on; a failure names the seed that replays it. Of the links' cases
the first 3; all with FAULT_RUNS above 4."""
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


class Base(unittest.TestCase):
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

    def show(self, what, stats):
        with open(stats) as f:
            s = json.load(f)
        losses, away = s['totals']['target_losses'], s['totals']['target_away_ms']
        backs = ['%s (next token after %.1f s)' % (loss['back'], loss['next_token_ms'] / 1000) for loss in s['losses']]
        print('%s%d losses, %d positions again, %.1f s away; back by %s' %
              (what, losses, s['coordinator']['replayed_positions'], away / 1000, ', '.join(backs) or 'nothing'), flush=True)
        return losses


class Faults(Base):
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
        return self.show(what, stats)

    def test_losses_change_no_text(self):
        losses = [self.run_seed(seed) for seed in range(SEED, SEED + N_RUNS)]
        print('%d runs, %d losses, in %d of the runs' % (N_RUNS, sum(losses), sum(n > 0 for n in losses)))
        self.assertGreater(sum(losses), 0)


# What happens to worker b, for how many seconds, and what else there is: a spare on a third machine, the
# other stage, or nothing, for it was alone.
LINK_CASES = [('down', 1, 'other'), ('half open', 6, 'other'), ('down', 10, 'spare'), ('stop', 7, 'other'),
              ('down', 10, 'other'), ('half open', 10, 'spare'), ('stop', 15, 'spare'), ('down', 60, 'spare'),
              ('down', 60, 'other'), ('down', 60, 'nothing'), ('down between', 10, 'spare')]


class Links(Base):
    """Machines that are network namespaces on a bridge, with keys: nothing tells that a link is down."""

    def net(self, line):
        subprocess.run(['ip', *line.split()], check=True, capture_output=True, text=True)

    def setUp(self):
        super().setUp()
        self.desk = 'td%dd' % os.getpid()
        self.spaces = {'d': self.desk}
        self.workers = {}
        self.addCleanup(self.tear)
        try:
            self.net('netns add ' + self.desk)
            self.net('-n %s link set lo up' % self.desk)
            self.net('-n %s link add br0 type bridge' % self.desk)
            self.net('-n %s addr add 10.99.0.1/24 dev br0' % self.desk)
            self.net('-n %s link set br0 up' % self.desk)
            for i, name in enumerate('abc'):
                space = self.spaces[name] = 'td%d%s' % (os.getpid(), name)
                self.net('netns add ' + space)
                self.net('-n %s link set lo up' % space)
                self.net('-n %s link add v%s type veth peer name eth0 netns %s' % (self.desk, name, space))
                self.net('-n %s addr add 10.99.0.%d/24 dev eth0' % (space, 2 + i))
                self.net('-n %s link set eth0 up' % space)
                self.net('-n %s link set v%s master br0 up' % (self.desk, name))
        except FileNotFoundError:
            self.skipTest('no network namespaces: ip (iproute2) is not there')
        except subprocess.CalledProcessError as e:
            self.skipTest('no network namespaces: ' + e.stderr.strip())
        self.env = {**os.environ, 'TANDEM_KEYS_DIR': os.path.join(self.dir.name, 'keys')}
        public = subprocess.run([TANDEM, 'keys', 'new', 'lab'], env=self.env, check=True, capture_output=True).stdout
        subprocess.run([TANDEM, 'keys', 'allow', 'lab', '-'], env=self.env, input=public, check=True, capture_output=True)

    def tear(self):
        for worker in self.workers.values():
            worker.send_signal(signal.SIGCONT)
            worker.kill()
            worker.wait()
        for space in self.spaces.values():
            subprocess.run(['ip', 'netns', 'del', space], capture_output=True, check=False)

    def endpoint(self, name):
        return 'tcp://10.99.0.%d:5556' % (2 + 'abc'.index(name))

    def start(self, name):
        self.workers[name] = subprocess.Popen(
            ['ip', 'netns', 'exec', self.spaces[name], TANDEM, 'stage', '--bind', self.endpoint(name), '--models',
             'configs/tales', '--device', 'host:1'], env=self.env, stderr=subprocess.DEVNULL)

    def kill(self, name):
        self.workers[name].kill()
        self.workers[name].wait()

    def link(self, name, state):
        self.net('-n %s link set v%s %s' % (self.desk, name, state))

    def suffer(self, what, seconds):
        if what == 'stop':
            self.workers['b'].send_signal(signal.SIGSTOP)
        elif what == 'down between':  # the desk reaches both, but they not each other
            self.net('-n %s route add blackhole 10.99.0.3' % self.spaces['a'])
        else:
            self.link('b', 'down')
        if what == 'half open':  # it ends while nobody can be told, and another begins
            self.kill('b')
            self.start('b')
        time.sleep(seconds)
        if what == 'stop':
            self.workers['b'].send_signal(signal.SIGCONT)
        elif what == 'down between':
            self.net('-n %s route del blackhole 10.99.0.3' % self.spaces['a'])
        else:
            self.link('b', 'up')

    def run_case(self, what, seconds, else_there):
        stats, out = (os.path.join(self.dir.name, name) for name in ('stats.json', 'out.jsonl'))
        if os.path.exists(out):
            os.remove(out)
        for name in 'abc':
            self.start(name)
        hosts = [x for name in 'abc' for x in ('--host', '%s=%s,lab' % (name, self.endpoint(name)))]
        args = [*hosts, *([] if else_there == 'nothing' else ['--device', 'a/host:1']), '--device', 'b/host:1',
                *(['--spare', 'c/host:1'] if else_there == 'spare' else []), '--parallel', '4', '--stats', stats, '--out', out]
        command = ['ip', 'netns', 'exec', self.desk, *self.command(*args)]
        p = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=self.env)
        while p.poll() is None and not (os.path.exists(out) and os.path.getsize(out)):
            time.sleep(0.01)  # until it is under way
        self.suffer(what, seconds)
        _, err = p.communicate(timeout=300)
        what = '%s for %d s, %s else: ' % (what, seconds, else_there)
        is_ended = else_there == 'nothing'
        if is_ended:  # it has said why; what it finished is there
            self.assertEqual(p.returncode, 75, what + err)
            self.assertIn('not to be had again', err, what)
            r = subprocess.run(command, stderr=subprocess.PIPE, text=True, env=self.env, timeout=300, check=False)
            self.assertEqual(r.returncode, 0, what + err + r.stderr)
            what += 'ended and resumed; '
        else:
            self.assertEqual(p.returncode, 0, what + err)
        with open(out) as f:
            self.assertEqual(self.texts(f.read()), self.wanted, what + err)
        for name in 'abc':
            self.kill(name)
        return self.show(what, stats) + is_ended

    def test_links_that_go_down_change_no_text(self):
        losses = [self.run_case(*case) for case in (LINK_CASES if N_RUNS > 4 else LINK_CASES[:3])]
        self.assertGreater(sum(losses), 1)


if __name__ == '__main__':
    unittest.main()
