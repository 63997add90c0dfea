#!/usr/bin/env python3
"""scripts/sweep.sh with the bundled pair, killed and resumed; scripts/bench_peer.sh against
references of our own making.

usage: e2e_scripts.py TANDEM   (run from the source root; standard library only)"""
import csv
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest

TANDEM = os.path.abspath(sys.argv.pop(1)) if len(sys.argv) > 1 else 'build/tandem'
DRAFT = 'configs/tales/tales-draft.q8_0.gguf'

# What a reference prints: the object of `tandem bench --json`, at half the speed.
PEER = '''
import json, subprocess, sys
a = dict(zip(sys.argv[2::2], sys.argv[3::2]))
open({log!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')
verify = {{n: {{'ms': 2.0 * int(n), 'c': int(n) / 1.0}} for n in a['--widths'].split(',')}}
print(json.dumps({{'pp' + a['--pp']: 10.0, 'tg' + a['--tg']: 5.0, 'verify': verify}}))
'''
LLAMA_BENCH = '''#!/usr/bin/env python3
import json, sys
a = dict(zip(sys.argv[1::2], sys.argv[2::2]))
tests = [(int(p), 0) for p in a['-p'].split(',')] + [(0, int(a['-n']))] * (a['-n'] != '0')
print(json.dumps([{'n_prompt': p, 'n_gen': g, 'n_depth': int(a['-d']), 'avg_ts': 1,
                   'samples_ts': [90.0 + p, 100.0 + p, 500.0]} for p, g in tests]))
'''


def read(path):
    with open(path) as f:
        return f.read()


class Pages(unittest.TestCase):
    """What is made of --help: every command and every option has its place, and bash completes them."""

    def test_pages_and_completions(self):
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([sys.executable, 'scripts/make_pages.py', TANDEM, folder], check=True)
            said = subprocess.run([TANDEM, '--help'], capture_output=True, text=True, check=True).stdout
            names = [line.split()[0] for line in said.split('commands:\n')[1].split('\n\n')[0].splitlines()]
            self.assertIn('generate', names)
            self.assertEqual(sorted(os.listdir(folder + '/man1')), sorted(['tandem.1', *('tandem-%s.1' % n for n in names)]))
            for name in names:
                rows = subprocess.run([TANDEM, name, '--help'], capture_output=True, text=True, check=True).stdout
                flags = {line.split()[0].rstrip(',') for line in rows.splitlines() if line.startswith('  -')}
                page = read('%s/man1/tandem-%s.1' % (folder, name)).replace('\\-', '-')
                for shell in ('zsh/_tandem', 'fish/tandem.fish'):
                    self.assertIn(name, read('%s/%s' % (folder, shell)))
                done = subprocess.run(['bash', '-c', 'source "$1"; COMP_WORDS=(tandem "$2" -); COMP_CWORD=2; _tandem; '
                                       'echo "${COMPREPLY[@]}"', '-', folder + '/bash/tandem', name],
                                      capture_output=True, text=True, check=True).stdout.split()
                self.assertEqual(set(done), flags)
                for flag in flags:
                    self.assertIn('\\fB%s\\fR' % flag, page)


