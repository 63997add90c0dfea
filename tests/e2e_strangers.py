#!/usr/bin/env python3
"""A worker on an open network: a thousand connections that never become anything, of three kinds, while
a run drafts through it. The text is untouched, a clean client still joins, and the worker's
descriptors stay few. Prints what it cost; asserts no time.

usage: e2e_strangers.py TANDEM [CONNECTIONS]   (run from the source root; standard library only)"""
import json
import os
import random
import resource
import selectors
import socket
import subprocess
import sys
import tempfile
import threading
import time

TANDEM = os.path.abspath(sys.argv[1]) if len(sys.argv) > 1 else 'build/tandem'
N = int(sys.argv[2]) if len(sys.argv) > 2 else 1000
TARGET = 'configs/tales/tales-target.q8_0.gguf'
DRAFT = 'configs/tales/tales-draft.q8_0.gguf'
FD_LIMIT = 256  # of the worker: 128 connections, and what it has of its own
GREETING = bytes([0xff] + [0] * 8 + [0x7f, 3, 1]) + b'CURVE'.ljust(20, b'\0') + bytes(32)


class Crowd(threading.Thread):
    """Keeps n connections to a port, each doing what its kind does; a new one for each that is hung up
    on, so many a second at most."""

    def __init__(self, port, kind, n, per_second):
        super().__init__(daemon=True)
        self.address, self.kind, self.n, self.per_second = ('127.0.0.1', port), kind, n, per_second
        self.n_made = self.n_ended = 0
        self.is_stopping = False
        self.random = random.Random(kind)

    def connect(self):
        s = socket.socket()
        s.setblocking(False)
        s.connect_ex(self.address)
        self.n_made += 1
        self.held[s] = 0
        self.selector.register(s, selectors.EVENT_READ | (selectors.EVENT_WRITE if self.kind == 'garbage' else 0))

    def drop(self, s):
        self.selector.unregister(s)
        s.close()
        del self.held[s]
        self.n_ended += 1

    def run(self):
        self.held, self.selector = {}, selectors.DefaultSelector()
        last, start = 0, time.monotonic()
        while not self.is_stopping:
            n_max = self.n + self.per_second * (time.monotonic() - start)
            while len(self.held) < self.n and self.n_made < n_max:
                self.connect()
            for key, events in self.selector.select(0.05):
                s = key.fileobj
                try:
                    if events & selectors.EVENT_WRITE:
                        s.send(self.random.randbytes(self.random.randrange(1, 400)))
                        self.selector.modify(s, selectors.EVENT_READ)
                    elif not s.recv(4096):
                        self.drop(s)
                except OSError:
                    self.drop(s)
            if self.kind == 'slow' and time.monotonic() - last >= 1:  # a byte a second, as it should be
                last = time.monotonic()
                for s in list(self.held):
                    try:
                        s.send(GREETING[self.held[s]:self.held[s] + 1])
                        self.held[s] = min(self.held[s] + 1, len(GREETING) - 1)
                    except OSError:
                        pass  # seen above
        for s in list(self.held):
            self.drop(s)


class Machine:
    def __init__(self, dir, name):
        self.environment = {**os.environ, 'TANDEM_KEYS_DIR': os.path.join(dir, name)}
        self.key = self.keys('new', name)

    def keys(self, *args):
        return subprocess.run([TANDEM, 'keys', *args], env=self.environment, check=True, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, text=True).stdout.strip()

    def generate(self, lines, *args):
        r = subprocess.run([TANDEM, 'generate', '--target', TARGET, '--device', 'host:1', '--no-measure', '--in',
                            '-', '-n', '120', '--temp', '0.7', '--seed', '3', *args], env=self.environment,
                           input=lines, capture_output=True, text=True, check=True)
        return {x['id']: x for x in map(json.loads, r.stdout.splitlines())}


def count_descriptors(pid):
    return len(os.listdir('/proc/%d/fd' % pid))


def cpu_seconds(pid):
    with open('/proc/%d/stat' % pid) as f:
        fields = f.read().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def limit_descriptors():
    resource.setrlimit(resource.RLIMIT_NOFILE, (FD_LIMIT, FD_LIMIT))


