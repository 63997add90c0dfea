#!/usr/bin/env python3
"""Jobs in SQLite and in a PostgreSQL of the test's own: what `tandem job` says, and workers that are
killed, stopped past their leases and cut off from their database. Whatever happens, every line ends
once, with the text of a plain run of the file.

usage: e2e_job.py TANDEM   (run from the source root; standard library only)
FAULT_RUNS: how often workers are killed or stopped (12), by FAULT_SEED (1). RESULT_TOKENS: of a long
result (8192)."""
import glob
import json
import os
import pwd
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import unittest

TANDEM = os.path.abspath(sys.argv.pop(1)) if len(sys.argv) > 1 else 'build/tandem'
TARGET = 'configs/tales/tales-target.q8_0.gguf'
N_FAULTS = int(os.environ.get('FAULT_RUNS') or 12)
SEED = int(os.environ.get('FAULT_SEED') or 1)
N_LONG = int(os.environ.get('RESULT_TOKENS') or 8192)
N_LINES, N_TOKENS = 96, 60
WORKER = [TANDEM, 'generate', '--target', TARGET, '--device', 'host:1', '--no-measure', '--parallel', '2']
STARTS = ['Once upon a time there was a poor miller who had', 'The king said to his daughter', 'In a dark wood there lived']


def tandem(*arguments, code=0, text=None, env=None, seconds=300):
    r = subprocess.run([TANDEM, *map(str, arguments)], capture_output=True, text=True, input=text, timeout=seconds,
                       env={**os.environ, **(env or {})})
    assert r.returncode == code, (arguments, r.returncode, r.stdout[-2000:], r.stderr[-2000:])
    return r


def wait_until(what, seconds=120):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, 'waited for %g s' % seconds
        time.sleep(0.02)


class Postgres:
    """A server on a socket, as another user where we are root, which it refuses to run as."""

    def __init__(self):
        found = [os.path.dirname(shutil.which('initdb') or '')] + sorted(glob.glob('/usr/lib/postgresql/*/bin'))
        self.bin = next((d for d in reversed(found) if d and os.path.exists(d + '/pg_ctl')), None)
        if not self.bin:
            raise unittest.SkipTest('there is no PostgreSQL server here (Debian: postgresql)')
        if 'without libpq' in subprocess.run([TANDEM, 'job', 'status', 'postgresql://x/y'], capture_output=True,
                                             text=True).stderr:
            raise unittest.SkipTest('this tandem was built without libpq')
        self.dir = tempfile.mkdtemp()
        self.user = None
        if os.geteuid() == 0:
            names = [p.pw_name for p in pwd.getpwall() if p.pw_name in ('postgres', 'nobody')]
            self.user = 'postgres' if 'postgres' in names else 'nobody'
            shutil.chown(self.dir, self.user)
        os.chmod(self.dir, 0o755)
        self.do('initdb', '-D', 'data', '-U', 'tandem', '--auth=trust', '-E', 'UTF8', '--no-sync')
        self.start()
        self.do('createdb', '-h', self.dir, '-U', 'tandem', 'job')
        self.url = 'postgresql://tandem@/job?host=' + self.dir

    def do(self, tool, *arguments):
        command = [os.path.join(self.bin, tool), *arguments]
        if self.user:
            command = ['setpriv', '--reuid', self.user, '--regid', str(pwd.getpwnam(self.user).pw_gid), '--clear-groups',
                       *command]
        r = subprocess.run(command, cwd=self.dir, capture_output=True, text=True, stdin=subprocess.DEVNULL,
                           env={'PATH': os.environ['PATH'], 'HOME': self.dir, 'LC_ALL': 'C.UTF-8'})
        assert r.returncode == 0, (command, r.stdout, r.stderr)
        return r.stdout

    def start(self):
        self.do('pg_ctl', '-D', 'data', '-l', 'log', '-w', '-o',
                '-c listen_addresses= -c unix_socket_directories=%s -c max_connections=40' % self.dir, 'start')

    def stop(self, mode):
        self.do('pg_ctl', '-D', 'data', '-m', mode, '-w', 'stop')

    def sql(self, text):
        return self.do('psql', '-h', self.dir, '-U', 'tandem', '-d', 'job', '-Atc', text).strip()

    def close(self):
        self.stop('immediate')
        shutil.rmtree(self.dir, ignore_errors=True)


