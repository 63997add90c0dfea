#!/usr/bin/env python3
"""What goes in and out while a run goes on: programs that wait for their answer, standard descriptors
that are closed, files that are named twice, files that are not there.

usage: e2e_io.py TANDEM   (run from the source root; standard library only)"""
import json
import os
import pty
import select
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import tty
import unittest

from relay import Relay

TANDEM = os.path.abspath(sys.argv.pop(1)) if len(sys.argv) > 1 else 'build/tandem'
TARGET = 'configs/tales/tales-target.q8_0.gguf'
DRAFT = 'configs/tales/tales-draft.q8_0.gguf'
GENERATE = ['generate', '--target', TARGET, '--device', 'host:1', '--quiet', '-n', '4']


def run(*args, **kw):
    return subprocess.run([TANDEM, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=120, **kw)


def shell(line):
    """A line of sh in which $T is the program with the arguments of a small run."""
    command = ' '.join([TANDEM, *GENERATE])
    return subprocess.run(['sh', '-c', line.replace('$T', command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          stdin=subprocess.DEVNULL, text=True, timeout=120)


class Base(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.TemporaryDirectory()
        self.addCleanup(self.dir.cleanup)

    def path(self, name, text=None):
        p = os.path.join(self.dir.name, name)
        if text is not None:
            with open(p, 'w') as f:
                f.write(text)
        return p

    def fails(self, result, code, *needles):
        self.assertEqual(result.returncode, code, result.stderr)
        for needle in needles:
            self.assertIn(needle, result.stderr)


class Descriptors(Base):
    """0, 1 and 2 closed: an error where one is needed, never a hang, and no file in their place."""

    def test_closed_input_is_an_error_where_it_is_read(self):
        for line in '$T --in - <&-', '$T --in - 0>/dev/null':
            self.fails(shell(line), 74, 'standard input')
        self.fails(shell('%s tokenize --model %s --in - <&-' % (TANDEM, TARGET)), 74, 'standard input')
        r = shell('$T --prompt "The fox" <&-')
        self.assertEqual((r.returncode, r.stdout[:7]), (0, 'The fox'), r.stderr)

    def test_closed_output_is_an_error_where_it_is_written(self):
        source = self.path('in.jsonl', '{"prompt": "The fox"}\n')
        self.fails(shell('$T --prompt x >&-'), 74, 'standard output')
        self.fails(shell('$T --in %s >&-' % source), 74, 'standard output')
        self.fails(shell('$T --in %s --out - 1</dev/null' % source), 74, 'standard output')
        for closed in '>&-', '2>&-', '<&- >&- 2>&-':
            out = self.path('out.jsonl')
            r = shell('$T --in %s --out %s --stats %s %s' % (source, out, self.path('s.json'), closed))
            self.assertEqual(r.returncode, 0, r.stderr)
            with open(out) as f:
                lines = f.readlines()
            self.assertEqual([json.loads(x)['status'] for x in lines], ['ok'])
            os.unlink(out)

    def test_messages_do_not_land_in_a_file(self):
        source = self.path('in.jsonl', 'no json\n')
        out = self.path('out.jsonl')
        r = shell('$T --in %s --out %s <&- >&- 2>&-' % (source, out))
        self.assertEqual(r.returncode, 1)
        with open(out) as f:
            lines = f.readlines()
        self.assertEqual([json.loads(x)['status'] for x in lines], ['error'])


class CoProcess:
    """A run whose input and output are held by this program, line by line."""

    def __init__(self, *args, stdin=subprocess.PIPE, source='-'):
        self.p = subprocess.Popen([TANDEM, *GENERATE, '--in', source, *args], stdin=stdin, stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE)
        self.pending = b''

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.p.poll() is None:
            self.p.kill()
        self.p.wait()
        for f in self.p.stdin, self.p.stdout, self.p.stderr:
            if f:
                f.close()

    def write(self, data):
        self.p.stdin.write(data)
        self.p.stdin.flush()

    def line(self, seconds=60):
        """The next line of the answers; fails when none comes."""
        end = time.time() + seconds
        while b'\n' not in self.pending:
            if not select.select([self.p.stdout], [], [], max(0, end - time.time()))[0]:
                raise AssertionError('no answer while the input is open')
            data = os.read(self.p.stdout.fileno(), 1 << 16)
            if not data:
                raise AssertionError('the run ended: ' + self.p.stderr.read().decode())
            self.pending += data
        line, self.pending = self.pending.split(b'\n', 1)
        return json.loads(line)

    def is_silent(self, seconds):
        return not self.pending and not select.select([self.p.stdout], [], [], seconds)[0]


def prompt(name, n=4, text='The fox'):
    return json.dumps({'id': name, 'prompt': text, 'n': n}).encode() + b'\n'


AGREED = ' '.join(['1 2 3'] * 5)  # draft and target go on alike, as far as one looks


WAYS = [['--parallel', '1'], ['--parallel', '2'], ['--parallel', '64'], ['--parallel', '3', '--draft', DRAFT],
        ['--parallel', '2', '--device', 'host:1', '--draft-ngram']]


class Input(Base):
    """Nothing stops for input: what has come is answered, whatever comes next and when."""

    def test_a_program_that_waits_for_its_answer_gets_it(self):
        for args in WAYS:
            with CoProcess(*args) as c:
                for i in range(6):
                    c.write(prompt('p%d' % i))
                    self.assertEqual(c.line()['id'], 'p%d' % i, args)
                c.p.stdin.close()
                self.assertEqual(c.p.wait(60), 0)
                c.p.stdin = None

    def test_a_line_in_pieces_is_answered_when_it_is_whole(self):
        with CoProcess('--parallel', '4', '--draft', DRAFT) as c:
            c.write(prompt('long', 60))
            whole = prompt('pieces')
            c.write(whole[:11])
            self.assertEqual(c.line()['id'], 'long')  # half a line holds nobody up
            self.assertTrue(c.is_silent(0.2))
            for i in range(11, len(whole)):
                c.write(whole[i:i + 1])
            self.assertEqual(c.line()['id'], 'pieces')
            c.write(prompt('last')[:-1])  # the end of the input ends a line too
            c.p.stdin.close()
            self.assertEqual(c.line()['id'], 'last')
            self.assertEqual(c.p.wait(60), 0)
            c.p.stdin = None

    def test_bad_blank_and_huge_lines_are_answered_at_once(self):
        with CoProcess('--parallel', '2') as c:
            c.write(b'\n \r\n' + prompt('a'))
            self.assertEqual(c.line()['id'], 'a')
            c.write(b'no json\n')
            self.assertEqual(c.line()['status'], 'error')
            c.write(b'{"prompt": "' + b'x' * (3 << 20) + b'"}\n')
            self.assertEqual(c.line()['status'], 'error')
            c.write(b'\xff\xfe\n')
            self.assertEqual(c.line()['status'], 'error')
            c.write(prompt('a'))
            self.assertIn('earlier line', c.line()['error'])
            c.write(prompt('b'))
            self.assertEqual(c.line()['status'], 'ok')
            c.p.stdin.close()
            self.assertEqual(c.p.wait(60), 1)
            c.p.stdin = None

    def test_many_lines_at_once_and_nobody_who_reads(self):
        """Lines in far beyond what pipes hold while no answer is read: then all of them are there."""
        names = ['m%d' % i for i in range(900)]
        with CoProcess('--parallel', '32') as c:
            data = b''.join(prompt(x, 1) for x in names)
            self.assertGreater(len(data), 1 << 15)
            c.write(data)
            time.sleep(0.5)
            self.assertIsNone(c.p.poll())
            got = [c.line()['id'] for _ in names]
            self.assertEqual(sorted(got), sorted(names))
            c.write(prompt('after'))
            self.assertEqual(c.line()['id'], 'after')

    def test_generation_goes_on_while_a_long_prompt_is_read(self):
        with CoProcess('--parallel', '2', '--ctx', '300') as c:
            c.write(prompt('short', 100) + json.dumps({'id': 'long', 'prompt': 'ab ' * 300000}).encode() + b'\n')
            got = {x['id']: x for x in (c.line(), c.line())}
            self.assertEqual(got['short']['status'], 'ok')
            self.assertIn('allowed: 1..299', got['long']['error'])

    def test_a_fifo_of_several_writers(self):
        fifo = self.path('fifo')
        os.mkfifo(fifo)
        with CoProcess('--parallel', '2', stdin=subprocess.DEVNULL, source=fifo) as c:  # nobody writes yet
            time.sleep(0.3)
            self.assertIsNone(c.p.poll())
            first = os.open(fifo, os.O_WRONLY)
            second = os.open(fifo, os.O_WRONLY)
            os.write(first, prompt('one'))
            self.assertEqual(c.line()['id'], 'one')
            os.close(first)
            os.write(second, prompt('two'))
            self.assertEqual(c.line()['id'], 'two')
            os.close(second)
            self.assertEqual(c.p.wait(60), 0)

    def test_a_signal_ends_the_wait_for_a_fifo_nobody_opens(self):
        fifo = self.path('fifo')
        os.mkfifo(fifo)
        with CoProcess(stdin=subprocess.DEVNULL, source=fifo) as c:
            time.sleep(0.5)
            c.p.send_signal(signal.SIGTERM)
            self.assertEqual(c.p.wait(60), 143)

    def test_what_is_read_more_than_once_must_be_a_file(self):
        pair = ['bench', '--model', TARGET, '--draft', DRAFT, '--device', 'host:1', '-n', '2', '--in']
        for source in '-', '/dev/stdin', self.dir.name:
            self.fails(run(*pair, source, input='{"prompt": "x"}\n'), 2, '--in', 'regular file')

    def test_a_terminal(self):
        master, slave = pty.openpty()
        tty.setcbreak(slave)
        try:
            with CoProcess('--parallel', '2', stdin=slave) as c:
                os.write(master, prompt('typed'))
                self.assertEqual(c.line()['id'], 'typed')
                os.write(master, prompt('again'))
                self.assertEqual(c.line()['id'], 'again')
        finally:
            os.close(master)
            os.close(slave)

    def test_a_file_that_grows_is_read_to_its_end(self):
        source = self.path('in.jsonl', ''.join(prompt('f%d' % i, 2).decode() for i in range(150)))
        r = run(*GENERATE, '--in', source, '--parallel', '5')
        self.assertEqual(r.returncode, 0, r.stderr)
        self.assertEqual(sorted(json.loads(x)['id'] for x in r.stdout.splitlines()),
                         sorted('f%d' % i for i in range(150)))


class Collisions(Base):
    """No file is written that is read, or written twice, whatever it is called."""

    def setUp(self):
        super().setUp()
        self.source = self.path('in.jsonl', '{"id": "a", "prompt": "The fox"}\n')
        self.out = self.path('out.jsonl')
        self.model = self.path('model.gguf')
        self.draft = self.path('draft.gguf')
        for copy, original in ((self.model, TARGET), (self.draft, DRAFT)):
            with open(original, 'rb') as f, open(copy, 'wb') as g:
                g.write(f.read())
        self.config = self.path('config.json', json.dumps({'target': {'model': self.model}}))

    def refused(self, *args, stdout=subprocess.PIPE, names=()):
        before = {x: os.stat(os.path.join(self.dir.name, x)) for x in sorted(os.listdir(self.dir.name))
                  if os.path.exists(os.path.join(self.dir.name, x))}
        r = subprocess.run([TANDEM, 'generate', '--config', self.config, '--device', 'host:1', '--quiet', '-n', '2',
                            *args], stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=60)
        self.fails(r, 2, 'the same file as', *names)
        after = {x: os.stat(os.path.join(self.dir.name, x)) for x in sorted(os.listdir(self.dir.name))
                 if os.path.exists(os.path.join(self.dir.name, x))}
        self.assertEqual({k: (v.st_ino, v.st_size, v.st_mtime_ns) for k, v in before.items()},
                         {k: (v.st_ino, v.st_size, v.st_mtime_ns) for k, v in after.items()})

    def test_two_names_of_one_output(self):
        new, other = self.path('new.json'), os.path.join(self.dir.name, '.', 'sub', '..', 'new.json')
        os.mkdir(self.path('sub'))
        os.symlink('new.json', self.path('dangling'))
        os.symlink('dangling', self.path('dangling2'))
        os.symlink(self.dir.name, self.path('folder'))
        for a, b in (('--out', '--stats'), ('--stats', '--trace'), ('--out', '--trace')):
            for name in new, other, self.path('dangling'), self.path('dangling2'), self.path('folder/new.json'):
                self.refused('--in', self.source, a, new, b, name, names=(a, b))
                self.refused('--in', self.source, a, name, b, new, names=(a, b))
        with open(new, 'w') as f:
            f.write('')
        os.link(new, self.path('hard'))
        for name in new, other, self.path('dangling2'), self.path('hard'), self.path('folder/new.json'):
            self.refused('--in', self.source, '--out', new, '--stats', name, names=('--out', '--stats'))

    def test_outputs_that_are_read(self):
        for flag in '--out', '--stats', '--trace':
            template = self.path('t.jinja', '{{ messages[0].content }}')
            self.refused('--in', self.source, '--chat-template', template, flag, template, names=(flag,))
            for name in self.source, self.model, self.draft, self.config:
                link = self.path('link' + flag + os.path.basename(name))
                os.symlink(name, link)
                for path in name, link:
                    self.refused('--in', self.source, '--draft', self.draft, flag, path, names=(flag,))

    def test_shards_of_a_model(self):
        for i in 1, 2, 3:
            self.path('m-%05d-of-00003.gguf' % i, 'x')
        self.refused('--target', self.path('m-00001-of-00003.gguf'), '--in', self.source, '--stats',
                     self.path('m-00003-of-00003.gguf'), names=('--stats', '--target'))

    def test_standard_output_and_input(self):
        with open(self.out, 'a') as f:
            self.refused('--in', self.source, '--stats', self.out, stdout=f, names=('standard output',))
            self.refused('--in', self.source, '--stats', '/dev/stdout', stdout=f)
            self.refused('--in', self.source, '--out', '/dev/stdout', '--stats', self.out, stdout=f)
            self.refused('--in', self.source, '--out', '-', '--trace', self.out, stdout=f)
            self.refused('--in', self.source, '--out', self.out, '--stats', '/proc/self/fd/1', stdout=f)
        with open(self.source, 'a') as f:
            self.refused('--in', self.source, stdout=f, names=('standard output', '--in'))
            r = subprocess.run([TANDEM, 'tokenize', '--model', TARGET, '--in', self.source], stdout=f,
                               stderr=subprocess.PIPE, text=True, timeout=60)
            self.fails(r, 2, '--in', 'standard output')
        with open(self.source) as f:
            r = subprocess.run([TANDEM, *GENERATE, '--in', '-', '--out', self.source], stdin=f, stderr=subprocess.PIPE,
                               text=True, timeout=60)
            self.fails(r, 2, '--in', '--out')

    def test_other_commands(self):
        r = run('logits', '--model', self.model, '--tokens', '1,2', '--device', 'host:1', '--out', self.model)
        self.fails(r, 2, '--out', '--model')
        ids = self.path('ids', '1,2')
        r = run('logits', '--model', TARGET, '--tokens', '@' + ids, '--device', 'host:1', '--out', ids)
        self.fails(r, 2, '--out')
        with open(self.model, 'ab') as f:
            for args in (['inspect', self.model], ['plan', '--target', self.model, '--no-measure'],
                         ['bench', '--model', self.model, '--device', 'host:1']):
                r = subprocess.run([TANDEM, *args], stdout=f, stderr=subprocess.PIPE, text=True, timeout=60)
                self.fails(r, 2, 'standard output')

    def test_what_is_no_file_may_be_named_again(self):
        r = run(*GENERATE, '--in', self.source, '--out', '/dev/null', '--stats', '/dev/null', '--trace', '/dev/null')
        self.assertEqual(r.returncode, 0, r.stderr)
        r = run(*GENERATE, '--in', self.source, '--stats', '/dev/stdout')  # a pipe
        self.assertEqual((r.returncode, r.stdout[:10]), (0, '{"id":"a",'), r.stderr)
        with open(self.out, 'w') as f:  # a file of its own
            r = subprocess.run([TANDEM, *GENERATE, '--in', self.source, '--out', '/dev/null', '--stats', '/dev/stdout'],
                               stdout=f, stderr=subprocess.PIPE, text=True, timeout=60)
        self.assertEqual(r.returncode, 0, r.stderr)
        with open(self.out) as f:
            self.assertEqual(json.load(f)['totals']['ok'], 1)
        os.symlink('stats.json', self.path('link'))
        for _ in range(2):  # a link stays one
            r = run(*GENERATE, '--in', self.source, '--out', '/dev/null', '--stats', self.path('link'))
            self.assertEqual(r.returncode, 0, r.stderr)
            self.assertTrue(os.path.islink(self.path('link')) and os.path.isfile(self.path('stats.json')))


class Endpoints(Base):
    """An endpoint that cannot be had is said first of all, and announced when it is there."""

    def worker(self, endpoint, **kw):
        return subprocess.Popen([TANDEM, 'draft', '--model', DRAFT, '--bind', endpoint], stderr=subprocess.PIPE,
                                text=True, **kw)

    def test_a_bad_endpoint_comes_before_the_model(self):
        shared = self.path('shared')
        os.mkdir(shared)
        os.chmod(shared, 0o1777)
        file = self.path('file', 'x')
        nowhere = self.path('no/such/x.sock')
        with socket.socket() as s:
            s.bind(('127.0.0.1', 0))
            s.listen(1)
            port = 'tcp://127.0.0.1:%d' % s.getsockname()[1]
            bad = [('http://x', 2), ('ipc://%s/x.sock' % shared, 2), ('tcp://*:5555', 2), ('inproc://x', 2),
                   ('ipc://', 2), ('ipc://@x', 2), ('tcp://127.0.0.1:0', 2), ('ipc:///tmp/x.sock', 2),
                   ('ipc://' + nowhere, 2), ('', 2)]
            for endpoint, code in bad + [('ipc://' + file, 2), (port, 69)]:
                r = run('draft', '--model', self.path('no-model'), '--bind', endpoint)
                self.fails(r, code, 'endpoint')
                self.assertNotIn('draft worker', r.stderr)
                self.assertNotIn('chmod', r.stderr)
                self.assertNotIn('no-model', r.stderr)
            for endpoint, code in bad:
                r = run('generate', '--target', self.path('no-model'), '--prompt', 'x', '--draft-endpoint', endpoint)
                self.fails(r, code, 'endpoint')
                self.assertNotIn('chmod', r.stderr)
                self.assertNotIn('no-model', r.stderr)

    def test_a_shared_folder_is_left_alone_and_another_named(self):
        shared, own = self.path('shared'), self.path('own')
        os.mkdir(shared)
        os.chmod(shared, 0o1777)
        os.mkdir(own, 0o700)
        for env, wanted in (({'XDG_RUNTIME_DIR': own}, own + '/tandem'), ({'XDG_RUNTIME_DIR': ''}, shared + '/tandem-')):
            r = subprocess.run([TANDEM, 'draft', '--model', DRAFT, '--bind', 'ipc://%s/x.sock' % shared], timeout=60,
                               stderr=subprocess.PIPE, text=True, env={**os.environ, **env})
            self.fails(r, 2, 'mode 1777')
            advised = r.stderr.split('ipc://')[-1].split()[0]
            self.assertTrue(advised.startswith(wanted), r.stderr)
            w = self.worker('ipc://' + advised)  # what is advised works
            self.assertIn('draft worker: ', w.stderr.readline())
            self.assertTrue(stat.S_ISSOCK(os.stat(advised).st_mode))
            w.send_signal(signal.SIGTERM)
            self.assertEqual(w.wait(60), 143)
            w.stderr.close()

    def test_the_socket_goes_with_its_worker(self):
        for number in signal.SIGTERM, signal.SIGINT:
            path = self.path('own/x.sock')
            w = self.worker('ipc://' + path)
            self.assertIn(path, w.stderr.readline())
            self.assertTrue(os.path.exists(path))  # announced when it is there
            self.fails(run('draft', '--model', DRAFT, '--bind', 'ipc://' + path), 69, path)
            w.send_signal(number)
            self.assertEqual(w.wait(60), 128 + number)
            self.assertFalse(os.path.exists(path))
            w.stderr.close()
        first, second = self.worker('ipc://' + path), None
        try:
            self.assertIn(path, first.stderr.readline())
            os.unlink(path)  # somebody else's by now
            second = self.worker('ipc://' + path)
            self.assertIn(path, second.stderr.readline())
            first.send_signal(signal.SIGTERM)
            self.assertEqual(first.wait(60), 143)
            self.assertTrue(os.path.exists(path))
        finally:
            for w in first, second:
                if w:
                    w.kill()
                    w.wait()
                    w.stderr.close()


class Liveness(Base):
    """Who ends is noticed at once, said once, and changes no text."""

    def setUp(self):
        super().setUp()
        self.endpoint = 'ipc://' + self.path('own/x.sock')
        r = run(*GENERATE, '--in', self.path('in.jsonl', self.lines(6)))
        self.wanted = {x['id']: x['tokens'] for x in map(json.loads, r.stdout.splitlines())}
        self.assertEqual(len(self.wanted), 6, r.stderr)

    @staticmethod
    def lines(n):
        return ''.join(prompt('p%d' % i, 40).decode() for i in range(n))

    def worker(self, **env):
        w = subprocess.Popen([TANDEM, 'draft', '--model', DRAFT, '--bind', self.endpoint, *env.pop('args', [])],
                             stderr=subprocess.PIPE, text=True, env={**os.environ, **env})
        self.addCleanup(lambda: (w.kill(), w.wait(), w.stderr.close()))
        self.assertIn('draft worker', w.stderr.readline())
        return w

    def ask(self, c, name):
        c.write(prompt(name, 40))
        answer = c.line()
        self.assertEqual(answer['tokens'], self.wanted[name])
        return answer

    def joins(self, c, name):
        """The draft takes part, sooner or later: on a busy machine it may join behind some lines."""
        for i in range(200):
            c.write(prompt('%s%d' % (name, i), 40))
            if c.line()['accepted'] > 0:
                return
            time.sleep(0.05)
        self.fail('%s: nothing drafted in 200 lines' % name)

    def test_a_killed_draft_is_noticed_by_its_connection(self):
        for endpoint in self.endpoint, None:
            if not endpoint:
                with socket.socket() as s:
                    s.bind(('127.0.0.1', 0))
                    self.endpoint = 'tcp://127.0.0.1:%d' % s.getsockname()[1]
            w = self.worker()
            with CoProcess('--draft-endpoint', self.endpoint, '--parallel', '2', '--draft-fixed', '4') as c:
                self.joins(c, 'first')
                w.send_signal(signal.SIGKILL)
                w.wait()
                said = c.p.stderr.readline().decode()  # with nothing to do and nothing sent
                self.assertIn('the draft is lost', said)
                self.assertIn('connection broke', said)
                self.assertEqual(self.ask(c, 'p1')['drafted'], 0)
                self.worker()  # it is joined again
                self.joins(c, 'again')
                c.p.stdin.close()
                self.assertEqual(c.p.wait(60), 0)
                c.p.stdin = None

    def test_a_killed_run_leaves_its_draft_free(self):
        w = self.worker()
        with CoProcess('--draft-endpoint', self.endpoint, '--draft-fixed', '4') as c:
            self.joins(c, 'first')
            self.assertIn('joined', w.stderr.readline())
            c.p.send_signal(signal.SIGKILL)
            c.p.wait()
            self.assertIn('connection broke', w.stderr.readline())
        with CoProcess('--draft-endpoint', self.endpoint, '--draft-fixed', '4') as c:
            self.joins(c, 'first')

    def drafts(self, c, name):
        """Sooner or later. The text is one on which both agree: of a draft that is far, words come in
        time only where it was right for a whole way there and back, some twenty tokens here."""
        for i in range(200):
            c.write(prompt('%s%d' % (name, i), 100, AGREED))
            if c.line()['drafted'] > 0:
                return
            time.sleep(0.05)
        self.fail('%s: nothing drafted in 200 lines' % name)

    def test_a_stopped_draft_costs_one_deadline(self):
        """One that is there and silent: the connection stands, pings find it in the end."""
        w = self.worker()
        stats = self.path('stats.json')
        with CoProcess('--draft-endpoint', self.endpoint, '--draft-fixed', '4', '--stats', stats) as c:
            self.joins(c, 'first')
            w.send_signal(signal.SIGSTOP)
            for i in range(1, 5):
                self.ask(c, 'p%d' % i)
            w.send_signal(signal.SIGCONT)
            self.drafts(c, 'again')
            self.assertGreater(self.ask(c, 'p5')['drafted'], 0)
            c.p.stdin.close()
            self.assertEqual(c.p.wait(60), 0)
            c.p.stdin = None
            said = c.p.stderr.read().decode()
            self.assertEqual(said.count('has not answered'), 1, said)
        with open(stats) as f:
            self.assertEqual(json.load(f)['coordinator']['missed_deadlines'], 1)

    def test_a_stopped_draft_elsewhere_is_told_of_and_no_line_waits(self):
        """Rounds go on without one that is far, so its silence is found by the clock."""
        with socket.socket() as s, socket.socket() as t:
            s.bind(('127.0.0.1', 0))
            t.bind(('127.0.0.1', 0))
            ports = s.getsockname()[1], t.getsockname()[1]
        self.endpoint = 'tcp://127.0.0.1:%d' % ports[0]
        w = self.worker()
        relay = Relay(ports[1], ports[0], delay=0.0025)
        self.addCleanup(relay.close)
        stats = self.path('stats.json')
        args = ['--temp', '0', '--draft-fixed', '4', '--stats', stats]
        wanted = json.loads(run(*GENERATE, *args[:2], '--in', self.path('in.jsonl', self.lines(1))).stdout)['tokens']
        with CoProcess('--draft-endpoint', 'tcp://127.0.0.1:%d' % ports[1], *args) as c:
            self.joins(c, 'first')
            for i in range(10):  # ways there and back are measured
                c.write(prompt('far%d' % i, 40))
                self.assertEqual(c.line()['tokens'], wanted)
            self.drafts(c, 'before')
            w.send_signal(signal.SIGSTOP)
            start, n_lines = time.monotonic(), 0
            while not select.select([c.p.stderr], [], [], 0)[0] and time.monotonic() < start + 30:
                c.write(prompt('silent%d' % n_lines, 40))
                self.assertEqual(c.line()['tokens'], wanted)
                n_lines += 1
            self.assertIn('the draft has not answered for 2.', c.p.stderr.readline().decode())
            self.assertGreater(n_lines, 1)  # a round that waited would have taken the 2 s
            w.send_signal(signal.SIGCONT)
            self.drafts(c, 'again')
            c.p.stdin.close()
            self.assertEqual(c.p.wait(60), 0)
            c.p.stdin = None
            said = c.p.stderr.read().decode()
            self.assertNotIn('has not answered', said)
            self.assertIn('the draft answers again', said)
        with open(stats) as f:
            self.assertEqual(json.load(f)['coordinator']['missed_deadlines'], 1)

    def test_more_sequences_than_the_draft_has_room_for(self):
        w = self.worker(args=['--parallel', '1'])
        stats = self.path('stats.json')
        r = run(*GENERATE, '--in', self.path('in.jsonl'), '--parallel', '4', '--draft-endpoint', self.endpoint,
                '--draft-fixed', '3', '--stats', stats)
        self.assertEqual({x['id']: x['tokens'] for x in map(json.loads, r.stdout.splitlines())}, self.wanted)
        w.send_signal(signal.SIGTERM)
        self.assertEqual(w.wait(60), 143)
        self.assertEqual(w.stderr.read().count('dropped'), 1)  # said once, not with each message
        with open(stats) as f:
            self.assertEqual(json.load(f)['coordinator']['missed_deadlines'], 0)

    def vulkan(self):
        devices = json.loads(run('devices', '--json').stdout)
        for d in devices:
            if d['kind'] != 'host' and d['usable']:
                return d['device']
        self.skipTest('no Vulkan device')

    def test_a_draft_whose_device_fails_says_so(self):
        device, source = self.vulkan(), self.path('in.jsonl')
        env = {**os.environ, 'TD_VK_LOSE_AFTER': '30'}
        stats = self.path('stats.json')
        r = subprocess.run([TANDEM, *GENERATE, '--in', source, '--draft', DRAFT, '--draft-device', device,
                            '--draft-fixed', '4', '--stats', stats], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                           text=True, timeout=600, env=env)
        self.assertEqual(r.returncode, 0, r.stderr)
        self.assertEqual({x['id']: x['tokens'] for x in map(json.loads, r.stdout.splitlines())}, self.wanted)
        self.assertEqual(r.stderr.count('the draft is lost'), 1, r.stderr)
        with open(stats) as f:  # deadlines may pass before, where the driver is slow
            self.assertEqual(json.load(f)['totals']['draft_losses'], 1)
        # One of its own process: the reason comes with the last message.
        w = self.worker(TD_VK_LOSE_AFTER='30', args=['--device', device])
        r = run(*GENERATE, '--in', source, '--draft-endpoint', self.endpoint, '--draft-fixed', '4')
        self.assertEqual({x['id']: x['tokens'] for x in map(json.loads, r.stdout.splitlines())}, self.wanted)
        self.assertEqual(w.wait(60), 75)
        self.assertIn('ended the session', r.stderr)

    def test_a_target_whose_device_fails_comes_back(self):
        """Its layers are loaded again, and everything is replayed: the same text."""
        device, stats = self.vulkan(), self.path('stats.json')
        args = [TANDEM, 'generate', '--target', TARGET, '--device', 'host:1@0-1', '--device', device + '@2-9', '--quiet',
                '--in', self.path('three.jsonl', self.lines(3)), '--parallel', '2', '--stats', stats, '-n', '12',
                '--draft', DRAFT, '--draft-device', 'host:1', '--draft-fixed', '3']

        def generate(**kw):
            r = subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=600,
                               env={**os.environ, **kw})
            return r, {x['id']: (x['tokens'], x['text'], x['reason']) for x in map(json.loads, r.stdout.splitlines())}
        plain, wanted = generate()
        self.assertEqual((plain.returncode, len(wanted)), (0, 3), plain.stderr)
        r, texts = generate(TD_VK_LOSE_AFTER='12')
        self.assertEqual(r.returncode, 0, r.stderr)
        self.assertEqual(texts, wanted)
        with open(stats) as f:
            s = json.load(f)
        self.assertGreater(s['totals']['target_losses'], 0)
        self.assertGreater(s['coordinator']['replayed_positions'], 0)
        # One that gets nothing done between its losses ends the run, and says so.
        r, texts = generate(TD_VK_LOSE_AFTER='1')
        self.assertEqual((r.returncode, texts), (75, {}), r.stderr)
        self.assertIn('nothing done between', r.stderr)


class Messages(Base):
    """What a person is told: each file once, in time, and on a terminal what was chosen."""

    def test_a_missing_file_is_named_once(self):
        no, out = self.path('no-such-file'), self.path('out')
        lines = self.path('in.jsonl', '{"prompt": "x"}\n')
        deep = self.path('no-such-file/deep')
        small = ['--target', TARGET, '--device', 'host:1']
        cases = [['generate', '--target', no, '--prompt', 'x'], ['generate', '--config', no],
                 ['generate', *small, '--in', no], ['generate', *small, '--draft', no, '--prompt', 'x'],
                 ['generate', *small, '--in', lines, '--out', deep],
                 ['generate', *small, '--prompt', 'x', '--chat-template', no + '.jinja'],
                 ['generate', *small, '--prompt', 'x', '--stats', deep],
                 ['generate', *small, '--prompt', 'x', '--trace', deep],
                 ['draft', '--model', no, '--bind', 'ipc://' + self.path('own/s')],
                 ['draft', '--model', DRAFT, '--vocab-of', no, '--bind', 'ipc://' + self.path('own/s')],
                 ['draft', '--config', no], ['inspect', no], ['tokenize', '--model', no, '--text', 'x'],
                 ['tokenize', '--model', TARGET, '--in', no], ['logits', '--model', no, '--tokens', '1', '--out', out],
                 ['logits', '--model', TARGET, '--tokens', '@' + no, '--out', out, '--device', 'host:1'],
                 ['logits', '--model', no, '--tokens', '1', '--out', deep], ['bench', '--model', no],
                 ['bench', '--model', TARGET, '--draft', no, '--device', 'host:1'],
                 ['bench', '--model', TARGET, '--draft', DRAFT, '--in', no, '--device', 'host:1'],
                 ['plan', '--target', no], ['plan', '--target', TARGET, '--draft', no, '--device', 'host:1'],
                 ['plan', '--hardware', no],
                 ['generate', '--target', self.dir.name + '/./no-such-file', '--prompt', 'x']]
        for args in cases:
            r = run(*args, stdin=subprocess.DEVNULL)
            self.fails(r, 74)
            self.assertEqual((r.stderr.count('no-such-file'), r.stderr.count('error')), (1, 1), (args, r.stderr))

    def on_terminal(self, *args):
        """What is said on standard error, if that is a terminal."""
        master, slave = pty.openpty()
        p = subprocess.Popen([TANDEM, 'generate', '--target', TARGET, '--prompt', 'The fox', '-n', '4', *args],
                             stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=slave)
        os.close(slave)
        said = b''
        while True:
            try:
                data = os.read(master, 1 << 16)
            except OSError:  # the other end is closed
                data = b''
            if not data:
                break
            said += data
        text = p.stdout.read()
        p.stdout.close()
        self.assertEqual(p.wait(60), 0, said)
        os.close(master)
        self.assertTrue(text.startswith(b'The fox'))
        return said.decode()

    def test_a_terminal_is_told_what_was_chosen(self):
        stats = self.path('stats.json')
        args = ['--device', 'host:1@0-3', '--device', 'host:1', '--draft', DRAFT, '--draft-device', 'host:1', '--ctx',
                '200', '--kv-k', 'q8_0', '--kv-keep', 'first,last=f16/-', '--stats', stats]
        said = self.on_terminal(*args)
        self.assertRegex(said, r'loading: [0-9.]+ of [0-9.]+ GB, [0-9.]+ GB/s, \d+ s left')
        table = said.split('s left')[-1]
        self.assertRegex(table, r'(?i)K q8_0, V f16, context 200, 1 at once')
        self.assertIn('\n  layers 0,9=f16/- (K/V)\r\n', table)
        self.assertIn('\n  its cache: K F16, V F16\r\n', table)
        self.assertRegex(table, r'host:1 +layers 0\.\.3 +[0-9.]+ MiB of +[0-9.]+ MiB')
        self.assertRegex(table, r'host:1 +layers 4\.\.9 +[0-9.]+ MiB of +[0-9.]+ MiB')
        self.assertRegex(table, r'host:1 +draft +[0-9.]+ MiB')
        with open(stats) as f:
            s = json.load(f)
        self.assertTrue(all(0 < x['bytes'] < x['usable_bytes'] for x in s['stages']))
        self.assertGreater(s['draft']['bytes'], 0)
        self.assertEqual((s['config']['ctx'], s['config']['kv_k'].lower()), (200, 'q8_0'))
        self.assertNotIn('layers', self.on_terminal('--device', 'host:1', '--quiet'))

    def test_a_pipe_is_not(self):
        r = run('generate', '--target', TARGET, '--device', 'host:1', '--prompt', 'The fox', '-n', '2')
        self.assertNotIn('layers', r.stderr)
        self.assertNotIn('loading', r.stderr)


if __name__ == '__main__':
    unittest.main(verbosity=1)
