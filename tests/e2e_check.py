#!/usr/bin/env python3
"""tandem check as a user and a script meet it: a sound device passes; every op that is made wrong,
in every way there is to make it wrong, is found and named; a device that failed is refused. That a
sound GPU passes, e2e_bundle says.

usage: e2e_check.py TANDEM   (run from the source root; standard library only)"""
import json
import os
import subprocess
import sys
import tempfile
import unittest

TANDEM = os.path.abspath(sys.argv.pop(1)) if len(sys.argv) > 1 else 'build/tandem'
TARGET = 'configs/tales/tales-target.q8_0.gguf'
HOWS = ('bit', 'race', 'row')
PARTS = ['layer', 'models', 'beside', 'loss', 'speeds']
MODELS = ['model llama-f16', 'model llama-q8_0', 'model llama-q4_k_m', 'model gpt-oss', 'model qwen3next']


def run(*args, env=None):
    return subprocess.run([TANDEM, *args], capture_output=True, text=True, timeout=600,
                          env={**os.environ, **(env or {})})


def check(cache, *args, sabotage=None):
    env = {'TANDEM_CACHE_DIR': cache}
    if sabotage:
        env['TD_SABOTAGE'] = sabotage
    return run('check', *args, env=env)


def vulkan():
    for d in json.loads(run('devices', '--json').stdout):
        if d['device'].startswith('vulkan') and d['usable']:
            return d['device']
    return None