class Sqlite:
    def __init__(self):
        self.dir = tempfile.mkdtemp()
        self.path = self.dir + '/job.db'
        self.url = 'sqlite:' + self.path
        open(self.path, 'w').close()

    def sql(self, text):
        db = sqlite3.connect(self.path, timeout=60)
        with db:
            rows = db.execute(text).fetchall()
        db.close()
        return '\n'.join('|'.join(map(str, row)) for row in rows)

    def close(self):
        shutil.rmtree(self.dir, ignore_errors=True)


class Cases:
    """The same for each kind of database; `self.db` has a url and sql()."""

    @classmethod
    def setUpClass(cls):
        cls.dir = tempfile.mkdtemp()
        cls.input = cls.dir + '/in.jsonl'
        lines = [{'id': 'l%d' % i, 'prompt': '%s, number %d,' % (STARTS[i % 3], i), 'n': 8 + i * 7 % N_TOKENS}
                 for i in range(N_LINES)]
        lines.insert(7, {'id': 'l3', 'prompt': 'an id that is there'})
        lines.insert(9, {'id': 'bad', 'prompt': 1})
        with open(cls.input, 'w') as f:
            f.write('\n'.join(map(json.dumps, lines)) + '\n\xff no JSON\n')
        tandem(*WORKER[1:], '--in', cls.input, '--out', cls.dir + '/plain.jsonl', '--temp', '0.7', '--seed', '5', code=1)
        cls.plain = cls.read(cls.dir + '/plain.jsonl')
        cls.env = {**os.environ, 'TANDEM_CACHE_DIR': cls.dir + '/cache'}
        cls.db = cls.make_db()

    @classmethod
    def tearDownClass(cls):
        if hasattr(cls, 'db'):
            cls.db.close()
        shutil.rmtree(cls.dir, ignore_errors=True)

    @staticmethod
    def read(path):
        with open(path) as f:
            lines = [json.loads(line) for line in f]
        by_id = {line['id']: line for line in lines}
        assert len(by_id) == len(lines), 'an id is there twice'
        return by_id

    def setUp(self):
        self.workers = []
        subprocess.run([TANDEM, 'job', 'drop', self.db.url], capture_output=True)

    def tearDown(self):
        for w in self.workers:
            if w.poll() is None:
                w.send_signal(signal.SIGCONT)
                w.kill()
            w.wait()
            w.stderr.close()

    def create(self, *more):
        tandem('job', 'create', self.db.url, '--in', self.input, '--temp', '0.7', '--seed', '5', *more)

    def start(self, *more):
        log = tempfile.TemporaryFile('w+')
        w = subprocess.Popen([*WORKER, '--job', self.db.url, '--lease', '2', *more], stderr=log, env=self.env)
        w.stderr = log
        self.workers.append(w)
        return w

    def log(self, w):
        w.stderr.seek(0)
        return w.stderr.read()

    def status(self):
        for _ in range(5):
            r = subprocess.run([TANDEM, 'job', 'status', self.db.url, '--json'], capture_output=True, text=True)
            if r.returncode != 69: # a server of a busy machine may take too long to answer
                break
        assert r.returncode in (0, 1), (r.returncode, r.stderr)
        return json.loads(r.stdout)

    def n_ended(self):
        s = self.status()
        return s['ok'] + s['failed'] + s['cancelled']

    def check_results(self):
        out = self.dir + '/out.jsonl'
        tandem('job', 'export', self.db.url, '--out', out, '--force')
        got = self.read(out)
        self.assertEqual(got.keys(), self.plain.keys())
        for key, want in self.plain.items():
            for field in ('status', 'text', 'tokens', 'reason', 'prompt_tokens', 'config_sha', 'model_sha'):
                self.assertEqual(got[key][field], want[field], (key, field, got[key]))
            if want['status'] == 'ok':
                self.assertEqual(got[key]['input_sha'], want['input_sha'])

    def finish(self, *more):
        """Workers until the job is empty."""
        w = self.start(*more)
        self.assertIn(w.wait(timeout=300), (0, 1), self.log(w))

    def test_words(self):
        url = self.db.url
        self.assertIn('there is no job', tandem('job', 'status', url, code=65).stderr)
        self.create()
        self.assertIn('already', tandem('job', 'create', url, '--in', self.input, code=65).stderr)
        r = tandem('job', 'add', url, '--in', self.input)
        self.assertIn(' 0 lines added', r.stderr)
        one = self.dir + '/one.jsonl'
        with open(one, 'w') as f:
            f.write('{"id": "another", "prompt": "Once"}\n')
        self.assertIn(' 1 lines added', tandem('job', 'add', url, '--in', one).stderr)
        self.assertEqual(self.status()['waiting'], len(self.plain) + 1)
        self.finish()
        s = self.status()
        self.assertEqual((s['ok'], s['failed'], s['running'], s['waiting']), (N_LINES + 1, 3, 0, 0))
        self.assertTrue(s['workers'][0]['left'])
        self.assertIn('3 lines wait again', tandem('job', 'retry', url).stderr)
        self.finish()
        self.assertIn(' 0 lines', tandem('job', 'cancel', url).stderr)
        r = tandem('job', 'export', url)
        self.assertEqual(len(r.stdout.splitlines()), len(self.plain) + 1)
        self.assertIn('"id":"another"', r.stdout.splitlines()[-1])
        finished = [json.loads(line)['id'] for line in tandem('job', 'export', url, '--order', 'finish').stdout.splitlines()]
        self.assertEqual(sorted(finished), sorted([*self.plain, 'another']))
        self.assertEqual(finished, self.db.sql('SELECT id FROM tandem_line ORDER BY finished, n').split())
        out = self.dir + '/there.jsonl'
        tandem('job', 'export', url, '--out', out)
        self.assertIn('--force', tandem('job', 'export', url, '--out', out, code=2).stderr)
        tandem('job', 'drop', url)
        tandem('job', 'drop', url, code=65)

    def test_bad_words(self):
        url = self.db.url
        for arguments, code, words in [
                (['job'], 2, 'usage'), (['job', 'make', url], 2, 'allowed: create, add'), (['job', 'create'], 2, 'usage'),
                (['job', 'create', url], 2, '--in'), (['job', 'status', url, '--in', self.input], 2, 'does not go'),
                (['job', 'requeue', url], 2, '--worker'), (['job', 'export', url, '--order', 'x'], 2, 'input, finish'), (['job', 'add', url, '--temp', '1'], 2, 'does not go'),
                (['job', 'status', 'mysql://x'], 2, 'allowed: sqlite:FILE'),
                (['job', 'status', 'sqlite:'], 2, 'allowed: sqlite:FILE'),
                (['job', 'status', 'sqlite:/no/such/job.db'], 69, '/no/such/job.db'),
                ([*WORKER[1:], '--job', url, '--out', 'x'], 2, '--out'),
                ([*WORKER[1:], '--job', url, '--in', self.input], 2, 'one of'),
                ([*WORKER[1:], '--job', url, '--lease', '0'], 2, '1..86400'),
                (['job', 'create', url, '--in', self.dir + '/none'], 74, 'none')]:
            with self.subTest(arguments):
                self.assertIn(words, tandem(*arguments, code=code).stderr)
        r = tandem('job', 'status', 'postgresql://tandem:hushhush@host/db', code=2)
        self.assertIn('PGPASSFILE', r.stderr)
        self.assertNotIn('hushhush', r.stderr)
        config = self.dir + '/config.json'
        with open(config, 'w') as f:
            json.dump({'target': {'model': '/etc/passwd'}, 'sampling': {'temp': 0}}, f)
        self.assertIn('target', tandem('job', 'create', url, '--in', self.input, '--config', config, code=65).stderr)
        with open(config, 'w') as f:
            json.dump({'run': {'n': 3}, 'sampling': {'temp': 0, 'stop': ['x', 'yz']}}, f)
        tandem('job', 'create', url, '--in', self.input, '--config', config)
        settings = json.loads(self.db.sql('SELECT config FROM tandem_job'))
        self.assertEqual((settings['n'], settings['temp'], settings['stop']), (3, 0, ['x', 'yz']))
        self.assertIn('the job says 3', tandem(*WORKER[1:], '--job', url, '-n', '4', code=2).stderr)
        for version, words in ((0, 'older'), (99, 'newer')): # there has been one: none is migrated
            self.db.sql('UPDATE tandem_job SET version = %d' % version)
            for arguments in (['job', 'status', url], ['job', 'export', url], ['job', 'add', url, '--in', self.input],
                              ['job', 'retry', url], ['job', 'cancel', url], [*WORKER[1:], '--job', url]):
                r = tandem(*arguments, code=65)
                self.assertIn("version %d, %s than this tandem's" % (version, words), r.stderr)
                self.assertIn('let the tandem that made it finish', r.stderr)
        tandem('job', 'drop', url)
        self.db.sql('CREATE TABLE tandem_job (something TEXT)')
        self.assertIn('version', tandem('job', 'status', url, code=65).stderr)
        tandem('job', 'drop', url)

    def test_nothing_is_written_over_a_job(self):
        path = self.dir + '/here.db'
        url = 'sqlite:' + path
        link = self.dir + '/link.db'
        os.symlink(path, link)
        self.assertIn('same file', tandem('job', 'create', url, '--in', path, code=2).stderr)
        tandem('job', 'create', url, '--in', self.input)
        for arguments in (['job', 'export', url, '--out', path, '--force'], ['job', 'export', url, '--out', link, '--force'],
                          [*WORKER[1:], '--job', url, '--stats', path], [*WORKER[1:], '--job', url, '--trace', link]):
            with self.subTest(arguments):
                self.assertIn('same file', tandem(*arguments, code=2).stderr)
        self.assertIn('waiting', tandem('job', 'status', url).stdout)
        tandem('job', 'drop', url)

    def test_one_arithmetic(self):
        self.create('--same-arithmetic')
        w = self.start('--kv-k', 'q8_0')
        self.assertIn(w.wait(timeout=300), (0, 1))
        r = tandem(*WORKER[1:], '--job', self.db.url, code=65)
        self.assertIn('cache', r.stderr)
        self.assertIn('demands one arithmetic', r.stderr)

    def test_a_broken_device_is_named(self):
        """A worker that was too late has found another text than the one whose result is there."""
        self.create()
        w = self.start()
        wait_until(lambda: self.status()['running'] > 0 or w.poll() is not None)
        w.send_signal(signal.SIGSTOP)
        n_held = int(self.db.sql('SELECT COUNT(*) FROM tandem_line WHERE state = 1'))
        if not n_held:
            self.skipTest('the worker was done before it was stopped')
        held = self.db.sql('SELECT n FROM tandem_line WHERE state = 1').split()
        self.finish()
        self.db.sql("UPDATE tandem_line SET answer_sha = '0123456789abcdef' WHERE n IN (%s) AND state = 2" % ','.join(held))
        w.send_signal(signal.SIGCONT)
        self.assertIn(w.wait(timeout=120), (0, 1), self.log(w))
        n = self.status()['differences']
        self.assertEqual(n > 0, 'one of the two devices is broken' in self.log(w))
        self.assertLessEqual(n, n_held)
        self.assertGreater(n, 0)
        self.check_results()

    def test_a_poison_line(self):
        self.create()
        self.db.sql("UPDATE tandem_line SET attempts = 3 WHERE id = 'l5'")
        self.finish()
        out = tandem('job', 'export', self.db.url).stdout
        bad = next(r for r in map(json.loads, out.splitlines()) if r['id'] == 'l5')
        self.assertEqual(bad['status'], 'error')
        self.assertIn('3 workers were lost', bad['error'])
        tandem('job', 'retry', self.db.url)
        self.finish()
        self.check_results()

    def test_given_back(self):
        """A signal gives back what is not finished, at once."""
        self.create()
        w = self.start('--lease', '3600')
        wait_until(lambda: self.status()['running'] > 0 or w.poll() is not None)
        w.send_signal(signal.SIGTERM)
        self.assertIn(w.wait(timeout=60), (143, 0, 1), self.log(w))
        s = self.status()
        self.assertEqual(s['running'], 0)
        self.assertEqual(int(self.db.sql('SELECT SUM(attempts) FROM tandem_line WHERE state = 0') or 0), 0)
        w = self.start('--lease', '3600')
        wait_until(lambda: self.status()['running'] > 0 or w.poll() is not None)
        w.kill()
        w.wait()
        for worker in self.status()['workers']:
            tandem('job', 'requeue', self.db.url, '--worker', worker['name'])
        self.assertEqual(self.status()['running'], 0)
        self.finish()
        self.check_results()

    def test_cancelled(self):
        self.create()
        w = self.start()
        wait_until(lambda: self.status()['running'] > 0 or w.poll() is not None)
        tandem('job', 'cancel', self.db.url)
        self.assertIn(w.wait(timeout=120), (0, 1), self.log(w))
        s = self.status()
        self.assertEqual((s['waiting'], s['running']), (0, 0))
        self.assertTrue(s['is_cancelled'])
        out = tandem('job', 'export', self.db.url).stdout.splitlines()
        self.assertEqual(len(out), s['ok'] + s['failed'])

    def test_followed(self):
        """Results are written as they come, in the order of the input and as they came."""
        self.create()
        exports = [subprocess.Popen([TANDEM, 'job', 'export', self.db.url, '--follow', '--order', order],
                                    stdout=subprocess.PIPE, text=True) for order in ('input', 'finish')]
        self.finish()
        ids = [[json.loads(line)['id'] for line in e.communicate(timeout=120)[0].splitlines()] for e in exports]
        self.assertEqual(ids[0], self.db.sql('SELECT id FROM tandem_line ORDER BY n').split())
        self.assertEqual(sorted(ids[1]), sorted(ids[0]))
        page = tandem('report', self.db.url, '--out', '-').stdout
        for name in self.db.sql('SELECT DISTINCT worker FROM tandem_line WHERE state = 2').split():
            self.assertIn(name, page)
        self.assertIn('Lines that have ended, by worker', page)

    def test_long_results(self):
        model, prompts, out = (self.dir + '/' + name for name in ('long.gguf', 'long.jsonl', 'long.out'))
        subprocess.run([sys.executable, 'scripts/make_model.py', '--n-embd', '32', '--heads', '1', '--layers', '1',
                        '--head-dim', '2', '--ffn', '32', '--vocab', '512', '--ctx', str(2 * N_LONG), '--type', 'Q8_0',
                        '--out', model], check=True, capture_output=True)
        with open(prompts, 'w') as f:
            f.write(''.join('{"id": "%d", "prompt": "text %d"}\n' % (i, i) for i in range(3)))
        settings = ['--in', prompts, '-n', N_LONG, '--ignore-eos', '--temp', '0.9', '--seed', '3']
        worker = ['generate', '--target', model, '--device', 'host:1', '--no-measure']
        tandem(*worker, *settings, '--out', out, seconds=3600)
        tandem('job', 'create', self.db.url, *settings)
        tandem(*worker, '--job', self.db.url, '--lease', '3', seconds=3600)
        plain = self.read(out)
        tandem('job', 'export', self.db.url, '--out', out, '--force')
        got = self.read(out)
        self.assertEqual(len(plain), 3)
        for key, want in plain.items():
            self.assertEqual(len(want['tokens']), N_LONG)
            self.assertEqual((got[key]['tokens'], got[key]['text']), (want['tokens'], want['text']))

    def test_two_create(self):
        both = [subprocess.Popen([TANDEM, 'job', 'create', self.db.url, '--in', self.input], stderr=subprocess.PIPE,
                                 text=True) for _ in range(2)]
        said = [(p.communicate()[1], p.returncode) for p in both]
        self.assertEqual(sorted(code for _, code in said), [0, 65], said)
        self.assertEqual(self.status()['waiting'], len(self.plain))

    def test_workers_are_lost(self):
        rng = random.Random(SEED)
        self.create()
        workers = [self.start() for _ in range(8)]
        n_killed = n_stopped = 0
        while self.n_ended() < len(self.plain) or n_killed + n_stopped < N_FAULTS:
            time.sleep(rng.random() * 0.3)
            if self.n_ended() == len(self.plain): # again, with what is there now
                tandem('job', 'drop', self.db.url)
                self.create()
            i = rng.randrange(len(workers))
            w = workers[i]
            if w.poll() is not None:
                self.assertIn(w.returncode, (0, 1, 65, 69, 75), self.log(w)) # dropped while it looked
                workers[i] = self.start()
            elif n_killed + n_stopped >= N_FAULTS:
                continue
            elif rng.random() < 0.7:
                w.kill()
                w.wait()
                n_killed += 1
                workers[i] = self.start()
            else:
                w.send_signal(signal.SIGSTOP)
                time.sleep(rng.random() * 3)
                w.send_signal(signal.SIGCONT)
                n_stopped += 1
            if self.db.sql('SELECT COUNT(*) FROM tandem_line WHERE attempts > 2 AND state = 1') != '0':
                self.db.sql('UPDATE tandem_line SET attempts = 1 WHERE attempts > 1') # chance is not poison
        for w in workers:
            w.wait(timeout=120)
        self.check_results()
        self.assertEqual(self.status()['differences'], 0)
        print('%d killed, %d stopped' % (n_killed, n_stopped), file=sys.stderr)


