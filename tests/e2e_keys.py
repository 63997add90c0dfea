#!/usr/bin/env python3
"""Workers behind keys as a user meets them: the recipe of the manual, refusals, and a worker whose
check of keys does not work.

usage: e2e_keys.py TANDEM   (run from the source root; standard library only)"""
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import unittest

TANDEM = os.path.abspath(sys.argv.pop(1)) if len(sys.argv) > 1 else 'build/tandem'
TARGET = 'configs/tales/tales-target.q8_0.gguf'
DRAFT = 'configs/tales/tales-draft.q8_0.gguf'
LINES = ''.join('{"id": "%d", "prompt": "Once upon a time"}\n' % i for i in range(6))


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def own_address():
    """An address of this machine that is not loopback, or None."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            s.connect(('192.0.2.1', 9))  # sends nothing
            return s.getsockname()[0]
        except OSError:
            return None


class Machine:
    """A folder of keys and the program with it."""

    def __init__(self, dir):
        self.dir = dir
        self.environment = {**os.environ, 'TANDEM_KEYS_DIR': dir}

    def run(self, *args, stdin=None, timeout=120):
        return subprocess.run([TANDEM, *args], input=stdin, capture_output=True, text=True,
                              timeout=timeout, env=self.environment)

    def generate(self, *args, stdin=LINES):
        return self.run('generate', '--target', TARGET, '--device', 'host:1', '--no-measure', '--in', '-', '-n',
                        '60', '--temp', '0.7', '--seed', '3', *args, stdin=stdin)

    def start(self, *args, **environment):
        return subprocess.Popen([TANDEM, 'draft', '--model', DRAFT, *args], stderr=subprocess.PIPE, text=True,
                                env={**self.environment, **environment})


class Keys(unittest.TestCase):
    def setUp(self):
        dir = tempfile.TemporaryDirectory()
        self.addCleanup(dir.cleanup)
        self.desk, self.strix, self.stranger = (Machine(os.path.join(dir.name, name))
                                                for name in ('desk', 'strix', 'stranger'))
        self.dir = dir.name
        self.port = free_port()

    def key(self, result):
        self.assertEqual(result.returncode, 0, result.stderr)
        return result.stdout

    def meet(self):
        """The manual's recipe, its pipes by hand."""
        self.key(self.desk.run('keys', 'allow', 'strix', '-', stdin=self.key(self.strix.run('keys', 'new', 'strix'))))
        self.key(self.strix.run('keys', 'allow', 'desk', '-', stdin=self.key(self.desk.run('keys', 'new', 'desk'))))

    def worker(self, *args, **environment):
        w = self.strix.start(*args, **environment)
        self.addCleanup(w.stderr.close)
        self.addCleanup(w.wait)
        self.addCleanup(w.kill)
        self.assertIn('draft worker', w.stderr.readline())
        return w

    def drafted(self, endpoint, *args, machine=None, wanted=True):
        """Runs until something was accepted from the draft, which a busy machine may take a while to
        let happen; the text is the same each time."""
        machine = machine or self.desk
        for _ in range(40 if wanted else 2):
            r = machine.generate('--draft-endpoint', endpoint, '--draft-fixed', '2', *args)
            self.assertEqual(r.returncode, 0, r.stderr)
            got = [json.loads(x) for x in r.stdout.splitlines()]
            self.assertEqual([x['tokens'] for x in got], self.wanted)
            if any(x['accepted'] for x in got):
                return True
            self.said = r.stderr
        return False

    def test_two_machines_meet_and_strangers_do_not(self):
        self.wanted = [json.loads(x)['tokens'] for x in self.desk.generate().stdout.splitlines()]
        self.meet()
        w = self.worker('--bind', 'tcp://*:%d' % self.port)
        hosts = ['127.0.0.1', 'localhost'] + [a for a in [own_address()] if a]
        for host in hosts:
            self.assertTrue(self.drafted('tcp://%s:%d,strix' % (host, self.port)), host)
        public = os.path.join(self.dir, 'strix.pub')
        with open(public, 'w') as f:
            f.write(self.key(self.desk.run('keys', 'show', 'strix')))
        at = 'tcp://127.0.0.1:%d' % self.port
        self.assertTrue(self.drafted(at + ',' + public))
        # No key, a key that is not allowed, and a worker that is another than the one meant.
        self.assertFalse(self.drafted(at, wanted=False))
        self.key(self.stranger.run('keys', 'new', 'me'))
        self.assertFalse(self.drafted(at + ',' + public, machine=self.stranger, wanted=False))
        self.assertFalse(self.drafted(at + ',desk', wanted=False))
        # Allowed while the worker runs.
        self.key(self.strix.run('keys', 'allow', 'me', self.key(self.stranger.run('keys', 'show', 'me')).strip()))
        self.assertTrue(self.drafted(at + ',' + public, machine=self.stranger))
        w.send_signal(signal.SIGTERM)
        self.assertEqual(w.wait(60), 143)
        log = w.stderr.read()
        self.assertIn('desk is let in', log)
        self.assertIn("tandem keys allow NAME '" + self.key(self.stranger.run('keys', 'show', 'me')).strip(), log)

    def test_from_worker_to_worker_it_takes_a_key_too(self):
        self.meet()
        self.key(self.desk.run('keys', 'allow', 'far', '-', stdin=self.key(self.stranger.run('keys', 'new', 'far'))))
        self.key(self.stranger.run('keys', 'allow', 'desk', '-', stdin=self.key(self.desk.run('keys', 'show', 'desk'))))
        args = ['plan', '--json', '--target', TARGET]
        for machine, name in ((self.strix, 'strix'), (self.stranger, 'far')):
            end = 'tcp://127.0.0.1:%d' % free_port()
            w = subprocess.Popen([TANDEM, 'stage', '--bind', end, '--key', name, '--device', 'host:1', '--models', 'configs/tales'],
                                 stderr=subprocess.PIPE, text=True,
                                 env={**machine.environment, 'TANDEM_CACHE_DIR': os.path.join(self.dir, 'cache-' + name)})
            self.addCleanup(w.stderr.close)
            self.addCleanup(w.wait)
            self.addCleanup(w.kill)
            while ': at ' not in w.stderr.readline():
                self.assertIsNone(w.poll())
            args += ['--host', '%s=%s,%s' % (name, end, name), '--device', name + '/host:1']
        r = self.desk.run(*args)
        self.assertEqual(r.returncode, 69, r.stderr)
        self.assertIn('cannot reach host far at %s,far: no answer' % end, r.stderr)
        self.key(self.stranger.run('keys', 'allow', 'strix', self.key(self.strix.run('keys', 'show', 'strix')).strip()))
        self.assertEqual([(h['from'], h['to']) for h in json.loads(self.key(self.desk.run(*args)))['hops']], [('strix', 'far')])

    def test_a_worker_that_cannot_refuse_does_not_start(self):
        self.meet()
        for way in ['absent', 'open']:
            w = self.strix.start('--bind', 'tcp://127.0.0.1:%d' % self.port, '--key', 'strix', TD_ZAP=way)
            said = w.communicate(timeout=120)[1]
            self.assertEqual(w.returncode, 69, said)
            self.assertIn('nothing is served', said)
            self.assertNotIn('draft worker', said)

    def test_usage(self):
        self.meet()
        at = 'tcp://192.0.2.1:5555'
        cases = [
            (self.stranger.run('draft', '--model', DRAFT, '--bind', 'tcp://*:%d' % self.port), 'keys new'),
            (self.desk.generate('--draft-endpoint', at), 'EP,KEY'),
            (self.desk.generate('--draft-endpoint', at + ',nobody'), 'nobody'),
            (self.desk.generate('--draft-endpoint', at + ',strix', '--key', 'strix'), 'strix'),  # not our own
            (self.desk.generate('--draft-endpoint', 'tcp://127.0.0.1:5555', '--key', 'desk'), '--key'),
            (self.strix.run('draft', '--model', DRAFT, '--bind', 'ipc://' + self.dir + '/s', '--key', 'strix'), '--key'),
            (self.desk.run('devices', '--host', 'a=' + at, '--host', 'b=' + at), '--host'),  # no key behind it
            (self.desk.run('devices', '--host', 'a=ipc://' + self.dir + '/a', '--host', 'a=ipc://' + self.dir + '/b'), '--host: a is both'),
            (self.desk.run('keys', 'new', 'desk'), 'desk'),
            (self.desk.run('keys', 'new', '../x'), '../x'),
            (self.desk.run('keys', 'allow', 'x', 'short'), 'short'),
            (self.desk.run('keys', 'allow', 'x', '-', stdin=''), 'standard input'),
            (self.desk.run('keys', 'allow', 'x', 'rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7'), 'manual'),
            (self.desk.run('keys', 'show', 'nobody'), 'nobody'),
            (self.desk.run('keys', 'forget', 'x'), 'allow'),
            (self.desk.run('keys'), 'usage'),
            (self.desk.run('keys', 'list', 'x'), 'x'),
            (self.desk.run('keys', 'new', 'x', '--json'), '--json'),
        ]
        for r, needle in cases:
            self.assertEqual(r.returncode, 2, r.stderr)
            self.assertIn(needle, r.stderr)
        # No secret where it does not belong: not on the screen, not in what others may read.
        with open(os.path.join(self.desk.dir, 'desk.key')) as f:
            secret = f.read().split('secret ')[1].strip()
        shown = self.desk.run('keys', 'list').stdout + self.desk.run('keys', 'list', '--json').stdout
        self.assertNotIn(secret, shown)
        rows = {x['name']: x for x in json.loads(self.desk.run('keys', 'list', '--json').stdout)}
        self.assertEqual({n: (x['own'], x['allowed']) for n, x in rows.items()},
                         {'desk': (True, False), 'strix': (False, True)})
        # A file that others may read is no key any more.
        os.chmod(os.path.join(self.desk.dir, 'desk.key'), 0o644)
        r = self.desk.generate('--draft-endpoint', at + ',strix')
        self.assertEqual(r.returncode, 65, r.stderr)
        self.assertIn('0600', r.stderr)
        self.assertNotIn(secret, r.stderr)
        r = self.desk.run('keys', 'list')
        self.assertEqual(r.returncode, 65)
        self.assertIn('strix', r.stdout)

    def test_a_configuration_names_keys(self):
        self.wanted = [json.loads(x)['tokens'] for x in self.desk.generate().stdout.splitlines()]
        self.meet()
        self.key(self.desk.run('keys', 'new', 'another'))
        worker, client = os.path.join(self.dir, 'w.json'), os.path.join(self.dir, 'c.json')
        with open(worker, 'w') as f:
            json.dump({'draft': {'model': DRAFT, 'bind': 'tcp://127.0.0.1:%d' % self.port, 'key': 'strix'}}, f)
        with open(client, 'w') as f:
            json.dump({'draft': {'endpoint': 'tcp://127.0.0.1:%d,strix' % self.port}, 'run': {'key': 'desk'}}, f)
        w = self.strix.run('draft', '--config', worker, '--key', 'desk')
        self.assertEqual(w.returncode, 2)  # a flag wins over the file
        w = subprocess.Popen([TANDEM, 'draft', '--config', worker], stderr=subprocess.PIPE, text=True,
                             env=self.strix.environment)
        self.addCleanup(w.stderr.close)
        self.addCleanup(w.wait)
        self.addCleanup(w.kill)
        for _ in range(40):
            r = self.desk.generate('--config', client, '--draft-fixed', '2')
            got = [json.loads(x) for x in r.stdout.splitlines()]
            self.assertEqual([x['tokens'] for x in got], self.wanted)
            if any(x['accepted'] for x in got):
                return
        self.fail(r.stderr)


if __name__ == '__main__':
    unittest.main()