def lines_of(n):
    return ''.join('{"id": "%d", "prompt": "Once upon a time"}\n' % i for i in range(n))


class Worker:
    """A worker on strix, with few descriptors; its log with the time of each line."""

    def __init__(self, machine, *args):
        with socket.socket() as s:
            s.bind(('127.0.0.1', 0))
            self.port = s.getsockname()[1]
        self.endpoint = 'tcp://127.0.0.1:%d' % self.port
        self.process = subprocess.Popen([TANDEM, *args, '--bind', self.endpoint, '--key', 'strix'],
                                        env=machine.environment, stderr=subprocess.PIPE, text=True,
                                        preexec_fn=limit_descriptors)
        self.pid = self.process.pid
        while self.endpoint not in self.process.stderr.readline():
            assert self.process.poll() is None, 'the worker did not start'
        self.log = []
        threading.Thread(target=lambda: self.log.extend((time.monotonic(), x) for x in self.process.stderr),
                         daemon=True).start()
        self.n_idle = len(os.listdir('/proc/%d/fd' % self.pid))

    def end(self):
        self.process.terminate()
        self.process.wait(60)


def trial(worker, what, kind, run, wanted):
    """Runs among a crowd until a client has joined twice. True if all was as it should be."""
    crowd = Crowd(worker.port, kind, 0 if kind == 'none' else N, N / 4)
    cpu = cpu_seconds(worker.pid)
    crowd.start()
    time.sleep(0 if kind == 'none' else 1)  # all there are by then
    joins, n_runs, n_most, n_accepted, is_same = [], 0, 0, 0, True
    end = time.monotonic() + 240
    while len(joins) < 2 and time.monotonic() < end:  # a run may be over before the draft has joined
        start, n_log = time.monotonic(), len(worker.log)
        got = run()
        is_same &= {id: x['tokens'] for id, x in got.items()} == wanted
        n_accepted += sum(x['accepted'] for x in got.values())
        joins += [t - start for t, x in worker.log[n_log:] if 'coordinator joined' in x]
        n_most = max(n_most, count_descriptors(worker.pid))
        n_runs += 1
    crowd.is_stopping = True
    crowd.join()
    print('%s, %-8s %5d connections, %4d hung up on; worker: at most %3d descriptors (%d idle), %.2f s CPU; %d runs '
          'joined %d times, after %s s; %d tokens accepted; text %s' %
          (what, kind + ':', crowd.n_made, crowd.n_ended, n_most, worker.n_idle, cpu_seconds(worker.pid) - cpu,
           n_runs, len(joins), ', '.join('%.2f' % x for x in joins) or '-', n_accepted,
           'the same' if is_same else 'DIFFERS'), flush=True)
    return is_same and len(joins) >= 2 and n_most < FD_LIMIT and worker.process.poll() is None


def main():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < N + 100:
        print('only %d descriptors are allowed here; %d are needed' % (hard, N + 100))
        return 77
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, N + 100), hard))
    dir = tempfile.TemporaryDirectory()
    strix, desk = Machine(dir.name, 'strix'), Machine(dir.name, 'desk')
    strix.keys('allow', 'desk', desk.key)
    desk.keys('allow', 'strix', strix.key)
    lines = lines_of(6)
    is_ok = True
    draft = Worker(strix, 'draft', '--model', DRAFT)
    wanted = {id: x['tokens'] for id, x in desk.generate(lines).items()}
    for kind in ['none', 'garbage', 'slow', 'silent']:
        is_ok &= trial(draft, 'draft', kind, lambda: desk.generate(
            lines, '--draft-endpoint', draft.endpoint + ',strix', '--draft-fixed', '2'), wanted)
    draft.end()
    stage = Worker(strix, 'stage', '--device', 'host:1', '--model', TARGET)
    lines = lines_of(3)
    wanted = {id: x['tokens'] for id, x in desk.generate(lines, '--device', 'host:1').items()}
    is_ok &= trial(stage, 'stage', 'slow', lambda: desk.generate(
        lines, '--host', 'strix=' + stage.endpoint + ',strix', '--device', 'strix/host:1'), wanted)
    stage.end()
    return 0 if is_ok else 1


if __name__ == '__main__':
    sys.exit(main())