class Check(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.cache = os.path.join(self.folder.name, 'cache')

    def tearDown(self):
        self.folder.cleanup()

    def report(self, *args, code=0, sabotage=None, cache=None):
        r = check(cache or self.cache, '--json', *args, sabotage=sabotage)
        self.assertEqual(r.returncode, code, r.stdout + r.stderr)
        return json.loads(r.stdout)['devices']

    def finds(self, device, sabotage, cache=None):
        op = sabotage.split(':')[0]
        [d] = self.report('--device', device, '--quick', '--only', op, code=1, sabotage=sabotage, cache=cache)
        self.assertEqual((d['trusted'], d['failed']), (False, op), (sabotage, d))
        states = {o['name']: o['state'] for o in d['ops']}
        self.assertEqual([n for n, s in states.items() if s == 'failed'], [op], sabotage)

    def ops(self):
        r = check(self.cache, '--only', 'nothing')
        self.assertEqual(r.returncode, 2, r.stderr)
        names = r.stderr.split('allowed: ')[1].strip().split(', ')
        self.assertEqual(names[-len(PARTS):], PARTS)
        return names[:-len(PARTS)]

    def test_every_op_that_is_made_wrong_is_named(self):
        ops = self.ops()
        self.assertGreaterEqual(len(ops), 18)
        for op in ops:
            for how in HOWS:
                with self.subTest(op=op, how=how):
                    self.finds('host:2', f'{op}:{how}')

    def test_a_gpu_that_is_made_wrong_is_found_too(self):
        device = vulkan()
        if not device:
            self.skipTest('no usable Vulkan device is listed by `tandem devices`')
        for i, op in enumerate(self.ops()):  # a software GPU's compiler is slow: each in one way
            with self.subTest(op=op, device=device):
                self.finds(device, f'{op}:{HOWS[(i + 2) % len(HOWS)]}')

    def test_a_sound_device_passes_and_the_report_says_so(self):
        path = os.path.join(self.folder.name, 'report.json')
        r = check(self.cache, '--device', 'host:1', '--quick', '--report', path)
        self.assertEqual(r.returncode, 0, r.stdout + r.stderr)
        self.assertIn('nothing wrong was found', r.stdout)
        with open(path) as f:
            report = json.load(f)
        [d] = report['devices']
        self.assertEqual((d['device'], d['trusted'], d['failed'], d['small_shapes']), ('host:1', True, None, True))
        self.assertEqual(sorted(o['name'] for o in d['ops']), sorted(self.ops() + ['layer']))
        for o in d['ops']:
            self.assertEqual((o['state'], o['reason']), ('passed', None), o)
            self.assertGreaterEqual(o['repeats'], 20)
            self.assertGreater(o['cases'], 0)
            self.assertEqual(o['tolerance_used'], 0)  # the host agrees bit for bit

        self.assertEqual([p['name'] for p in d['parts']], MODELS + ['beside host:1'])
        self.assertEqual({p['state'] for p in d['parts']}, {'passed'}, d['parts'])
        self.assertEqual((d['speeds'], report['hops']), (None, []))
        for key in ('vendor', 'driver', 'usable_bytes', 'heaps', 'threads', 'clocks'):  # as `devices --json`
            self.assertIn(key, d)

    def test_speeds_and_hops_are_figures(self):
        other = vulkan() or 'host:1'
        r = check(self.cache, '--json', '--only', 'speeds', '--device', 'host:2', '--device', other)
        self.assertEqual(r.returncode, 0, r.stdout + r.stderr)
        report = json.loads(r.stdout)
        for d in report['devices']:
            s = d['speeds']
            self.assertGreater(min(s['bandwidth_bytes_per_s'], s['submit_us']), 0)
            self.assertEqual([p['type'] for p in s['products']], ['Q4_K', 'Q8_0'])
            for p in s['products']:
                self.assertEqual(list(p['verify']), ['1', '2', '4', '8', '16', '32', '64'])
                self.assertEqual(p['verify']['1']['c'], 1)
                self.assertGreater(p['prefill_macs_per_s'], 0)
        self.assertEqual([(h['from'], h['to']) for h in report['hops']], [('host:2', other), (other, 'host:2')])
        self.assertGreater(min(h['us'] for h in report['hops']), 0)

    def test_models_show_what_an_op_does_to_them(self):
        # Not by name of the op, but a model whose logits are wrong is not passed over either.
        [d] = self.report('--device', 'host:1', '--only', 'models', code=1, sabotage='rms_norm:row')
        self.assertEqual(d['failed'], 'model llama-f16')
        self.assertIn('logit', d['parts'][0]['reason'])

    def test_a_page_for_people_has_all_of_it(self):
        r = check(self.cache, '--device', 'host:1', '--only', 'speeds')
        self.assertEqual(r.returncode, 0, r.stderr)
        for needle in ('vendor', 'memory:', 'GB/s', 'c(n)', 'nothing wrong was found'):
            self.assertIn(needle, r.stdout)

    def generate(self, *args):
        return run('generate', '--target', TARGET, '--prompt', 'Once', '-n', '4', '--quiet', '--no-measure', *args,
                   env={'TANDEM_CACHE_DIR': self.cache})

    def test_generate_refuses_a_device_that_failed(self):
        sound = self.generate('--device', 'host:1')
        self.assertEqual(sound.returncode, 0, sound.stderr)
        self.report('--device', 'host:2', '--quick', '--only', 'add', code=1, sabotage='add:row')
        for args in (['--device', 'host:1'], ['--device', 'host:1@0-2', '--device', 'host:2']):
            r = self.generate(*args)
            self.assertEqual((r.returncode, r.stdout), (69, ''), r.stderr)
            for needle in ('host', 'tandem check', 'add', '--trust', 'driver'):
                self.assertIn(needle, r.stderr)
        trusted = self.generate('--device', 'host:1', '--trust')
        self.assertEqual((trusted.returncode, trusted.stdout), (0, sound.stdout), trusted.stderr)
        # One op that passes clears nothing.
        self.report('--device', 'host:2', '--quick', '--only', 'add')
        self.assertEqual(self.generate('--device', 'host:1').returncode, 69)

    def test_what_makes_no_sense_is_refused(self):
        for sabotage in ('mat_mul', 'mat_mul:gently', 'nothing:bit', ':bit', 'spoil:bit'):
            r = check(self.cache, '--device', 'host:1', '--quick', '--only', 'add', sabotage=sabotage)
            self.assertEqual(r.returncode, 2, r.stdout + r.stderr)
            self.assertIn('TD_SABOTAGE', r.stderr)
        for args in (['--device', 'gpu'], ['--only', 'mat'], ['--report', '/nonexistent/r.json'], ['extra']):
            r = check(self.cache, *args)
            self.assertIn(r.returncode, (2, 74), r.stderr)
            self.assertEqual(r.stdout, '')


if __name__ == '__main__':
    unittest.main(verbosity=2)
