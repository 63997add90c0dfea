#!/usr/bin/env python3
"""tandem bench as a user and a script meet it: the figures in every format, pairs with real and
synthetic acceptance, energy from a sysfs of our own making, and options that make no sense.

usage: e2e_bench.py TANDEM   (run from the source root; standard library only)"""
import csv
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import unittest

TANDEM = os.path.abspath(sys.argv.pop(1)) if len(sys.argv) > 1 else 'build/tandem'
TARGET = 'configs/tales/tales-target.q8_0.gguf'
DRAFT = 'configs/tales/tales-draft.q8_0.gguf'
SMALL = ['--model', DRAFT, '--device', 'host:1', '--pp', '16', '--tg', '4', '--widths', '1,4', '--repeat', '2']
PAIR = ['--model', TARGET, '--device', 'host:1', '--draft', DRAFT, '--draft-device', 'host:1',
        '--repeat', '2', '-n', '24', '--draft-max', '2,5']


def bench(*args, env=None):
    return subprocess.run([TANDEM, 'bench', *args], capture_output=True, text=True, timeout=300,
                          env={**os.environ, 'TD_SYSFS': '/nonexistent', **(env or {})})


def records(*args, env=None):
    r = bench(*args, '--format', 'jsonl', env=env)
    assert r.returncode == 0, r.stderr
    return [json.loads(line) for line in r.stdout.splitlines()]