class InSqlite(Cases, unittest.TestCase):
    make_db = Sqlite

    def test_no_database(self):
        path = self.dir + '/text.db'
        with open(path, 'w') as f:
            f.write('this is a text and no database\n' * 100)
        self.assertIn('not a database', tandem('job', 'status', 'sqlite:' + path, code=65).stderr)

    def test_no_room(self):
        """A full disk: results wait, and are handed in once there is room."""
        place = self.dir + '/small'
        os.mkdir(place)
        if os.geteuid() != 0 or subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=16m', 'none', place],
                                               capture_output=True).returncode != 0:
            self.skipTest('no file system can be mounted here')
        url = 'sqlite:%s/job.db' % place
        try:
            tandem('job', 'create', url, '--in', self.input, '--temp', '0.7', '--seed', '5')
            ballast = os.open(place + '/ballast', os.O_WRONLY | os.O_CREAT)
            try:
                while os.write(ballast, b'x' * 4096):
                    pass
            except OSError:
                pass
            os.close(ballast)
            log = tempfile.TemporaryFile('w+')
            w = subprocess.Popen([*WORKER, '--job', url], stderr=log, env=self.env)
            w.stderr = log
            self.workers.append(w)
            wait_until(lambda: 'is back' in self.log(w) or 'full' in self.log(w) or w.poll() is not None)
            os.unlink(place + '/ballast')
            code = w.wait(timeout=120)
            if code == 69: # before it had begun
                code = subprocess.run([*WORKER, '--job', url], capture_output=True, env=self.env, timeout=120).returncode
            self.assertIn(code, (0, 1), self.log(w))
            r = tandem('job', 'export', url)
            self.assertEqual(len(r.stdout.splitlines()), len(self.plain))
        finally:
            subprocess.run(['umount', place])


