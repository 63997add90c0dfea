#!/usr/bin/env python3
"""Batch runs that are killed, interrupted, repeated or starved: nothing finished is lost, nothing is
written twice, and the text is that of a run nobody disturbed.

usage: e2e_kill.py TANDEM [--kills N]   (run from the source root; standard library only)"""
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import unittest

KILLS = 25
if '--kills' in sys.argv:
    at = sys.argv.index('--kills')
    KILLS = int(sys.argv[at + 1])
    del sys.argv[at:at + 2]
TANDEM = os.path.abspath(sys.argv.pop(1)) if len(sys.argv) > 1 else 'build/tandem'
TARGET = 'configs/tales/tales-target.q8_0.gguf'
DRAFT = 'configs/tales/tales-draft.q8_0.gguf'


def command(*args):
    return [TANDEM, 'generate', '--target', TARGET, '--device', 'host:1', '--quiet', *args]


def read(path):
    with open(path, 'rb') as f:
        return f.read()


def results(path):
    """The lines by id; each must be whole and each id must be there once."""
    data = read(path)
    assert not data or data.endswith(b'\n'), 'a torn line at the end of %s' % path
    lines = [json.loads(x) for x in data.splitlines()]
    assert len({x['id'] for x in lines}) == len(lines), 'an id stands twice'
    return {x['id']: x for x in lines}