class Bench(unittest.TestCase):
    def fails(self, args, code, *needles):
        r = bench(*args)
        self.assertEqual((r.returncode, r.stdout), (code, ''), r.stderr)
        for needle in needles:
            self.assertIn(needle, r.stderr)

    def test_every_format_tells_the_same_tests(self):
        tests = ['pp16', 'tg4', 'verify1', 'verify4']
        r = bench(*SMALL, '--format', 'json')
        as_json = json.loads(r.stdout)
        self.assertEqual([t['test'] for t in as_json], tests)
        as_csv = list(csv.DictReader(io.StringIO(bench(*SMALL, '--format', 'csv').stdout)))
        self.assertEqual([t['test'] for t in as_csv], tests)
        self.assertEqual([t['test'] for t in records(*SMALL)], tests)
        table = bench(*SMALL).stdout.splitlines()
        self.assertEqual(len(table), 2 + len(tests))
        self.assertEqual(len({line.count('|') for line in table}), 1)
        for line, test in zip(table[2:], tests):
            self.assertIn('| %s |' % test, line)
        # CSV and JSON have the same keys, in the same order, but for lists and objects.
        self.assertEqual(list(as_csv[0]),
                         [k for k, v in as_json[0].items() if not isinstance(v, list) and not k.endswith('_by_device')])
        for row, record in zip(as_csv, as_json):
            for key in ('model_filename', 'device', 'n_prompt', 'n_gen', 'n_rows', 'repeats', 'type_k'):
                self.assertEqual(row[key], str(record[key]))
            self.assertEqual(row['beside'], '')

    def test_figures_agree_with_their_samples(self):
        for t in records(*SMALL, '--repeat', '3'):
            self.assertEqual((t['repeats'], len(t['samples_ns']), len(t['samples_ts'])), (3, 3, 3))
            self.assertEqual(t['median_ns'], round(sorted(t['samples_ns'])[1]))
            self.assertEqual((t['min_ns'], t['max_ns']), (round(min(t['samples_ns'])), round(max(t['samples_ns']))))
            self.assertLessEqual(t['min_ts'], t['median_ts'])
            n = t['n_prompt'] + t['n_gen'] + t['n_rows']
            for ns, ts in zip(t['samples_ns'], t['samples_ts']):
                self.assertAlmostEqual(ts, n / ns * 1e9, delta=1e-6 * ts)
            if t['test'].startswith('verify'):
                self.assertGreater(t['c'], 0)
            else:
                self.assertIsNone(t['c'])

    def test_a_gpu_tells_what_the_host_did_for_it(self):
        for t in records(*SMALL):
            self.assertIsNone(t['host_us'])  # the thread's work is the device's
        args = ['vulkan:0' if a == 'host:1' else a for a in SMALL]
        if bench(*args).returncode:
            self.skipTest('no Vulkan device')
        for t in records(*args):
            # Once for a number of rows, and some for those next to it, while the device works.
            self.assertLessEqual(t['recordings'] - t['recorded_ahead'], 2 if t['test'].startswith('pp') else 1)
            if t['test'].startswith('pp'):
                self.assertIsNone(t['host_us'])
            else:
                self.assertGreater(t['host_us'], 0)
                passes = t['n_gen'] or 1
                self.assertLess(t['host_us'] * passes, t['max_ns'] * 1e-3)

    def test_a_token_reads_the_weights_and_its_cache(self):
        # All of the draft's matrices are Q8_0, 34 bytes per 32 weights, and its embedding is tied.
        one = {t['test']: t for t in records(*SMALL)}
        far = {t['test']: t for t in records(*SMALL, '--depth', '256')}
        small = {t['test']: t for t in records(*SMALL, '--depth', '256', '--kv-k', 'q8_0')}
        size = one['tg4']['model_size']
        self.assertAlmostEqual(one['tg4']['bytes_per_token'], size, delta=0.1 * size)
        # 2 layers, 1 head of 64, keys and values of 2 bytes; q8_0 keys of 34 / 32 bytes.
        self.assertAlmostEqual(far['tg4']['bytes_per_token'] - one['tg4']['bytes_per_token'], 256 * 2 * 64 * 4)
        self.assertAlmostEqual(far['tg4']['bytes_per_token'] - small['tg4']['bytes_per_token'],
                               (256 + 16 + 2.5) * 2 * (64 * 2 - 68))
        self.assertIsNone(one['pp16']['bytes_per_token'])

    def test_models_devices_types_and_depths_multiply(self):
        seen = [(t['model_filename'], t['device'], t['type_k'], t['type_v'], t['n_depth']) for t in records(
            '--model', DRAFT, '--model', TARGET, '--device', 'host:1', '--device', 'host:2', '--each', '--pp', '4',
            '--tg', '0', '--widths', '1', '--repeat', '1', '--kv-k', 'f16,q8_0', '--kv-v', 'f32',
            '--depth', '0,70')]
        self.assertEqual(len(seen), 2 * 2 * 2 * 2 * 2)
        self.assertEqual(len(set(seen)), 16)
        self.assertEqual(seen[0], (DRAFT, 'host:1', 'f16', 'f32', 0))
        split = records('--model', TARGET, '--device', 'host:1', '--device', 'host:1@7-9', *SMALL[4:])
        self.assertEqual({t['device'] for t in split}, {'host:1+host:1'})

    def test_devices_run_beside_each_other(self):
        r = records('--model', DRAFT, '--device', 'host:1', '--device', 'host:2', '--together', *SMALL[4:])
        self.assertEqual([(t['device'], t['beside']) for t in r], [('host:1', 'host:2')] * 4 + [('host:2', 'host:1')] * 4)
        self.assertTrue(all(t['median_ts'] > 0 for t in r))

    def test_times_by_op_fit_into_the_run(self):
        for t in records(*SMALL, '--ops'):
            self.assertTrue(any(o['op'].startswith('mat_mul') for o in t['ops']))
            self.assertLessEqual(sum(o['ms'] for o in t['ops']), 1.01 * t['profiled_ms'])
            self.assertAlmostEqual(sum(o['ms'] for o in t['ops']), t['ops_ms'], delta=1e-3 * t['ops_ms'])
            self.assertEqual([o['ms'] for o in t['ops']], sorted((o['ms'] for o in t['ops']), reverse=True))
        self.assertRegex(bench(*SMALL, '--ops').stdout, r'\| mat_mul [^|]*\| \d+ \| [\d.]+ \|')

    def test_bandwidth_is_a_share(self):
        for t in records(*SMALL, '--measure'):
            if t['test'].startswith('pp'):
                self.assertIsNone(t['bandwidth_share'])
            else:
                self.assertGreater(t['bandwidth_share'], 0)

    def test_the_object_keeps_its_keys(self):
        j = json.loads(bench(*SMALL, '--widths', '2,4', '--json').stdout)
        self.assertGreater(j['pp16'], 0)
        self.assertGreater(j['tg4'], 0)
        self.assertEqual(list(j['verify']), ['2', '4'])
        for v in j['verify'].values():
            self.assertGreater(v['ms'], 0)
            self.assertGreater(v['c'], 0)  # against a decode step, for width 1 was not asked for
        self.assertEqual(len(j['tests']), 4)

    def test_a_pair_is_measured_against_plain(self):
        plain, two, five, chosen = records(*PAIR)
        self.assertEqual([t['test'] for t in (plain, two, five, chosen)],
                         ['plain', 'draft k=2', 'draft k=5', 'draft k chosen'])
        self.assertEqual([t['n_gen'] for t in (plain, two, five, chosen)], [4 * 24] * 4)
        self.assertTrue(chosen['same_text'])
        self.assertEqual((plain['tokens_per_verification'], plain['speedup'], plain['acceptance']), (1, 1, None))
        for t in (two, five):
            self.assertTrue(t['same_text'])
            self.assertEqual((t['acceptance_is'], t['synthetic_acceptance']), ('real', None))
            self.assertGreater(t['acceptance'], 0.1)
            self.assertGreater(t['tokens_per_verification'], 1)
            self.assertLessEqual(t['tokens_per_verification'], t['k'] + 1)
            self.assertGreaterEqual(t['speedup_max'], t['speedup'])
        self.assertIn('| draft k=5 |', bench(*PAIR).stdout)

    def test_synthetic_acceptance_is_what_was_asked_and_is_called_so(self):
        for p in (0, 0.5, 1):
            args = [*PAIR, '--accept', str(p), '-n', '64', '--temp', '0.8']
            plain, two, five = records(*args, '--repeat', '1')
            for t in (two, five):
                self.assertTrue(t['same_text'])
                self.assertEqual((t['acceptance_is'], t['synthetic_acceptance']), ('synthetic', p))
            # All, none, or a mean: k = 2 at 0.5 has (p + p^2) / 2 = 0.375 of what is verified.
            self.assertAlmostEqual(two['acceptance'], (p + p * p) / 2, delta=0 if p != 0.5 else 0.12)
            self.assertIsNone(plain['acceptance_is'])
        for extra in ([], ['--format', 'csv'], ['--format', 'json'], ['--json']):
            self.assertIn('synthetic', bench(*PAIR, '--accept', '0.7', '--repeat', '1', *extra).stdout)
        self.assertNotIn('synthetic', bench(*PAIR, '--repeat', '1').stdout)

    def test_prompts_of_a_pair_come_from_a_file(self):
        with tempfile.NamedTemporaryFile('w', suffix='.jsonl') as f:
            f.write('{"id": "a", "prompt": "The fox"}\n{"prompt": "The king", "n": 7}\n')
            f.flush()
            plain, two, _, _ = records(*PAIR, '--in', f.name, '--parallel', '2')
            self.assertEqual((plain['n_gen'], two['n_gen'], two['same_text']), (31, 31, True))
            f.write('{"prompt": 3}\n')
            f.flush()
            self.fails([*PAIR, '--in', f.name], 65, '1 of 3 prompts failed')
        self.fails([*PAIR, '--in', '/nonexistent.jsonl'], 74, 'nonexistent.jsonl')

    def test_deep_caches_are_filled_with_copies(self):
        with tempfile.TemporaryDirectory() as d:
            for arch in ('llama', 'qwen35'):
                subprocess.run([sys.executable, 'scripts/make_model.py', '--arch', arch, '--n-embd', '64', '--heads', '2',
                                '--kv-heads', '1', '--layers', '4', '--ctx', '140000', '--type', 'Q8_0', '--out', d + '/m.gguf'],
                               check=True, capture_output=True)
                for devices in (['host:1'], ['host:1', 'host:2']):
                    # behind a prompt alone; a whole chunk of copies; copies and a rest of a prompt
                    seen = records('--model', d + '/m.gguf', *[a for dev in devices for a in ('--device', dev)], '--repeat', '1',
                                   '--pp', '16', '--tg', '2', '--widths', '8', '--kv-k', 'q8_0', '--depth', '2047,2304,131000')
                    self.assertEqual([(t['n_depth'], t['test']) for t in seen],
                                     [(n, t) for n in (2047, 2304, 131000) for t in ('pp16', 'tg2', 'verify8')])

    def test_prompts_are_told_one_by_one(self):
        names = ['python', 'c', 'explanation', 'summary', 'facts', 'translation', 'story', 'mathematics', 'review']
        modes = ['plain', 'draft k=3', 'draft', 'n-gram k=3', 'n-gram']
        with tempfile.TemporaryDirectory() as d:
            shape = ['--n-embd', '64', '--heads', '2', '--type', 'Q8_0', '--faint', '0.02']
            for out, more in ((d + '/t.gguf', ['--layers', '3', '--faint-from', '1']), (d + '/d.gguf', ['--layers', '1']),
                              (d + '/chat.gguf', ['--layers', '3', '--faint-from', '1', '--chat-template',
                               '{% for m in messages %}User: {{ m.content }}\nAnswer: {% endfor %}'])):
                subprocess.run([sys.executable, 'scripts/make_model.py', *shape, *more, '--out', out], check=True,
                               capture_output=True)
            args = ['--prompts', '--device', 'host:1', '--draft', d + '/d.gguf', '--draft-device', 'host:1', '-n', '40',
                    '--draft-max', '3']
            rows = records('--model', d + '/t.gguf', *args, '--repeat', '2')
            self.assertEqual([(r['prompt'], r['test']) for r in rows], [(n, m) for n in [*names, 'all'] for m in modes])
            by = {(r['prompt'], r['test']): r for r in rows}
            for r in rows:
                plain = by[r['prompt'], 'plain']
                self.assertEqual((r['n_gen'], r['n_prompt']), (plain['n_gen'], plain['n_prompt']))
                self.assertEqual((r['repeats'], r['chat_template']), (2, '(none)'))
                self.assertEqual(r['draft_filename'] is None, not r['test'].startswith('draft'))
                if r['prompt'] != 'all' and r['n_gen'] > 1: # the first token takes none of the time
                    self.assertAlmostEqual(r['samples_ts'][0], (r['n_gen'] - 1) / r['samples_ns'][0] * 1e9,
                                           delta=1e-6 * r['samples_ts'][0])
                if r['test'] == 'plain':
                    self.assertEqual((r['n_drafted'], r['acceptance'], r['tokens_per_verification']), (None, None, 1))
                elif r['n_drafted']:
                    self.assertAlmostEqual(r['acceptance'], r['n_accepted'] / r['n_drafted'], delta=0.5 / r['n_drafted'] + 1e-9)
                self.assertLessEqual(r['n_accepted'] or 0, r['n_drafted'] or 0)
            for m in modes: # fixed lengths: the same in every run
                for key in ('n_prompt', 'n_gen') + (('n_drafted', 'n_accepted') if '=' in m else ()):
                    self.assertEqual(by['all', m][key], sum(by[n, m][key] for n in names), (m, key))
            r = by['all', 'draft k=3'] # the draft is the target but for its faint layers
            self.assertGreater(r['acceptance'], 0.2)
            self.assertGreater(r['tokens_per_verification'], 1)
            self.assertGreater(by['review', 'plain']['n_prompt'], 3 * by['c', 'plain']['n_prompt'])

            # Texts of the runs before are not found: what n-grams find is the same in a second run.
            once = {(r['prompt'], r['test']): r for r in records('--model', d + '/t.gguf', *args)}
            self.assertEqual(once['all', 'n-gram k=3']['n_drafted'], by['all', 'n-gram k=3']['n_drafted'])

            chat = {r['prompt']: r for r in records('--model', d + '/chat.gguf', '--prompts', '--device', 'host:1', '-n', '2')
                    if r['test'] == 'plain'}
            for n in names:
                self.assertEqual(chat[n]['chat_template'], 'jinja')
                self.assertGreater(chat[n]['n_prompt'], by[n, 'plain']['n_prompt'])
            text = bench('--model', d + '/t.gguf', *args).stdout.splitlines()
            self.assertEqual(text[0], 't.gguf on host:1, K f16, V f16; draft d.gguf on host:1; chat template: (none)')
            self.assertEqual(len(text), 4 + 10 * len(modes))
            self.assertEqual(len({line.count('|') for line in text[2:]}), 1)
            self.assertEqual(len(json.loads(bench('--model', d + '/t.gguf', *args, '--json').stdout)['tests']),
                             10 * len(modes))
        r = bench('--model', TARGET, '--prompts', '--device', 'host:1', '-n', '4') # a context of 512
        self.assertEqual((r.returncode, r.stderr.count('review: the prompt has')), (0, 1), r.stderr)
        self.assertIn('without the prompts that failed', r.stderr)
        self.assertIn('| all | plain |', r.stdout)
        self.assertNotIn('review', r.stdout)

    def test_energy_is_shown_where_the_system_shows_it(self):
        with tempfile.TemporaryDirectory() as root:
            zone = os.path.join(root, 'class/powercap/intel-rapl:0')
            card = os.path.join(root, 'class/hwmon/hwmon0')
            os.makedirs(zone)
            os.makedirs(os.path.join(card, 'device'))
            for path, text in ((zone + '/name', 'package-0\n'), (zone + '/energy_uj', '5\n'),
                               (card + '/name', 'amdgpu\n'), (card + '/device/class', '0x030000\n'),
                               (card + '/power1_average', '25000000\n')):
                with open(path, 'w') as f:
                    f.write(text)
            for t in records(*SMALL, env={'TD_SYSFS': root}):
                joules = t['joules_per_token_by_device']
                self.assertEqual(joules['package-0'], 0)  # its counter stands still
                card_name = [k for k in joules if k.startswith('amdgpu')][0]
                seconds = t['avg_ns'] * 1e-9 / (t['n_prompt'] + t['n_gen'] + t['n_rows'])
                self.assertGreaterEqual(joules[card_name], 0.99 * 25 * seconds)
                self.assertAlmostEqual(t['joules_per_token'], sum(joules.values()))
            self.assertIn('J/token', bench(*SMALL, env={'TD_SYSFS': root}).stdout)
            stats = os.path.join(root, 's.json')
            subprocess.run([TANDEM, 'generate', '--target', DRAFT, '--device', 'host:1', '--prompt', 'x', '-n', '4',
                            '--quiet', '--stats', stats], check=True, capture_output=True,
                           env={**os.environ, 'TD_SYSFS': root})
            with open(stats) as f:
                energy = {e['kind']: e for e in json.load(f)['energy']}
            self.assertGreater(energy['gpu']['joules'], 0)
            self.assertEqual((energy['host']['device'], energy['host']['joules_per_token']), ('package-0', 0))
        for t in records(*SMALL):
            self.assertEqual((t['joules_per_token'], t['joules_per_token_by_device']), (None, None))

    def test_hostile_options_are_refused(self):
        for args, needles in (
                (['--widths', ''], ['--widths', '""', '1..64']),
                (['--widths', '1,,2'], ['--widths', '"1,,2"']), (['--widths', '1,'], ['--widths']),
                (['--widths', ','], ['--widths']), (['--widths', '0'], ['--widths', '"0"', '1..64']),
                (['--widths', '2,2'], ['--widths', 'different']), (['--widths', '-1'], ['--widths']),
                (['--widths', '99999999999999999999'], ['--widths']),
                (['--widths', ','.join(str(i) for i in range(1, 40))], ['--widths', '32']),
                (['--depth', '8388609'], ['--depth', '8388608']), (['--depth', 'x'], ['--depth', '"x"']),
                (['--repeat', '0'], ['--repeat', '1..101']), (['--repeat', '102'], ['--repeat']),
                (['--kv-k', 'f16,'], ['--kv-k', 'q4_0']), (['--kv-k', 'q4_k'], ['--kv-k', '"q4_k"']),
                (['--kv-v', ''], ['--kv-v']), (['--format', 'xml'], ['--format', '"xml"', 'jsonl']),
                (['--format', 'csv', '--json'], ['--json', '--format']),
                (['--ops', '--format', 'csv'], ['--ops', 'json']),
                (['--each', '--together'], ['--each']), (['--together'], ['--together', '--device']),
                (['--accept', '0.5'], ['--draft']), (['--draft-max', '2'], ['--draft']),
                (['--in', 'x'], ['--draft']), (['-n', '5'], ['-n', '--draft']), (['--temp', '0'], ['--temp']),
                (['--parallel', '2'], ['--parallel']), (['--device', 'host:0'], ['host']),
                (['--prompts', '--in', 'x', '--draft', DRAFT], ['--prompts', '--in']),
                (['--prompts', '--ops'], ['--prompts', '--ops']), (['--prompts', '--model', TARGET], ['one model'])):
            self.fails([*SMALL, *args], 2, *needles)
        for args, needles in ((['--accept', '1.1'], ['--accept', '0..1']), (['--accept', '-1'], ['--accept']),
                              (['--accept', 'nan'], ['--accept']), (['--draft-max', '64'], ['--draft-max', '1..63']),
                              (['--depth', '5'], ['--depth']), (['--model', DRAFT], ['one model']),
                              (['--kv-k', 'f16,f32'], ['one type']), (['--ops'], ['--ops']),
                              (['-n', '0'], ['-n'])):
            self.fails([*PAIR, *args], 2, *needles)
        self.fails(['--pp', '4'], 2, '--model')
        self.fails(['--model', '/nonexistent.gguf'], 74, 'nonexistent.gguf')
        self.fails(['--model', 'docs/cli.md', '--model', DRAFT], 65, 'docs/cli.md')

    def test_another_vocabulary_is_refused(self):
        other = os.path.join(os.environ.get('TD_GOLDEN', 'tests/data/golden'), 'models', 'llama', 'model.gguf')
        if not os.path.exists(other):
            self.skipTest(other + ' is not here')
        self.fails([*PAIR, '--draft', other], 69, "too far from the target's")

    def test_nothing_to_measure_is_no_test(self):
        j = json.loads(bench(*SMALL, '--pp', '0', '--tg', '0', '--widths', '1', '--json').stdout)
        self.assertEqual([k for k in j if re.match(r'(pp|tg)\d', k)], [])
        self.assertEqual(j['verify']['1']['c'], 1)


if __name__ == '__main__':
    unittest.main(verbosity=1)