class InPostgres(Cases, unittest.TestCase):
    make_db = Postgres

    def test_the_server_is_lost(self):
        rng = random.Random(SEED)
        self.create()
        workers = [self.start() for _ in range(3)]
        for mode in ['fast', 'immediate', 'cut', 'cut', 'cut']:
            time.sleep(rng.random() * 0.5)
            if mode == 'cut':
                self.db.sql('SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND '
                            "application_name = 'tandem'")
                continue
            self.db.stop(mode)
            time.sleep(rng.random())
            self.db.start()
        for w in workers:
            self.assertIn(w.wait(timeout=120), (0, 1, 69), self.log(w)) # 69: gone before it had begun
        self.finish()
        self.check_results()

    def test_claims_read_what_waits(self):
        """Not all that waits or has ended, whatever the server knows of the table."""
        n, n_ended = 3000, 2900
        read = 'SELECT SUM(idx_tup_read) FROM pg_stat_user_indexes'
        lines = self.dir + '/many.jsonl'
        with open(lines, 'w') as f:
            f.write(''.join('{"id": "%d", "prompt": "%s %d"}\n' % (i, 'again and ' * 30, i) for i in range(n)))
        for has_counted in (False, True):
            subprocess.run([TANDEM, 'job', 'drop', self.db.url], capture_output=True)
            tandem('job', 'create', self.db.url, '--in', lines, '-n', '1', '--temp', '0')
            self.db.sql('ALTER TABLE tandem_line SET (autovacuum_enabled = off)')
            if has_counted:
                self.db.sql('ANALYZE tandem_line')
                self.db.sql('UPDATE tandem_line SET state = 4 WHERE n <= %d' % n_ended)
            before = int(self.db.sql(read))
            self.finish()
            # Connections say what they have read when they end.
            wait_until(lambda: self.db.sql("SELECT COUNT(*) FROM pg_stat_activity WHERE application_name = 'tandem'") == '0')
            n_run = n - n_ended if has_counted else n
            print('%d lines: %d read' % (n_run, int(self.db.sql(read)) - before), file=sys.stderr)
            self.assertLess(int(self.db.sql(read)) - before, 5 * n + 20 * n_run)

    def test_a_clock_that_is_wrong(self):
        """Leases are the database's: a worker that is hours ahead takes nothing that is held."""
        shim = self.dir + '/clock.so'
        with open(self.dir + '/clock.c', 'w') as f:
            f.write('#define _GNU_SOURCE\n#include <stdlib.h>\n#include <sys/syscall.h>\n#include <time.h>\n'
                    '#include <unistd.h>\nint clock_gettime(clockid_t id, struct timespec *t)\n{\n'
                    '    int r = (int)syscall(SYS_clock_gettime, id, t);\n'
                    '    if (id == CLOCK_REALTIME)\n        t->tv_sec += atol(getenv("CLOCK_OFF"));\n    return r;\n}\n'
                    'time_t time(time_t *at)\n{\n    struct timespec t;\n    clock_gettime(CLOCK_REALTIME, &t);\n'
                    '    return at ? *at = t.tv_sec : t.tv_sec;\n}\n')
        if not shutil.which('cc') or subprocess.run(['cc', '-shared', '-fPIC', '-o', shim, self.dir + '/clock.c'],
                                                    capture_output=True).returncode != 0:
            self.skipTest('there is no C compiler here')
        if subprocess.run([TANDEM, '--version'], env={**os.environ, 'LD_PRELOAD': shim, 'CLOCK_OFF': '0'},
                          capture_output=True).returncode != 0:
            self.skipTest('this tandem cannot be given another clock (a sanitizer comes first)')
        self.create()
        stopped = self.start('--lease', '3600')
        wait_until(lambda: self.status()['running'] > 0 or stopped.poll() is not None)
        stopped.send_signal(signal.SIGSTOP)
        held = "SELECT COUNT(*) FROM tandem_line WHERE state = 1"
        n_held = int(self.db.sql(held))
        if not n_held:
            self.skipTest('the worker was done before it was stopped')
        env = self.env
        workers = []
        for off in ('7200', '-7200'):
            self.env = {**env, 'LD_PRELOAD': shim, 'CLOCK_OFF': off}
            workers.append(self.start())
        self.env = env
        wait_until(lambda: self.n_ended() + n_held == len(self.plain) or all(w.poll() is not None for w in workers))
        self.assertEqual(int(self.db.sql(held)), n_held)
        stopped.send_signal(signal.SIGCONT)
        for w in self.workers:
            self.assertIn(w.wait(timeout=120), (0, 1), self.log(w))
        self.assertEqual(self.db.sql('SELECT MIN(attempts), MAX(attempts) FROM tandem_line'), '1|1')
        self.check_results()

    def test_results_outlive_the_worker(self):
        """The server stays away: results are kept on the disk, and the next worker hands them in."""
        self.create()
        w = self.start()
        wait_until(lambda: self.status()['ok'] > 0 or w.poll() is not None)
        self.db.stop('immediate')
        try:
            wait_until(lambda: 'results wait' in self.log(w) or w.poll() is not None)
            w.send_signal(signal.SIGTERM)
            code = w.wait(timeout=120)
        finally:
            self.db.start()
        if code == 75:
            self.assertTrue(glob.glob(self.dir + '/cache/spool-*.jsonl'), self.log(w))
        self.finish()
        self.assertFalse(glob.glob(self.dir + '/cache/spool-*.jsonl'))
        self.check_results()


if __name__ == '__main__':
    unittest.main(verbosity=2)