class Kill(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.TemporaryDirectory()
        self.addCleanup(self.dir.cleanup)
        self.out = self.path('out.jsonl')

    def path(self, name):
        return os.path.join(self.dir.name, name)

    def prompts(self, n):
        p = self.path('in.jsonl')
        with open(p, 'w') as f:
            for i in range(n):
                f.write(json.dumps({'id': 'p%d' % i, 'prompt': 'Once upon a time there were %d' % i, 'n': 12}) + '\n')
        return p

    def run_to_end(self, *args, code=0, stdout=subprocess.DEVNULL):
        r = subprocess.run(command(*args), stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=300)
        self.assertEqual(r.returncode, code, r.stderr)
        return r

    def wait_for_lines(self, path, n, process):
        end = time.time() + 120
        while time.time() < end and process.poll() is None:
            if os.path.exists(path) and read(path).count(b'\n') >= n:
                return
            time.sleep(0.005)
        self.assertIsNone(process.poll(), 'the run ended early')

    def test_killed_at_random_points_and_resumed(self):
        source = self.prompts(60)
        whole = self.path('whole.jsonl')
        self.run_to_end('--in', source, '--out', whole)
        expected = {k: v['tokens'] for k, v in results(whole).items()}
        self.assertEqual(len(expected), 60)
        rng = random.Random(7)
        args = command('--in', source, '--out', self.out, '--draft', DRAFT, '--parallel', '3')
        n_killed = 0
        for _ in range(KILLS):
            p = subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                p.wait(rng.uniform(0.02, 0.5))
            except subprocess.TimeoutExpired:
                p.send_signal(signal.SIGKILL)
                n_killed += 1
            p.wait()
            if p.returncode == 0:  # done: begin again, so that every kill has something to kill
                self.assertEqual({k: v['tokens'] for k, v in results(self.out).items()}, expected)
                os.unlink(self.out)
        self.run_to_end('--in', source, '--out', self.out, '--draft', DRAFT, '--parallel', '3')
        self.assertEqual({k: v['tokens'] for k, v in results(self.out).items()}, expected)
        self.assertGreater(n_killed, 0)

    def test_a_file_torn_at_any_byte_is_resumed(self):
        source = self.prompts(3)
        self.run_to_end('--in', source, '--out', self.out)
        whole = read(self.out)
        expected = {k: v['tokens'] for k, v in results(self.out).items()}
        start = len(b''.join(whole.splitlines(True)[:2]))
        for size in [1, start - 1, start, start + 1, start + 2, (start + len(whole)) // 2, len(whole) - 1]:
            with open(self.out, 'wb') as f:
                f.write(whole[:size])
            self.run_to_end('--in', source, '--out', self.out)
            self.assertEqual({k: v['tokens'] for k, v in results(self.out).items()}, expected, size)

    def test_a_torn_tail_is_removed_and_a_bad_middle_refused(self):
        source = self.prompts(6)
        self.run_to_end('--in', source, '--out', self.out)
        whole = read(self.out)
        with open(self.out, 'wb') as f:
            f.write(whole[:-25])
        r = self.run_to_end('--in', source, '--out', self.out)
        self.assertIn('not finished', r.stderr)
        self.assertEqual(len(results(self.out)), 6)
        lines = whole.splitlines(True)
        with open(self.out, 'wb') as f:
            f.write(lines[0] + lines[1][:20] + b'\n' + b''.join(lines[2:]))
        before = read(self.out)
        self.run_to_end('--in', source, '--out', self.out, code=65)
        self.assertEqual(read(self.out), before)

    def test_a_second_run_on_the_file_is_refused(self):
        p = subprocess.Popen(command('--in', self.prompts(400), '--out', self.out), stderr=subprocess.DEVNULL)
        try:
            self.wait_for_lines(self.out, 1, p)
            r = self.run_to_end('--in', self.prompts(400), '--out', self.out, code=75)
            self.assertIn('out.jsonl', r.stderr)
        finally:
            p.kill()
            p.wait()

    def test_signals_drain_and_exit_by_their_number(self):
        for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
            out = self.path('signal%d.jsonl' % number)
            p = subprocess.Popen(command('--in', self.prompts(2000), '--out', out), stderr=subprocess.DEVNULL)
            self.wait_for_lines(out, 2, p)
            p.send_signal(number)
            self.assertEqual(p.wait(60), code)
            done = results(out)
            self.assertTrue(2 <= len(done) < 2000)
            self.assertTrue(all(x['status'] == 'ok' for x in done.values()))

    def test_a_signal_ends_the_wait_for_input_and_two_end_at_once(self):
        p = subprocess.Popen(command('--in', '-', '--out', self.out), stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
        p.stdin.write(b'{"id": "a", "prompt": "The fox", "n": 4}\n')
        p.stdin.flush()
        self.wait_for_lines(self.out, 1, p)
        p.send_signal(signal.SIGTERM)
        self.assertEqual(p.wait(60), 143)
        p.stdin.close()
        self.assertEqual(list(results(self.out)), ['a'])
        # One that is generating a long text goes on with it; the second signal does not let it.
        source = self.path('long.jsonl')
        with open(source, 'w') as f:
            f.write('{"id": "short", "prompt": "A", "n": 1}\n')
            for i in range(64):
                f.write('{"id": "l%d", "prompt": "Once", "n": 450}\n' % i)
        out = self.path('two.jsonl')
        p = subprocess.Popen(command('--in', source, '--out', out, '--ignore-eos', '--parallel', '64'),
                             stderr=subprocess.DEVNULL)
        self.wait_for_lines(out, 1, p)
        p.send_signal(signal.SIGINT)
        time.sleep(0.05)  # two that come together are one
        p.send_signal(signal.SIGINT)
        self.assertEqual(p.wait(60), 130)
        self.assertLess(len(results(out)), 65)

    def test_a_full_disk_ends_the_run_with_whole_lines(self):
        def small_files():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then a write that is too much fails
            resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
        source = self.prompts(20)
        p = subprocess.run(command('--in', source, '--out', self.out), stderr=subprocess.PIPE, text=True,
                           preexec_fn=small_files, timeout=120)
        self.assertEqual(p.returncode, 74, p.stderr)
        self.assertIn('out.jsonl', p.stderr)
        n = len(results(self.out))
        self.assertTrue(0 < n < 20, n)
        self.run_to_end('--in', source, '--out', self.out)
        self.assertEqual(len(results(self.out)), 20)

    def test_output_that_cannot_be_written(self):
        r = self.run_to_end('--in', self.prompts(3), '--out', '/dev/full', code=74)
        self.assertIn('/dev/full', r.stderr)
        with open('/dev/full', 'w') as full:
            self.run_to_end('--in', self.prompts(3), code=74, stdout=full)
            self.run_to_end('--prompt', 'The fox', '-n', '4', code=74, stdout=full)
        self.run_to_end('--in', self.prompts(3), '--out', self.path('no/such/folder'), code=74)
        self.run_to_end('--in', self.path('no-such-file'), '--out', self.out, code=74)
        p = subprocess.Popen(command('--in', self.prompts(2000)), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        p.stdout.readline()
        p.stdout.close()
        self.assertEqual(p.wait(120), 74)
        p.stderr.close()

    def test_error_lines_are_kept_or_run_again(self):
        source = self.path('mixed.jsonl')
        with open(source, 'w') as f:
            f.write('{"id": "good", "prompt": "The fox", "n": 4}\n'
                    '{"id": "bad", "prompt": "The fox", "n": 0}\n'
                    'no json\n'
                    '{"id": "good", "prompt": "twice", "n": 4}\n'
                    '{"id": "long", "prompt": "%s"}\n' % ('word ' * 2000))
        self.run_to_end('--in', source, '--out', self.out, code=1)
        first = results(self.out)
        self.assertEqual(len(first), 5)
        self.assertEqual([k for k, v in first.items() if v['status'] == 'ok'], ['good'])
        self.assertIn('tokens', first['long']['error'])
        before = read(self.out)
        self.run_to_end('--in', source, '--out', self.out, code=1)
        self.assertEqual(read(self.out), before)
        with open(source, 'w') as f:
            f.write('{"id": "good", "prompt": "The fox", "n": 4}\n{"id": "bad", "prompt": "The fox", "n": 4}\n')
        r = self.run_to_end('--in', source, '--out', self.out, '--retry-errors', code=65)
        self.assertIn('bad', r.stderr)  # another input under the same id

    def test_errors_are_run_again_when_asked(self):
        source = self.prompts(3)
        self.run_to_end('--in', source, '--out', self.out)
        lines = read(self.out).splitlines(True)
        failed = json.loads(lines[1])
        failed.update(status='error', error='a lost device', text='', tokens=[], reason=None)
        with open(self.out, 'wb') as f:
            f.write(lines[0] + json.dumps(failed).encode() + b'\n' + lines[2])
        before = read(self.out)
        self.run_to_end('--in', source, '--out', self.out, code=1)  # the error is still there
        self.assertEqual(read(self.out), before)
        self.run_to_end('--in', source, '--out', self.out, '--retry-errors')
        after = read(self.out)
        self.assertTrue(after.startswith(before))  # what was written stays; the last line of an id counts
        again = json.loads(after[len(before):])
        self.assertEqual((again['id'], again['status'], again['tokens']),
                         (failed['id'], 'ok', json.loads(lines[1])['tokens']))
        self.run_to_end('--in', source, '--out', self.out, '--retry-errors')
        self.assertEqual(read(self.out), after)

    def test_another_configuration_is_refused_unless_forced(self):
        source = self.prompts(2)
        self.run_to_end('--in', source, '--out', self.out)
        before = read(self.out)
        r = self.run_to_end('--in', source, '--out', self.out, '--kv-k', 'q8_0', code=65)
        self.assertIn('configuration', r.stderr)
        self.run_to_end('--in', source, '--out', self.out, '--kv-k', 'q8_0', '--force')
        self.assertEqual(read(self.out), before)
        self.run_to_end('--in', source, '--out', self.out, '--draft', DRAFT)  # a draft changes nothing
        self.assertEqual(read(self.out), before)


if __name__ == '__main__':
    unittest.main(verbosity=1)