class Scripts(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.dir = directory.name

    def path(self, name, text=None):
        p = os.path.join(self.dir, name)
        if text is not None:
            with open(p, 'w') as f:
                f.write(text)
        return p

    def script(self, name, *args, code=0, env=None):
        env = {**{k: v for k, v in os.environ.items() if k not in ('TANDEM_PEER', 'LLAMA_BENCH')},
               'TANDEM': TANDEM, **(env or {})}
        r = subprocess.run(['scripts/' + name, *args], capture_output=True, text=True, timeout=300, env=env)
        self.assertEqual(r.returncode, code, r.stderr)
        return r

    def rows(self, out):
        with open(out, newline='') as f:
            as_csv = list(csv.DictReader(f))
        with open(os.path.splitext(out)[0] + '.json') as f:
            as_json = json.load(f)
        self.assertEqual(len(as_csv), len(as_json))
        for a, b in zip(as_csv, as_json):
            for key, value in b.items():
                if not isinstance(value, (list, dict, bool)):
                    self.assertEqual(a[key], '' if value is None else str(value))
        return as_json

    # -- sweep.sh --

    def pair(self, out, *args, **kw):
        base = self.path('base.json', json.dumps({
            'target': {'model': DRAFT, 'devices': 'host:1'}, 'draft': {'model': DRAFT, 'device': 'host:1'},
            'run': {'in': self.path('p.jsonl', '{"prompt": "The fox"}\n{"prompt": "The king"}\n'), 'n': 8}}))
        return self.script('sweep.sh', 'generate', '--out', out, '--config', base, *args, **kw)

    def test_a_sweep_runs_every_combination_once(self):
        out = self.path('s.csv')
        args = ['--repeat', '2', 'draft.fixed=1,3', 'target.devices:=["host:1", ["host:1@0-0", "host:1"]]']
        r = self.pair(out, *args)
        self.assertIn('8 runs: 0 kept, 0 failed', r.stderr)
        rows = self.rows(out)
        self.assertEqual([x['repeat'] for x in rows], [0] * 4 + [1] * 4)
        self.assertEqual(len({(x['draft.fixed'], str(x['target.devices'])) for x in rows}), 4)
        for x in rows:
            self.assertEqual((x['status'], x['tokens'], x['ok']), ('ok', 16, 2))
            self.assertEqual(x['acceptance'], 1)  # its own twin
            self.assertGreater(x['tokens_per_second'], 0)
        before = read(out + '.runs')
        self.assertIn('8 runs: 8 kept, 0 failed', self.pair(out, *args).stderr)
        self.assertEqual(read(out + '.runs'), before)
        r = self.pair(out, *args, '--repeat', '3')
        self.assertIn('12 runs: 8 kept', r.stderr)
        r = self.pair(out, *args, '--', '-n', '4')  # other arguments are other runs
        self.assertIn('8 runs: 0 kept', r.stderr)
        self.assertEqual({x['tokens'] for x in self.rows(out)}, {8})

    def test_a_torn_line_is_run_again_and_a_strange_file_refused(self):
        out = self.path('s.csv')
        self.pair(out, 'draft.fixed=1,2,3')
        text = read(out + '.runs')
        for cut in (1, 5, 60, len(text.splitlines()[-1])):
            with open(out + '.runs', 'w') as f:
                f.write(text[:-cut - 1] if cut > 5 else text[:len(text) - len(text.splitlines()[-1]) - 1 + cut])
            r = self.pair(out, 'draft.fixed=1,2,3')
            self.assertIn('3 runs: 2 kept, 0 failed', r.stderr)
            self.assertEqual(len(read(out + '.runs').splitlines()), 3)
        for bad in ('hello', text.replace('"rows"', '"sows"', 1), 'x\n' + text, '[]\n'):
            with open(out + '.runs', 'w') as f:
                f.write(bad)
            self.pair(out, 'draft.fixed=1,2,3', code=65)
            self.assertEqual(read(out + '.runs'), bad)

    def test_a_killed_sweep_goes_on(self):
        out = self.path('s.csv')
        args = ['scripts/sweep.sh', 'bench', '--out', out, '--repeat', '40', 'widths=1,2', '--', '--model', DRAFT,
                '--device', 'host:1', '--pp', '8', '--tg', '2', '--repeat', '1']
        p = subprocess.Popen(args, env={**os.environ, 'TANDEM': TANDEM}, stderr=subprocess.PIPE, text=True)
        while p.stderr.readline().count('run 3 of') == 0:
            self.assertIsNone(p.poll())
        p.send_signal(signal.SIGKILL)
        p.wait()
        p.stderr.close()
        self.assertGreaterEqual(read(out + '.runs').count('\n'), 3)
        time.sleep(0.2)  # the run in progress ends by itself
        r = self.script('sweep.sh', *args[1:])
        kept = int(r.stderr.rsplit(' kept', 1)[0].rsplit(' ', 1)[1])
        self.assertGreaterEqual(kept, 3)
        self.assertEqual(len(self.rows(out)), 80 * 3)  # pp8, tg2 and one width
        self.assertEqual({x['test'] for x in self.rows(out)}, {'pp8', 'tg2', 'verify1', 'verify2'})

    def test_a_failed_run_is_told_and_run_again(self):
        out = self.path('s.csv')
        r = self.pair(out, 'target.model:=["/nonexistent.gguf", "%s"]' % DRAFT, code=1)
        self.assertIn('2 runs: 0 kept, 1 failed', r.stderr)
        bad, good = self.rows(out)
        self.assertEqual((bad['status'], good['status'], good['error']), ('error', 'ok', None))
        self.assertIn('nonexistent.gguf', bad['error'])
        r = self.pair(out, 'target.model:=["/nonexistent.gguf", "%s"]' % DRAFT, code=1)
        self.assertIn('2 runs: 1 kept, 1 failed', r.stderr)

    def test_two_sweeps_do_not_share_a_file(self):
        out = self.path('s.csv')
        with open(out + '.runs', 'w') as f:
            fcntl.flock(f, fcntl.LOCK_EX)
            self.pair(out, 'draft.fixed=1', code=75)
        self.pair(out, 'draft.fixed=1')

    def test_hostile_arguments_of_a_sweep(self):
        out = self.path('s.csv')
        for args in (['draft.max'], ['=1'], ['draft.max:=7'], ['draft.max:=[]'], ['max=1'], ['a.b=1', 'a.b=2'],
                     ['run.out=x'], ['draft.max=1', '--repeat', '0'], [],
                     ['a.a=' + ','.join('1' * 400), 'a.b=' + ','.join('1' * 400)]):
            self.script('sweep.sh', 'generate', '--out', out, *args, code=2)
        self.script('sweep.sh', 'generate', '--out', self.path('s.json'), 'draft.max=1', code=2)
        for text in ('', '[]', '{"target": 1}'):
            self.script('sweep.sh', 'generate', '--out', out, '--config', self.path('bad.json', text), 'draft.max=1',
                        code=65)
        self.assertFalse(os.path.exists(out))

    # -- bench_peer.sh --

    SHAPE = ['--model', DRAFT, '--pp', '16', '--tg', '4', '--widths', '1,4', '--repeat', '1']

    def test_without_a_reference_it_says_how_to_get_one(self):
        r = self.script('bench_peer.sh', *self.SHAPE, code=77)
        self.assertIn('github.com/ggml-org/llama.cpp', r.stderr)
        self.assertEqual(r.stdout, '')
        self.script('bench_peer.sh', *self.SHAPE, '--llama-bench', '/nonexistent/llama-bench', code=77)

    def table(self, text):
        lines = [x for x in text.splitlines() if x.startswith('|')]
        self.assertEqual(len({x.count('|') for x in lines}), 1)
        return [[c.strip() for c in x.strip('|').split('|')] for x in lines[2:]]

    def test_turns_with_a_driver(self):
        log, out = self.path('log'), self.path('turns.jsonl')
        peer = self.path('peer.py', PEER.format(log=log))
        r = self.script('bench_peer.sh', *self.SHAPE, '--device', 'host:2', '--device', 'host:1', '--turns', '3',
                        '--out', out, env={'TANDEM_PEER': sys.executable + ' ' + peer})
        rows = self.table(r.stdout)
        self.assertEqual([x[2] for x in rows], ['pp16', 'tg4', 'verify1', 'verify4'] * 2)
        self.assertEqual([x[4] for x in rows[:4]], ['10.00', '5.00', '500.0', '500.0'])
        self.assertEqual(rows[3][8], '4.00')
        self.assertIn('Other programs took', r.stdout)
        turns = [json.loads(x) for x in read(out).splitlines()]
        self.assertEqual([(t['device'], t['turn']) for t in turns],
                         [(d, i) for d in ('host:2', 'host:1') for i in range(3)])
        ratios = sorted(t['tandem']['tg4'][0] / 5.0 for t in turns[:3])
        self.assertEqual(rows[1][5], '%.2f' % ratios[1])
        self.assertEqual(rows[1][6], '%.2f..%.2f' % (ratios[0], ratios[2]))
        calls = read(log).splitlines()
        self.assertEqual(len(calls), 6)
        self.assertIn('--device cpu --threads 2 --pp 16 --tg 4 --widths 1,4 --reps 1 --kv f16 --json', calls[0])

    def test_turns_with_llama_bench(self):
        tool = self.path('llama-bench', LLAMA_BENCH)
        os.chmod(tool, 0o755)
        r = self.script('bench_peer.sh', *self.SHAPE, '--device', 'host:1', '--turns', '1', '--llama-bench', tool)
        rows = {x[2]: x for x in self.table(r.stdout)}
        self.assertEqual([rows[t][4] for t in ('pp16', 'tg4', 'verify1', 'verify4')],
                         ['116.0', '100.0', '101.0', '104.0'])
        self.assertEqual(rows['verify4'][8], '%.2f' % (101 * 4 / 104))
        self.assertIn('The reference: llama.cpp ? (?), ?, built elsewhere.', r.stdout)

    def test_types_and_depths_are_measured_each(self):
        log = self.path('log')
        peer = self.path('peer.py', PEER.format(log=log))
        r = self.script('bench_peer.sh', *self.SHAPE, '--device', 'host:1', '--turns', '1', '--kv', 'f16,q4_0',
                        '--depth', '0,64', env={'TANDEM_PEER': sys.executable + ' ' + peer})
        self.assertEqual([x[2] for x in self.table(r.stdout) if x[2].startswith('tg')],
                         ['tg4 f16', 'tg4 q4_0', 'tg4 f16 behind 64', 'tg4 q4_0 behind 64'])
        calls = read(log).splitlines()
        self.assertEqual([('--kv q4_0' in x, '--depth 64' in x) for x in calls],
                         [(False, False), (True, False), (False, True), (True, True)])

    def test_the_build_of_the_reference_is_named(self):
        tool = self.path('llama-bench', LLAMA_BENCH)
        os.chmod(tool, 0o755)
        self.path('CMakeCache.txt', '// a comment=\nCMAKE_C_FLAGS:STRING=-march=znver3\nGGML_NATIVE:BOOL=OFF\n')
        args = [*self.SHAPE, '--device', 'host:1', '--turns', '1', '--llama-bench', tool]
        r = self.script('bench_peer.sh', *args)
        self.assertIn('built with CMAKE_C_FLAGS=-march=znver3 GGML_NATIVE=OFF.', r.stdout)
        r = self.script('bench_peer.sh', *args, '--peer-name', 'the prebuilt one')
        self.assertIn('The reference: the prebuilt one.', r.stdout)

    def test_a_reference_that_fails_or_babbles(self):
        for text in ('import sys; sys.exit(3)', 'print("hello")', 'print("{}")', 'print("[]")',
                     'print(\'{"pp16": 1, "tg4": 1, "verify": {"1": {"ms": 0, "c": 1}}}\')'):
            r = self.script('bench_peer.sh', *self.SHAPE, '--peer', sys.executable + ' ' + self.path('p.py', text), code=1)
            self.assertIn('the reference', r.stderr)
        for args in (['--widths', '0'], ['--widths', '65'], ['--widths', 'x'], ['--turns', '0'], ['--depth', '-1'], ['--device', 'gpu']):
            self.script('bench_peer.sh', *self.SHAPE, '--peer', 'true', *args, code=2)


if __name__ == '__main__':
    unittest.main(verbosity=1)
