#!/usr/bin/env python3
"""Stages on other machines (law 1 over machines): a split over workers gives the text of the same
split in one process, whatever is drafted, and a worker that is lost or wrong ends in a clear error.

usage: e2e_stage.py TANDEM   (run from the source root; standard library only)"""
import contextlib
import json
import os
import pty
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

from relay import Relay, is_port_of

TANDEM = os.path.abspath(sys.argv.pop(1)) if len(sys.argv) > 1 else 'build/tandem'
TARGET = 'configs/tales/tales-target.q8_0.gguf'
DRAFT = 'configs/tales/tales-draft.q8_0.gguf'
PROMPTS = ['Once upon a time', 'The fox said', 'A king had three sons, and',
           ' '.join(['There was a house in the wood.'] * 40)]


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


class Case(unittest.TestCase):
    texts = PROMPTS

    def setUp(self):
        self.dir = tempfile.TemporaryDirectory()
        self.workers = []
        self.prompts = os.path.join(self.dir.name, 'prompts.jsonl')
        with open(self.prompts, 'w') as f:
            for i, prompt in enumerate(self.texts):
                for temp in (0, 0.8):
                    f.write(json.dumps({'id': '%d-%g' % (i, temp), 'prompt': prompt, 'temp': temp, 'seed': i,
                                        'repeat_penalty': 1.1 if i == 1 else 1}) + '\n')

    def tearDown(self):
        for worker in self.workers:
            if worker.poll() is None:
                worker.kill()
            worker.wait()
            worker.stderr.close()
        self.dir.cleanup()

    def start(self, endpoint, *args, env=None):
        worker = subprocess.Popen([TANDEM, 'stage', '--bind', endpoint, *(args or ('--models', 'configs/tales',
                                                                                 '--device', 'host:1'))],
                                  stderr=subprocess.PIPE, text=True, env=env)
        self.workers.append(worker)
        for line in worker.stderr:
            if ': at ' in line:
                return worker
        self.fail('the worker did not start')

    def ipc(self, name):
        return 'ipc://%s/%s.sock' % (self.dir.name, name)

    def command(self, *args, n=40):
        return [TANDEM, 'generate', '--target', TARGET, '--in', self.prompts, '-n', str(n), '--ctx', '1024', *args]

    def generate(self, *args, code=0, n=40, n_lines=None):
        r = subprocess.run(self.command(*args, n=n), capture_output=True, text=True, timeout=120)
        self.assertEqual(r.returncode, code, r.stderr)
        if code:
            return r.stderr
        lines = {line['id']: line['tokens'] for line in map(json.loads, r.stdout.splitlines())}
        self.assertEqual(len(lines), 2 * len(self.texts) if n_lines is None else n_lines)
        return lines


class Stage(Case):
    def test_a_split_over_machines_gives_the_text_of_one(self):
        a, b = ('tcp://127.0.0.1:%d' % free_port() for _ in range(2))
        self.start(a)
        self.start(b)
        hosts = ['--host', 'a=' + a, '--host', 'b=' + b]
        splits = [['a/host:1', 'host:1'], ['host:1', 'a/host:1'], ['a/host:1', 'b/host:1'],
                  ['host:1', 'a/host:1', 'host:1'], ['host:1@0-2', 'b/host:1@3-4', 'a/host@5-6', 'host:1@7-9'],
                  ['a/host:1', 'a/host:1', 'host:1', 'b/host:1']]
        ways = [['--parallel', '4'], ['--parallel', '4', '--draft', DRAFT, '--draft-device', 'host:1'],
                ['--draft', DRAFT, '--draft-device', 'host:1', '--draft-fixed', '5'],
                ['--parallel', '3', '--kv-k', 'q8_0', '--kv-v', 'q8_0', '--draft-ngram'],
                ['--kv-k', 'q8_0', '--kv-v', 'q4_0', '--kv-keep', 'first,last=f16', '--kv-keep', '3-5=q4_0/f32', '--draft',
                 DRAFT, '--draft-device', 'host:1', '--draft-fixed', '4', '--draft-kv-k', 'q4_0']]
        wanted = {}
        for i, way in enumerate(ways):
            cache = tuple(x for k, x in zip(way, way[1:]) if k.startswith('--kv'))
            if cache not in wanted:
                wanted[cache] = self.generate('--device', 'host:1', '--device', 'host:1', *[
                    x for pair in zip(way, way[1:]) if pair[0].startswith('--kv') for x in pair])
            for split in splits if i < 2 else splits[2 + i % 2:4 + i % 2]:
                devices = [x for spec in split for x in ('--device', spec)]
                self.assertEqual(self.generate(*hosts, *devices, *way), wanted[cache], (split, way))

    def test_more_groups_than_stages_give_the_same_text(self):
        near, far = free_port(), free_port()
        self.start('tcp://127.0.0.1:%d' % near)
        relay = Relay(far, near, delay=0.005)
        self.addCleanup(relay.close)
        stats = os.path.join(self.dir.name, 'stats.json')
        args = ['--host', 'a=tcp://127.0.0.1:%d' % far, '--device', 'a/host:1', '--device', 'host:1']
        wanted = self.generate('--device', 'host:1', '--device', 'host:1', '--parallel', '8')
        for way in ([], ['--draft', DRAFT, '--draft-device', 'host:1', '--draft-fixed', '3'], ['--draft-ngram']):
            self.assertEqual(self.generate(*args, *way, '--parallel', '8', '--stats', stats), wanted, way)
            with open(stats) as f:
                s = json.load(f)['coordinator']
            self.assertGreaterEqual(s['groups'], 2)
            self.assertGreaterEqual(s['link_ms'], 10)  # there and back

    def test_every_kind_of_layer(self):
        for family in ('qwen3next', 'gemma3', 'gpt-oss', 'deepseek2', 'llama-moe'):
            model, end = 'tests/data/golden/models/%s/model.gguf' % family, self.ipc(family)
            worker = self.start(end, '--model', model, '--device', 'host:1')
            texts = [subprocess.run([TANDEM, 'generate', '--target', model, '--prompt', 'Once upon a time', '-n', '40',
                                     '--temp', '0.9', '--ignore-eos', '--draft-ngram', '--quiet', '--no-measure',
                                     '--host', 's=' + end, '--device', first, '--device', second, *keep],
                                    capture_output=True, timeout=60, check=True).stdout
                     for keep in ([], ['--kv-k', 'q4_0', '--kv-v', 'q4_0', '--kv-keep', 'first,last=f32'])
                     for first, second in (('host:1', 'host:1'), ('host:1', 's/host'), ('s/host', 's/host'))]
            self.assertEqual(set(texts[:3]), {texts[0]}, family)
            self.assertEqual(set(texts[3:]), {texts[3]}, family)
            worker.kill()

    def test_what_a_run_over_machines_takes(self):
        bench = [TANDEM, 'bench', '--pp', '40', '--tg', '4', '--widths', '1,5', '--repeat', '2', '--json']
        for family in ('llama', 'qwen3next'): # one whose cache forgets too
            model, end = 'tests/data/golden/models/%s/model.gguf' % family, self.ipc('b' + family)
            self.start(end, '--model', model, '--device', 'host:1')
            for devices in (['a/host:1'], ['host:1', 'a/host:1']):
                r = subprocess.run([*bench, '--model', model, '--host', 'a=' + end, '--depth', '0,100',
                                    *(['--wire', 'f16'] if family == 'llama' else []),
                                    *(x for d in devices for x in ('--device', d))],
                                   capture_output=True, text=True, timeout=120)
                self.assertEqual(r.returncode, 0, r.stderr)
                for line, depth in zip(r.stdout.splitlines(), (0, 100)):
                    found = json.loads(line)
                    self.assertEqual((found['device'], found['depth']), ('+'.join(devices), depth))
                    self.assertTrue(found['pp40'] > 0 and found['tg4'] > 0 and found['verify']['5']['ms'] > 0)
                    self.assertEqual(found['verify']['1']['c'], 1)
        for more, words in ((['--ops'], '--host: not with'), ([], 'cannot be reached')):
            r = subprocess.run([*bench, '--model', TARGET, '--host', 'a=' + self.ipc('none'), '--device', 'a/host:1', *more],
                               capture_output=True, text=True, timeout=120)
            self.assertEqual(r.returncode, 2 if more else 69, r.stderr)
            if more:
                self.assertIn(words, r.stderr)

    def test_what_is_not_there_is_said(self):
        a = self.ipc('a')
        text = self.generate('--device', 'a/host:1', code=2)
        self.assertIn('no host "a" is known', text)
        text = self.generate('--host', 'a=' + a, '--device', 'a/host:1', code=69)
        self.assertIn('no answer', text)
        self.start(a, '--model', DRAFT, '--device', 'host:1', '--cache-size', '0')
        text = self.generate('--host', 'a=' + a, '--device', 'a/host:1', code=69)
        self.assertIn('no model file there is Tales target 9M', text)
        text = self.generate('--host', 'a=' + a, '--device', 'a/vulkan:9', code=2)
        self.assertIn('that host has: host:1', text)
        text = self.generate('--host', 'a=' + a, '--device', 'a/host', '--device', 'host:1', '--device', 'a/host',
                             code=2)
        self.assertIn('stand apart', text)

    def test_hosts_of_a_configuration(self):
        a, path = self.ipc('a'), os.path.join(self.dir.name, 'config.json')
        worker = self.start(a, '--models', 'configs/tales', '--device', 'host:1', '--device', 'host:2')
        listed = subprocess.run([TANDEM, 'devices', '--json', '--host', 'strix=' + a], capture_output=True, text=True,
                                timeout=30, check=True)
        self.assertEqual([(d['host'], d['device'], d['kind']) for d in json.loads(listed.stdout)],
                         [('strix', 'host:1', 'host'), ('strix', 'host:2', 'host')])
        for hosts, code in (({'strix': {'endpoint': a}}, 0), ({'strix': {'end': a}}, 65), ({'strix': a}, 65),
                            ({'st rix': {'endpoint': a}}, 2), ({'strix': {'endpoint': 'tcp://0.0.0.0:1'}}, 2)):
            with open(path, 'w') as f:
                json.dump({'hosts': hosts, 'target': {'devices': ['strix/host:2', 'host:1']}}, f)
            self.generate('--config', path, n=2, code=code)
        self.assertIsNone(worker.poll())

    def test_garbage_does_no_harm(self):
        port = free_port()
        endpoint = 'tcp://127.0.0.1:%d' % port
        worker = self.start(endpoint)
        rng = random.Random(1)
        for i in range(40):
            with contextlib.suppress(ConnectionError), socket.create_connection(('127.0.0.1', port)) as s:
                if i % 2:  # a greeting of the transport first, so that what follows is taken for messages
                    s.sendall(bytes.fromhex('ff00000000000000017f03004e554c4c') + bytes(48))
                    s.sendall(b'\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER')
                    for _ in range(8):
                        body = bytearray(rng.randbytes(rng.randrange(1, 200)))
                        if rng.random() < 0.7:
                            body[:8] = b'TTDM\x01\x00' + bytes([rng.randrange(30, 50), 0])
                        s.sendall(bytes([0, len(body)]) + body)
                else:
                    s.sendall(rng.randbytes(rng.randrange(1, 4000)))
        self.generate('--host', 'a=' + endpoint, '--device', 'a/host:1', n=4)
        self.assertIsNone(worker.poll())

    def test_a_worker_is_free_again_when_its_coordinator_was_killed(self):
        a = self.ipc('a')
        self.start(a)
        args = ['--host', 'a=' + a, '--device', 'host:1', '--device', 'a/host:1']
        p = subprocess.Popen(self.command(*args, n=400), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        time.sleep(1.5)
        p.kill()
        p.communicate()
        self.generate(*args, n=4)

    def test_a_worker_that_is_started_again_goes_on(self):
        ends = [self.ipc('a'), self.ipc('b')]
        workers = [self.start(end) for end in ends]
        args = ['--host', 'a=' + ends[0], '--host', 'b=' + ends[1], '--device', 'a/host:1', '--device', 'host:1',
                '--device', 'b/host:1', '--parallel', '4']
        wanted = self.generate('--device', 'host:1', '--device', 'host:1', '--device', 'host:1', n=400)
        stats, out = (os.path.join(self.dir.name, name) for name in ('stats.json', 'out.jsonl'))
        p = subprocess.Popen(self.command(*args, '--stats', stats, '--out', out, n=400), stderr=subprocess.PIPE, text=True)
        while p.poll() is None and not (os.path.exists(out) and os.path.getsize(out)):
            time.sleep(0.01)  # until it is under way
        for i in range(2):
            workers[i].kill()
            workers[i].wait()
            self.start(ends[i])
            time.sleep(1.5)
        _, text = p.communicate(timeout=180)
        self.assertEqual(p.returncode, 0, text)
        with open(out) as f:
            self.assertEqual({line['id']: line['tokens'] for line in map(json.loads, f)}, wanted)
        with open(stats) as f:
            self.assertGreaterEqual(json.load(f)['totals']['target_losses'], 1, text)

    def lose(self, devices, *args, code=0):
        """A run whose worker b is killed for good: its error text, or lines and statistics."""
        ends = {name: self.ipc(name) for name in 'abc'}
        workers = {name: self.start(end) for name, end in ends.items()}
        hosts = [x for name, end in ends.items() for x in ('--host', '%s=%s' % (name, end))]
        stats, out = (os.path.join(self.dir.name, name) for name in ('stats.json', 'out.jsonl'))
        args = [*hosts, *(x for spec in devices for x in ('--device', spec)), *args, '--parallel', '4', '--out', out]
        p = subprocess.Popen(self.command(*args, '--stats', stats, n=400), stderr=subprocess.PIPE, text=True)
        while p.poll() is None and not (os.path.exists(out) and os.path.getsize(out)):
            time.sleep(0.01)  # until it is under way
        workers['b'].kill()
        _, text = p.communicate(timeout=180)
        self.assertEqual(p.returncode, code, text)
        if code:
            self.start(ends['b'])  # and what was finished is resumed
            self.generate(*args, n=400, code=0, n_lines=0)
        with open(out) as f:
            lines = {line['id']: line['tokens'] for line in map(json.loads, f)}
        undisturbed = ['--device', 'host:1', '--device', 'host:1']
        if '--wire' in args:  # then machines make a difference
            undisturbed = args[:args.index('--out')]
            if not code:
                self.start(ends['b'])
        self.assertEqual(lines, self.generate(*undisturbed, n=400))
        if code:
            return text
        with open(stats) as f:
            s = json.load(f)
        self.assertEqual(s['totals']['target_losses'], 1)
        loss = s['losses'][0]
        self.assertLess(0, loss['away_ms'])
        self.assertLess(loss['away_ms'], loss['next_token_ms'])
        self.assertEqual(loss['replayed_positions'], s['coordinator']['replayed_positions'])
        return [stage['device'] for stage in s['stages']], loss['back']

    def test_a_spare_takes_the_layers_of_a_lost_worker(self):
        self.assertEqual(self.lose(['a/host:1', 'b/host:1', 'host:1'], '--spare', 'c/host'),
                         (['a/host:1', 'c/host:1', 'host:1'], 'spare'))

    def test_with_f16_on_the_way_a_spare_takes_them_too(self):
        self.assertEqual(self.lose(['a/host:1', 'b/host:1', 'host:1'], '--wire', 'f16', '--spare', 'c/host'),
                         (['a/host:1', 'c/host:1', 'host:1'], 'spare'))

    def test_with_f16_on_the_way_other_cuts_end_the_run(self):
        text = self.lose(['a/host:1', 'b/host:1', 'host:1'], '--wire', 'f16', code=75)
        self.assertIn('with --wire f16 layers stay cut as they are', text)

    def test_layers_are_shared_out_anew_over_what_is_left(self):
        self.assertEqual(self.lose(['a/host:1', 'b/host:1', 'host:1']), (['a/host:1', 'host:1'], 'rest'))

    def test_a_worker_lost_for_good_ends_the_run_in_the_end(self):
        text = self.lose(['b/host:1'], code=75)
        self.assertIn('nothing is left', text)
        self.assertIn('no answer', text)

    def test_a_machine_is_replaced_when_a_run_is_resumed(self):
        for name, device in (('a', 'host:1'), ('b', 'host:2'), ('c', 'scalar')):
            self.start(self.ipc(name), '--models', 'configs/tales', '--device', device)
        hosts = [x for name in 'abc' for x in ('--host', '%s=%s' % (name, self.ipc(name)))]
        out = os.path.join(self.dir.name, 'out.jsonl')
        args = ['--out', out, *hosts]
        self.generate(*args, '--device', 'a/host@0-3', '--device', 'c/scalar@4-9', n=4, n_lines=0)
        self.generate(*args, '--device', 'b/host', '--device', 'c/scalar', n=4, n_lines=0)  # nothing is left to do
        with open(out) as f:
            self.assertEqual({json.loads(line)['placement'] for line in f}, {'a/host:1@0-3 + c/scalar@4-9'})
        text = self.generate(*args, '--device', 'c/scalar', '--device', 'b/host', n=4, code=65)
        self.assertIn('is of another configuration', text)

    def test_a_spare_of_another_kind_is_refused(self):
        for name, device in (('a', 'host:1'), ('c', 'scalar')):
            self.start(self.ipc(name), '--models', 'configs/tales', '--device', device)
        hosts = [x for name in 'ac' for x in ('--host', '%s=%s' % (name, self.ipc(name)))]
        for devices, spare, said in ((['a/host:1'], 'c/scalar', 'would choose other tokens'),
                                     (['a/host:1'], 'c/vulkan:7', 'that host has: scalar'),
                                     (['a/host:1'], 'd/host:1', 'no host "d" is known'),
                                     (['a/host:1'], 'c/scalar@0-3', 'without @a-b'),
                                     (['host:1'], 'c/scalar', 'no stage is on another machine')):
            text = self.generate(*hosts, *(x for spec in devices for x in ('--device', spec)), '--spare', spare, code=2)
            self.assertIn(said, text)

    def test_activations_go_as_f16_where_that_is_asked_for(self):
        for name in 'ab':
            self.start(self.ipc(name))
        args = [x for name in 'ab' for x in ('--host', '%s=%s' % (name, self.ipc(name)))] + ['--parallel', '4']
        exact = self.generate('--device', 'host:1', '--device', 'host:1', '--parallel', '4')
        draft = ['--draft', DRAFT, '--draft-device', 'host:1']
        ways = [[*draft, '--draft-fixed', '5'], ['--draft-ngram', '--parallel', '3'], [*draft, '--parallel', '1']]
        # What is between stages of one machine is not rounded: those of a row are cut alike.
        for splits in ([['a/host:1@0-4', 'b/host:1@5-9'], ['host:1@0-4', 'b/host:1@5-9'], ['a/host:1@0-4', 'host:1@5-9'],
                        ['a/host:1@0-2', 'a/host:1@3-4', 'host:1@5-7', 'host:1@8-9']],
                       [['host:1@0-2', 'a/host:1@3-6', 'host:1@7-9'], ['a/host:1@0-2', 'b/host:1@3-6', 'host:1@7-9']]):
            wanted = None
            for i, split in enumerate(splits):
                devices = [x for spec in split for x in ('--device', spec)]
                for way in ([], ways[i % len(ways)]):
                    lines = self.generate(*args, '--wire', 'f16', *devices, *way)
                    wanted = wanted or lines
                    self.assertEqual(lines, wanted, (split, way))
                self.assertEqual(self.generate(*args, '--wire', 'f32', *devices), exact)
            self.assertNotEqual(wanted, exact)
        # With nothing on the way it is the same run.
        out = os.path.join(self.dir.name, 'out.jsonl')
        self.generate('--out', out, '--device', 'host:1', n_lines=0)
        self.generate('--out', out, '--wire', 'f16', '--device', 'host:1', '--device', 'host:1', n_lines=0)

    def test_where_f16_is_on_the_way_is_part_of_a_run(self):
        for name in 'ab':
            self.start(self.ipc(name))
        out = os.path.join(self.dir.name, 'out.jsonl')
        args = ['--out', out, *(x for name in 'ab' for x in ('--host', '%s=%s' % (name, self.ipc(name))))]
        self.generate(*args, '--wire', 'f16', '--device', 'host:1@0-4', '--device', 'a/host:1@5-9', n=4, n_lines=0)
        self.generate(*args, '--wire', 'f16', '--device', 'b/host:1@0-4', '--device', 'host:1@5-9', n=4, n_lines=0)
        with open(out) as f:
            self.assertIn('; wire=F16@5', json.loads(f.readline())['config'])
        for devices, said in ((('--device', 'host:1@0-4', '--device', 'a/host:1@5-9'), 'wire is "F16@5" there and "F32" now'),
                              (('--wire', 'f16', '--device', 'host:1@0-3', '--device', 'a/host:1@4-9'),
                               'wire is "F16@5" there and "F16@4" now')):
            self.assertIn(said, self.generate(*args, *devices, n=4, code=65))
        self.assertIn('--wire: "q8_0"; allowed: f32, f16', self.generate('--wire', 'q8_0', '--device', 'host:1', code=2))

    def test_neighbours_show_each_other_keys(self):
        keys = {name: {**os.environ, 'TANDEM_KEYS_DIR': os.path.join(self.dir.name, name)} for name in ('desk', 'a', 'b')}
        public = {}
        for name, environment in keys.items():
            public[name] = subprocess.run([TANDEM, 'keys', 'new', name], env=environment, check=True,
                                          capture_output=True, text=True).stdout
        for own, other in (('a', 'desk'), ('b', 'desk'), ('desk', 'a'), ('desk', 'b'), ('b', 'a')):
            subprocess.run([TANDEM, 'keys', 'allow', other, '-'], env=keys[own], check=True, input=public[other],
                           text=True, capture_output=True)
        ends = {name: 'tcp://127.0.0.1:%d' % free_port() for name in 'ab'}
        for name, end in ends.items():
            self.start(end, '--models', 'configs/tales', '--device', 'host:1', '--key', name, env=keys[name])
        args = [x for name, end in ends.items() for x in ('--host', '%s=%s,%s' % (name, end, name))]
        r = subprocess.run(self.command(*args, '--device', 'a/host:1', '--device', 'b/host:1', n=8), env=keys['desk'],
                           capture_output=True, text=True, timeout=60)
        self.assertEqual(r.returncode, 0, r.stderr)
        wanted = self.generate('--device', 'host:1', '--device', 'host:1', n=8)
        self.assertEqual({line['id']: line['tokens'] for line in map(json.loads, r.stdout.splitlines())}, wanted)


class Head(Case):
    """A head of the target's own drafts beside its last layers, wherever those before them are."""
    model = 'tests/data/golden/mtp/qwen35-informed/model.gguf'
    texts = ['the fox and the fox and', 'a stone on a stone', ' '.join(['the house in the wood'] * 30)]

    def command(self, *args, n=40):
        return [TANDEM, 'generate', '--target', self.model, '--in', self.prompts, '-n', str(n), '--ctx', '512',
                '--ignore-eos', '--no-measure', *args]

    def serve(self, *names):
        for name in names:
            self.start(self.ipc(name), '--model', self.model, '--device', 'host:1')
        return [x for name in names for x in ('--host', '%s=%s' % (name, self.ipc(name)))]

    def count(self, *args, **more):
        """Texts, and how much of what was drafted was right."""
        path = os.path.join(self.dir.name, 'stats.json')
        texts = self.generate(*args, '--stats', path, **more)
        with open(path) as f:
            totals = json.load(f)['totals']
        return texts, totals['drafted'], totals['accepted']

    def test_it_drafts_as_in_one_process(self):
        hosts, here = self.serve('a', 'b'), ['--device', 'host:1', '--device', 'host:1']
        splits = [[*hosts, *(x for d in split for x in ('--device', d))] for split in
                  (['a/host:1', 'host:1'], ['host:1', 'a/host:1'], ['a/host:1', 'b/host:1'], ['a/host:1', 'a/host:1'], ['b/host:1'])]
        for cache in ([], ['--kv-k', 'q8_0', '--kv-v', 'q4_0']):
            wanted = self.generate(*here, *cache)
            draft = ['--draft', 'mtp', '--draft-fixed', '3', '--parallel', '1', *cache]
            counted = self.count(*here, *draft)
            self.assertEqual(counted[0], wanted)
            self.assertGreater(counted[2], 0)
            for i, there in enumerate(splits):
                self.assertEqual(self.count(*there, *draft), counted, there)
                way = (['--draft', 'mtp', '--parallel', '3', '--draft-fixed', '2'], ['--draft', 'auto', '--parallel', '4'])[i % 2]
                texts, drafted, _ = self.count(*there, *way, *cache)
                self.assertEqual(texts, wanted, (there, way))
                self.assertGreater(drafted, 0)
        for there in splits[:3]:
            wanted = self.generate(*there, '--wire', 'f16')
            self.assertEqual(self.generate(*there, '--wire', 'f16', '--draft', 'mtp', '--parallel', '4'), wanted)

    def test_a_model_goes_on_behind_it(self):
        hosts = self.serve('a', 'b')
        for split in (['a/host:1', 'host:1'], ['host:1', 'a/host:1'], ['a/host:1', 'b/host:1']):
            there = [*hosts, *(x for d in split for x in ('--device', d))]
            wanted, path = self.generate(*there), os.path.join(self.dir.name, 'both.json')
            for way in (['--draft-fixed', '4', '--parallel', '1'], ['--draft-fixed', '3', '--parallel', '3'], ['--parallel', '2']):
                way = [*way, '--draft', 'mtp,' + self.model, '--draft-device', 'host:1', '--stats', path]
                self.assertEqual(self.generate(*there, *way), wanted, (there, way))
                with open(path) as f:
                    totals = json.load(f)['totals']
                if '--draft-fixed' in way:
                    self.assertGreater(totals['by_head_accepted'], 0, (there, way))
                    self.assertGreater(totals['accepted'], totals['by_head_accepted'], (there, way))

    def test_its_weights_are_sent_with_the_layers(self):
        env = {**os.environ, 'TANDEM_CACHE_DIR': os.path.join(self.dir.name, 'cache')}
        for model in (self.model, 'tests/data/golden/mtp/glm4moe-own/model.gguf'):
            self.model, name = model, 'c%d' % len(self.workers)
            here = self.count('--device', 'host:1', '--device', 'host:1', '--draft', 'mtp', '--draft-fixed', '2')
            self.start(self.ipc(name), '--models', self.dir.name, '--device', 'host:1', env=env)
            there = ['--host', 'c=' + self.ipc(name), '--device', 'host:1', '--device', 'c/host:1']
            self.generate(*there)  # without it, at first
            self.assertEqual(self.count(*there, '--draft', 'mtp', '--draft-fixed', '2'), here)

    def test_who_may_draft_is_said(self):
        hosts = self.serve('a')
        there = [*hosts, '--device', 'host:1', '--device', 'a/host:1']
        text = self.generate(*there, '--draft', 'mtp:' + self.model, code=2)
        self.assertIn('a head of another file', text)
        self.model = TARGET
        self.assertIn('no head', self.generate(*there, '--draft', 'mtp', code=65))

    def lose(self, name, devices, *hosts, draft=('mtp',)):
        """The worker is killed and started again in the middle of a run: the text, and that drafting goes on."""
        out, stats = (os.path.join(self.dir.name, x) for x in ('out.jsonl', 'stats.json'))
        args = [*hosts, *(x for d in devices for x in ('--device', d)), '--parallel', '2', '--draft-fixed', '2', '--draft', *draft]
        p = subprocess.Popen(self.command(*args, '--stats', stats, '--out', out, n=300), stderr=subprocess.PIPE, text=True)
        while p.poll() is None and not (os.path.exists(out) and os.path.getsize(out)):
            time.sleep(0.01)  # until it is under way
        self.workers[name].kill()
        self.workers[name].wait()
        self.start(self.ipc('ab'[name]), '--model', self.model, '--device', 'host:1')
        _, text = p.communicate(timeout=180)
        self.assertEqual(p.returncode, 0, text)
        with open(out) as f:
            lines = [json.loads(line) for line in f]
        here = [x for _ in devices for x in ('--device', 'host:1')]
        self.assertEqual({line['id']: line['tokens'] for line in lines}, self.generate(*here, n=300))
        with open(stats) as f:
            totals = json.load(f)['totals']
        self.assertGreaterEqual(totals['target_losses'], 1)
        if draft == ('mtp',):
            self.assertEqual(totals['draft_joins'], 1 + totals['target_losses'])
        for line in lines:  # of which the last began behind the loss; the last round has no guess
            self.assertGreaterEqual(line['drafted'], line['rounds'], line['id'])

    def test_it_goes_on_behind_a_lost_stage(self):
        self.lose(0, ['a/host:1', 'host:1'], *self.serve('a'))

    def test_it_comes_back_with_a_lost_stage(self):
        self.lose(1, ['a/host:1', 'b/host:1'], *self.serve('a', 'b'))

    def test_it_comes_back_before_a_model(self):
        self.lose(1, ['a/host:1', 'b/host:1'], *self.serve('a', 'b'), draft=('mtp,' + self.model, '--draft-device', 'host:1'))


class Trace(Case):
    """One timeline over all machines, whose clocks differ: here b's is told to be ahead by SHIFT_US."""
    texts = PROMPTS[:2]
    SHIFT_US = 7654321

    def setUp(self):
        super().setUp()
        self.start(self.ipc('a'))
        self.start(self.ipc('b'), env={**os.environ, 'TD_CLOCK_SHIFT': str(self.SHIFT_US)})
        self.hosts = [x for name in 'ab' for x in ('--host', '%s=%s' % (name, self.ipc(name)))]
        self.path = os.path.join(self.dir.name, 'trace.json')

    def events(self):
        with open(self.path) as f:
            events = json.load(f)
        self.tracks = {(e['pid'], e['tid']): e['args']['name'] for e in events if e['name'] == 'thread_name'}
        self.clocks = {e['args']['host']: e['args'] for e in events if e['name'] == 'clock'}  # the last of each
        ends = {}
        for e in events:
            if e['ph'] == 'X':
                track = self.tracks[e['pid'], e['tid']]
                self.assertGreaterEqual(e['ts'], ends.get(track, 0), e)  # nothing is out of order
                ends[track] = e['ts'] + e['dur']
        return events

    def check(self, events, stages, n_hosts=2):
        """What each batch met, from the coordinator's send to its answer, by its clock."""
        for host, ahead in (('a', 0), ('b', self.SHIFT_US)):
            clock = self.clocks[host]
            self.assertLessEqual(abs(clock['offset_us'] - ahead), clock['uncertainty_us'], clock)
            self.assertGreater(clock['batches'], 20)
            self.assertEqual(clock['dropped'], 0)
        batches = {}
        for e in events:
            if 'batch' in e['args']:
                batches.setdefault(e['args']['batch'], []).append(e)
        n_whole = 0
        for met in batches.values():
            names = {}
            for e in met:
                kind = e['name'].replace(' (cancelled)', '')
                names[kind if kind in ('send prefill', 'send verify', 'answer', 'cancel') else
                      self.tracks[e['pid'], e['tid']].split(' (')[0]] = e
            if 'answer' not in names:
                continue  # the last few may be under way when a run ends
            n_whole += 1
            sent = names.get('send verify') or names['send prefill']
            at, before, unsure = sent['ts'], sent, 0
            for device in stages:
                host = device.split('/')[0] if '/' in device else None
                stage = next(track for track in names if track.endswith(' ' + device))
                way = [stage] if not host else ['%s receive' % host, stage + ' wait', stage]
                mine = self.clocks[host]['uncertainty_us'] if host else 0
                for k, track in enumerate(way):
                    e = names[track]
                    slack = mine + unsure if k == 0 and host else mine
                    self.assertGreaterEqual(e['ts'] + slack, at, (track, before, e))
                    at, before = e['ts'] + e.get('dur', 0), e
                unsure = mine
                if host:
                    e = names['%s send' % host]
                    self.assertGreaterEqual(e['ts'] + mine, at, (before, e))
                    at, before = e['ts'], e  # what was sent may be there before all of it is noted
            self.assertGreaterEqual(names['answer']['ts'] + unsure, at, (before, names['answer']))
        self.assertGreater(n_whole, 20)

    def test_spans_lie_between_send_and_answer(self):
        stages = ['host:1', 'a/host:1', 'b/host:1']
        devices = [x for spec in stages for x in ('--device', spec)]
        wanted = self.generate('--device', 'host:1', '--device', 'host:1', '--device', 'host:1')
        for args in (['--parallel', '4', '--draft-ngram'],
                     ['--parallel', '2', '--draft', DRAFT, '--draft-device', 'host:1', '--draft-fixed', '3']):
            self.assertEqual(self.generate(*self.hosts, *devices, *args, '--trace', self.path), wanted)
            events = self.events()
            self.check(events, stages)
            self.assertEqual({e['pid'] for e in events}, {1, 2, 3})
            names = set(self.tracks.values())
            for name in ('coordinator', 'a receive', 'a send', 'b receive', 'b send', 'stage 1 a/host:1 wait'):
                self.assertIn(name, names)
            for i, spec in enumerate(stages):
                self.assertTrue(any(n.startswith('stage %d %s (layers ' % (i, spec)) for n in names), names)
        page = os.path.join(self.dir.name, 'page.html')
        subprocess.run([TANDEM, 'report', self.path, '--out', page], check=True, timeout=60)
        with open(page) as f:
            text = f.read()
        for name in ('a receive', 'b send', 'stage 2 b/host:1 wait', 'stage 2 b/host:1 (layers', 'Between machines',
                     'Clocks'):
            self.assertIn(name, text)

    def test_two_devices_of_a_machine(self):
        stages = ['b/host:1', 'a/host:1']
        self.generate(*self.hosts, *(x for spec in ['b/host:1@0-3', 'a/host:1@4-9'] for x in ('--device', spec)),
                      '--parallel', '2', '--trace', self.path)
        self.check(self.events(), stages)
        self.start(self.ipc('c'), '--models', 'configs/tales', '--device', 'host:1', '--device', 'host:2')
        self.generate('--host', 'c=' + self.ipc('c'), '--device', 'c/host:1', '--device', 'c/host:2', '--trace', self.path)
        events = self.events()
        spans = {}
        for e in events:
            if e['ph'] == 'X':
                spans.setdefault(self.tracks[e['pid'], e['tid']].split(' (')[0], []).append(e['args']['batch'])
        self.assertEqual(sorted(spans), sorted(['c receive', 'c send', *('stage %d c/host:%d%s' % (i, i + 1, more)
                                                                        for i in (0, 1) for more in ('', ' wait'))]))
        self.assertEqual({tuple(batches) for batches in spans.values()}, {tuple(spans['c send'])})

    def test_a_trace_goes_on_when_a_spare_stands_in(self):
        self.start(self.ipc('c'))
        args = [*self.hosts, '--host', 'c=' + self.ipc('c'), '--device', 'a/host:1', '--device', 'b/host:1', '--spare',
                'c/host', '--parallel', '4', '--trace', self.path, '--out', os.path.join(self.dir.name, 'out.jsonl')]
        p = subprocess.Popen(self.command(*args, n=300), stderr=subprocess.PIPE, text=True)
        while p.poll() is None and not (os.path.exists(args[-1]) and os.path.getsize(args[-1])):
            time.sleep(0.01)
        self.workers[1].kill()
        _, text = p.communicate(timeout=120)
        self.assertEqual(p.returncode, 0, text)
        self.events()
        if 'takes the layers of' in text:  # else all was done already
            self.assertIn('c receive', self.tracks.values())
            self.assertGreater(self.clocks['c']['batches'], 0)


class Check(Case):
    """`tandem check` of devices on other machines; each has a cache of its own, as machines have."""

    def worker(self, name, *devices, sabotage=None):
        env = {**os.environ, 'TANDEM_CACHE_DIR': os.path.join(self.dir.name, 'cache-' + name)}
        if sabotage:
            env['TD_SABOTAGE'] = sabotage
        specs = [x for d in devices for x in ('--device', d)]
        return self.start(self.ipc(name), '--models', 'configs/tales', *specs, env=env)

    def check(self, *args, code=0):
        env = {**os.environ, 'TANDEM_CACHE_DIR': os.path.join(self.dir.name, 'cache-here')}
        r = subprocess.run([TANDEM, 'check', *args], capture_output=True, text=True, timeout=120, env=env)
        self.assertEqual(r.returncode, code, r.stdout + r.stderr)
        return r.stdout if code < 2 else r.stderr

    def report(self, *args, code=0):
        return json.loads(self.check('--json', *args, code=code))

    def run_devices(self, *args, cache='here'):
        env = {**os.environ, 'TANDEM_CACHE_DIR': os.path.join(self.dir.name, 'cache-' + cache)}
        return subprocess.run([TANDEM, 'devices', *args], capture_output=True, text=True, timeout=60, env=env,
                              check=True).stdout

    def devices(self, *args, cache='here'):
        return json.loads(self.run_devices('--json', *args, cache=cache))

    def test_a_sound_device_passes_as_here(self):
        self.worker('a', 'host:1', 'host:2')
        host = ['--host', 'a=' + self.ipc('a')]
        args = ['--quick', '--only', 'add']
        here, there = (self.report(*args, *where)['devices'] for where in (['--device', 'host:1'],
                                                                          [*host, '--device', 'a/host:1']))
        for d in here + there:
            for key in list(d):
                if key.endswith('bytes') or key in ('memory_reason', 'heaps', 'ops'):
                    del d[key]
        self.assertEqual([d.pop('host') for d in here + there], [None, 'a'])
        self.assertEqual(there, here)
        everything = self.check('--quick', *host)  # all of the host's, one beside the other
        for line in ('a/host:1: ', 'a/host:2: ', 'beside host:2', 'beside host:1', 'model qwen3next'):
            self.assertIn(line, everything)
        self.assertEqual(everything.count('nothing wrong was found'), 2)
        report = self.report('--only', 'speeds', *host)
        self.assertEqual([(h['from'], h['to']) for h in report['hops']], [('a/host:1', 'a/host:2'), ('a/host:2', 'a/host:1')])
        self.assertGreater(min(h['us'] for h in report['hops']), 0)
        self.assertGreater(report['devices'][0]['speeds']['bandwidth_bytes_per_s'], 0)

    def test_a_fault_is_named_and_the_device_refused(self):
        bad = self.worker('bad', 'host:1', sabotage='rope:bit')
        self.worker('good', 'host:1')
        hosts = [x for name in ('bad', 'good') for x in ('--host', '%s=%s' % (name, self.ipc(name)))]
        devices = ['--device', 'bad/host:1', '--device', 'good/host:1', '--device', 'host:1']
        report = self.report('--quick', '--only', 'rope', *hosts, *devices, code=1)
        self.assertEqual([(d['host'], d['trusted'], d['failed']) for d in report['devices']],
                         [('bad', False, 'rope'), ('good', True, None), (None, True, None)])
        verdicts = [name for name in ('here', 'good', 'bad') for path, _, files in os.walk(self.dir.name + '/cache-' + name)
                    for file in files if file.startswith('verdict')]
        self.assertEqual(verdicts, ['bad'])  # it is the machine's
        self.assertIn('bad/host:1: ', self.check('--quick', '--only', 'rope', *hosts, '--device', 'bad/host:1', code=1))
        for again in (False, True):  # also after it was started anew, sound now but not checked
            if again:
                bad.terminate()
                bad.wait()
                self.worker('bad', 'host:1')
            listed = {d['host']: d['failed_check'] for d in self.devices(*hosts)}
            self.assertIsNone(listed['good'])
            self.assertRegex(listed['bad'], '^rope: ')
            for args in (['--device', 'bad/host:1'], ['--device', 'host:1', '--draft', DRAFT, '--draft-device', 'bad/host']):
                text = self.generate(*hosts, *args, n=4, code=69)
                for needle in ('bad/host:1 (', 'has failed `tandem check` there: rope: ', '--trust'):
                    self.assertIn(needle, text)
        # The worker has sound arithmetic by now.
        self.assertEqual(self.generate(*hosts, '--device', 'bad/host:1', '--trust', n=4),
                         self.generate('--device', 'host:1', n=4))
        self.report('--quick', '--only', 'rope', *hosts, '--device', 'bad/host:1')  # one op clears nothing
        self.assertIn('rope', self.generate(*hosts, '--device', 'bad/host:1', n=4, code=69))
        there = self.run_devices(*hosts)
        self.assertEqual(there.count('has failed `tandem check`: rope: '), 1, there)
        self.assertRegex(there, r'(?s)^bad/host:1: .*has failed `tandem check`: rope: .*\ngood/host:1: ')
        # The machine itself says the same, word by word.
        here = self.run_devices(cache='bad')
        self.assertEqual([line for line in there.splitlines() if 'has failed' in line],
                         [line for line in here.splitlines() if 'has failed' in line])
        self.assertEqual([d['failed_check'] for d in self.devices(cache='bad') if d['device'] == 'host'],
                         [d['failed_check'] for d in self.devices(*hosts) if d['host'] == 'bad'])
        self.assertNotIn('has failed', self.run_devices())

    def test_a_worker_that_is_held_checks_nothing(self):
        self.worker('a', 'host:1')
        host = ['--host', 'a=' + self.ipc('a')]
        p = subprocess.Popen([TANDEM, 'generate', '--target', TARGET, *host, '--device', 'a/host:1', '--in', '-', '-n', '4'],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        p.stdin.write(json.dumps({'prompt': 'Once'}) + '\n')
        p.stdin.flush()
        p.stdout.readline()  # it is under way, and goes on until its input ends
        self.assertIn('it was not free', self.check('--quick', *host, '--device', 'a/host:1', code=69))
        _, text = p.communicate(timeout=60)
        self.assertEqual(p.returncode, 0, text)
        self.assertIn('ok', self.check('--quick', '--only', 'add', *host, '--device', 'a/host'))

    def test_what_makes_no_sense_is_said(self):
        self.worker('a', 'host:1')
        host = ['--host', 'a=' + self.ipc('a')]
        for args, said in ((['--device', 'b/host:1'], 'NAME of a --host'), ([*host, '--device', 'a/host:1@0-3'], 'without layers'),
                           ([*host, '--device', 'a/vulkan:9'], 'that host has: host:1'),
                           ([*host, '--device', 'a/host', '--only', 'nothing'], 'allowed: '),
                           (['--host', 'a'], 'NAME=ENDPOINT')):
            self.assertIn(said, self.check('--quick', *args, code=2))
        self.assertIn('no answer', self.check('--quick', '--host', 'a=' + self.ipc('none'), code=69))


class Plan(Case):
    """`tandem plan` over machines: what it says is what the workers and the links say."""

    def plan(self, *args, code=0):
        env = {**os.environ, 'TANDEM_CACHE_DIR': os.path.join(self.dir.name, 'cache-here')}
        r = subprocess.run([TANDEM, 'plan', '--target', TARGET, *args], capture_output=True, text=True, timeout=120, env=env)
        self.assertEqual(r.returncode, code, r.stdout + r.stderr)
        return r.stderr if code else r.stdout

    def worker(self, name, *args, **more):
        env = {**os.environ, 'TANDEM_CACHE_DIR': os.path.join(self.dir.name, 'cache-' + name), **more}
        self.start(self.ipc(name), *args, '--device', 'host:1', env=env)
        return ['--host', '%s=%s' % (name, self.ipc(name))]

    def test_layers_and_links_are_measured_there(self):
        hosts = self.worker('a', '--models', 'configs/tales') + self.worker('b')  # b is sent what it measures
        devices = ['--device', 'host:1', '--device', 'a/host:1', '--device', 'b/host']
        found = json.loads(self.plan('--json', *hosts, *devices, '--draft', DRAFT, '--draft-device', 'b/host:1',
                                     '--draft-device', 'host:1'))
        self.assertTrue(found['measured'])
        self.assertEqual([link['host'] for link in found['links']], ['a', 'b'])
        for link in found['links']:
            self.assertGreater(min(v for k, v in link.items() if k != 'host'), 0)
        self.assertEqual([p['device'] for p in found['placement']], ['host:1', 'a/host:1', 'b/host'])
        layers = [layer for p in found['placement'] for layer in range(p['first_layer'], p['last_layer'] + 1)]
        self.assertEqual(layers, list(range(10)))
        for p in found['placement']:
            self.assertTrue(0 < p['bytes'] < p['budget_bytes'], p)
        self.assertEqual({a['draft_device'] for a in found['alternatives']}, {'b/host:1', 'host:1'})
        text = self.plan(*hosts, *devices, '--no-measure')  # of what is on the workers' disks
        for needle in ('link to a: round trip ', ' MB/s back', 'b/host ', 'Predicted for stream', 'a/host:1@'):
            self.assertIn(needle, text)
        for name, n in (('a', 1), ('b', 2)):  # of the target, and of the draft
            costs = [f for _, _, files in os.walk(self.dir.name + '/cache-' + name) for f in files if f.startswith('costs')]
            self.assertEqual(len(costs), n, (name, costs))
        # The worker is free again, and what it was sent is of use.
        self.generate(*hosts, '--device', 'a/host:1', '--device', 'b/host:1', n=4)

    def run_placed(self, *args):
        """Text, layers of each host, tokens/s predicted, and the table of a run with `slow` and `quick`."""
        stats, out = (os.path.join(self.dir.name, name) for name in ('stats.json', 'out.jsonl'))
        if os.path.exists(out):
            os.remove(out)
        master, slave = pty.openpty()
        r = subprocess.Popen(self.command('--device', 'slow/host:1', '--device', 'quick/host:1', '--stats', stats, '--out', out, *args,
                                          n=8), stderr=slave, env={**os.environ, 'TANDEM_CACHE_DIR': self.dir.name})
        os.close(slave)
        table = b''
        with contextlib.suppress(OSError):  # the end of a terminal
            while piece := os.read(master, 4096):
                table += piece
        os.close(master)
        self.assertEqual(r.wait(300), 0, table)
        with open(out) as f:
            lines = [json.loads(line) for line in f]
        with open(stats) as f:
            s = json.load(f)
        layers = {stage['device'].split('/')[0]: stage['last_layer'] - stage['first_layer'] + 1 for stage in s['stages']}
        self.assertEqual({line['placement'] for line in lines}, {'slow/host:1@0-%d + quick/host:1@%d-9' % (layers['slow'] - 1,
                                                                                                       layers['slow'])})
        return {line['id']: line['tokens'] for line in lines}, layers, s['totals']['predicted_tokens_per_second'], table.decode()

    def test_generate_places_layers_by_times_measured_there(self):
        with open('/proc/cpuinfo') as f:
            if ' avx2 ' not in f.read():
                self.skipTest('all CPUs here are as slow as the slow one shall be')
        models = ('--models', 'configs/tales')
        hosts = self.worker('slow', *models, TD_HOST_ISA='generic') + self.worker('quick', *models)

        def costs():
            return {f: os.stat(os.path.join(at, f)).st_mtime_ns for at, _, files in os.walk(self.dir.name) for f in files
                    if f.startswith('costs')}
        wanted, by_bytes, predicted, table = self.run_placed('--no-measure', *hosts)
        self.assertEqual(predicted, 0)
        self.assertNotIn('link to', table)
        self.assertGreaterEqual(by_bytes['slow'], 4)  # of ten: about even
        self.assertEqual(costs(), {})
        found, layers, predicted, table = self.run_placed(*hosts)
        self.assertEqual(found, wanted)
        self.assertLess(layers['slow'], by_bytes['slow'])
        self.assertGreater(predicted, 0)
        for needle in ('link to slow: round trip ', 'link to quick: round trip ', 'layers placed by times measured'):
            self.assertIn(needle, table)
        kept = costs()
        self.assertEqual(len(kept), 2)
        self.assertEqual(self.run_placed(*hosts)[0], wanted)
        self.assertEqual(costs(), kept)  # nothing was measured again

    def test_the_way_from_worker_to_worker_is_theirs(self):
        near, far, delay = free_port(), free_port(), 0.02  # of nobody's bytes but a's to b
        models = ('--models', 'configs/tales')
        hosts = [*self.worker('a', *models), '--host', 'b=tcp://127.0.0.1:%d' % far]
        a = self.workers[0].pid
        self.start('tcp://127.0.0.1:%d' % near, *models, '--device', 'host:1',
                   env={**os.environ, 'TANDEM_CACHE_DIR': os.path.join(self.dir.name, 'cache-b')})
        relay = Relay(far, near, delay=lambda port: delay if is_port_of(port, a) else 0)
        self.addCleanup(relay.close)
        args = [*hosts, '--device', 'a/host:1', '--device', 'b/host:1']
        found = json.loads(self.plan('--json', *args))
        [hop] = found['hops']
        self.assertEqual((hop['from'], hop['to']), ('a', 'b'))
        self.assertGreaterEqual(hop['idle_us'], 2e6 * delay)
        self.assertGreater(hop['bytes_per_s'], 0)
        for link in found['links']:
            self.assertLess(link['idle_us'], hop['idle_us'])
        [split] = [row for row in found['alternatives'] if len(row['devices']) == 2][:1]
        self.assertLess(split['decode_per_second'], 1 / delay)  # each token goes there
        self.assertIn('link from a to b: round trip ', self.plan(*args))
        self.assertEqual(json.loads(self.plan('--json', *hosts, '--device', 'a/host:1', '--device', 'host:1',
                                              '--device', 'b/host:1'))['hops'], [])  # nothing goes that way
        delay = None
        said = 'host a (%s) cannot reach host b at tcp://127.0.0.1:%d: no answer within 3 s' % (self.ipc('a'), far)
        self.assertIn(said, self.plan(*args, code=69))
        self.assertIn(said, self.generate(*args, code=69))
        back = [*hosts, '--device', 'b/host:1', '--device', 'a/host:1']  # a path, for one that is not at one
        self.assertIn('host b (tcp://127.0.0.1:%d) cannot reach host a at ipc://' % far, self.plan(*back, code=69))
        delay = 0
        self.generate(*args, n=4)

    def test_what_makes_no_sense_is_said(self):
        host = self.worker('a', '--models', 'configs/tales')
        for args, said in ((['--device', 'a/host:1'], 'another machine'), (host, 'give --device NAME/SPEC too'),
                           ([*host, '--device', 'b/host:1'], 'no host "b" is known'),
                           ([*host, '--device', 'a/vulkan:9'], 'that host has: host:1'),
                           ([*host, '--device', 'a/host', '--place', 'experts=host'], '--place')):
            self.assertIn(said, self.plan('--ctx', '256', *args, code=2))
        text = self.plan('--host', 'a=' + self.ipc('none'), '--device', 'a/host:1', code=69)
        self.assertIn('no answer', text)


class Draft(Case):
    """A draft model under the roof of a stage worker."""

    def setUp(self):
        super().setUp()
        self.ends = {name: self.ipc(name) for name in 'ab'}
        self.hosts = [x for name, end in self.ends.items() for x in ('--host', '%s=%s' % (name, end))]
        self.stats = os.path.join(self.dir.name, 'stats.json')

    def draft(self, spec, *args):
        return [*self.hosts, '--draft', DRAFT, '--draft-device', spec, '--stats', self.stats, *args]

    def read_stats(self):
        with open(self.stats) as f:
            return json.load(f)

    def test_it_leaves_the_text_as_it_is(self):
        for end in self.ends.values():
            self.start(end)
        wanted = self.generate('--device', 'host:1', '--device', 'host:1', '--parallel', '4')
        for devices in (['host:1', 'host:1'], ['a/host:1', 'a/host:1'], ['a/host:1', 'b/host:1'],
                        ['host:1', 'b/host:1']):
            for way in (['--parallel', '4', '--draft-fixed', '4'], ['--draft-fixed', '3'],
                        ['--parallel', '3', '--draft-fixed', '2', '--draft-ngram']):
                split = [x for spec in devices for x in ('--device', spec)]
                self.assertEqual(self.generate(*split, *self.draft('b/host', *way)), wanted, (devices, way))
                s = self.read_stats()
                self.assertEqual(s['draft']['device'], 'b/host:1')
                self.assertGreater(s['totals']['drafted'], 100, (devices, way))
                self.assertEqual(s['totals']['draft_losses'], 0)

    def test_it_is_sent_once_where_it_is_not(self):
        env = {**os.environ, 'TANDEM_CACHE_DIR': os.path.join(self.dir.name, 'cache')}
        for i in range(2):
            worker = self.start(self.ends['a'], '--device', 'host:1', env=env)
            self.generate('--device', 'host:1', *self.draft('a/host:1', '--draft-fixed', '4'), n=8)
            self.assertGreater(self.read_stats()['totals']['drafted'], 10)
            worker.kill()
            sent = re.findall('are needed, ([0-9]+) were sent', worker.stderr.read())
            self.assertEqual(len(sent), 1)
            self.assertEqual(int(sent[0]) > 1000000, i == 0, sent)

    def lose(self, hit, losses=(1,)):
        """A run whose draft is lost when it is under way: its statistics."""
        worker = self.start(self.ends['a'])
        wanted = self.generate('--device', 'host:1', '--device', 'host:1', n=400)
        out = os.path.join(self.dir.name, 'out.jsonl')
        p = subprocess.Popen(self.command('--device', 'host:1', '--device', 'host:1', '--out', out,
                                          *self.draft('a/host:1', '--draft-fixed', '4'), n=400),
                             stderr=subprocess.PIPE, text=True)
        while p.poll() is None and not (os.path.exists(out) and os.path.getsize(out)):
            time.sleep(0.01)
        p.send_signal(signal.SIGSTOP)  # so that a fast machine is not done before
        hit(worker)
        p.send_signal(signal.SIGCONT)
        _, text = p.communicate(timeout=180)
        self.assertEqual(p.returncode, 0, text)
        with open(out) as f:
            self.assertEqual({line['id']: line['tokens'] for line in map(json.loads, f)}, wanted)
        s = self.read_stats()
        self.assertIn(s['totals']['draft_losses'], losses, text)
        return s

    def test_a_lost_one_is_done_without(self):
        self.assertEqual(self.lose(lambda worker: worker.kill())['totals']['draft_joins'], 1)

    def test_one_that_is_started_again_comes_back(self):
        def hit(worker):
            worker.kill()
            worker.wait()
            self.start(self.ends['a'])
        self.assertEqual(self.lose(hit)['totals']['draft_joins'], 2)

    def test_one_that_hangs_holds_nothing_up(self):
        self.lose(lambda worker: worker.send_signal(signal.SIGSTOP), losses=(0, 1))

    def test_its_device_may_have_layers_and_be_lost_with_them(self):
        worker = self.start(self.ends['a'])
        wanted = self.generate('--device', 'host:1', '--device', 'host:1', n=400)
        out = os.path.join(self.dir.name, 'out.jsonl')
        p = subprocess.Popen(self.command('--device', 'host:1', '--device', 'a/host:1', '--out', out,
                                          *self.draft('a/host:1', '--draft-fixed', '4'), n=400),
                             stderr=subprocess.PIPE, text=True)
        while p.poll() is None and not (os.path.exists(out) and os.path.getsize(out)):
            time.sleep(0.01)
        worker.kill()
        worker.wait()
        self.start(self.ends['a'])
        _, text = p.communicate(timeout=180)
        self.assertEqual(p.returncode, 0, text)
        with open(out) as f:
            self.assertEqual({line['id']: line['tokens'] for line in map(json.loads, f)}, wanted)
        s = self.read_stats()
        self.assertEqual(s['totals']['target_losses'], 1)
        self.assertLessEqual(1, s['totals']['draft_losses'], text)

    def test_what_is_not_there_is_said(self):
        target = ['--device', 'host:1']
        self.assertIn('no host "c" is known', self.generate(*target, *self.draft('c/host:1'), code=2))
        self.assertIn('host a (%s): no answer (is `tandem stage` there?) within 12 s' % self.ends['a'],
                      self.generate(*target, *self.draft('a/host:1'), code=69))
        self.start(self.ends['a'], '--model', TARGET, '--device', 'host:1', '--cache-size', '0')
        self.start(self.ends['b'])
        for spec, said, code in (('b/vulkan:9', 'that host has: host:1', 2), ('b/host:1@0-2', 'is not split', 2),
                                 ('a/host:1', 'no model file there is Tales draft 0.9M', 69)):
            self.assertIn(said, self.generate(*target, *self.draft(spec), code=code))
        other = ['--draft', 'tests/data/golden/models/qwen3/model.gguf']
        self.assertIn('has another vocabulary than the target',
                      self.generate(*target, *self.draft('b/host', *other), code=2))

    def test_a_worker_that_drafts_for_another_says_so(self):
        self.start(self.ends['a'])
        many = os.path.join(self.dir.name, 'many.jsonl')  # it goes on for longer than the other one waits
        with open(self.prompts) as f, open(many, 'w') as out:
            lines = [json.loads(line) for line in f]
            out.writelines(json.dumps({**line, 'id': '%s-%u' % (line['id'], i)}) + '\n'
                           for i in range(300) for line in lines)
        command = [many if arg == self.prompts else arg
                   for arg in self.command('--device', 'host:1', *self.draft('a/host:1'), n=1000)]
        p = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        p.stdout.readline()
        p.send_signal(signal.SIGSTOP)  # for less than the 5 s after which it counts as lost
        wait = self.draft('a/host:1')
        threading.Timer(1, p.send_signal, [signal.SIGCONT]).start()
        reading = threading.Thread(target=p.stdout.read)
        reading.start()
        text = self.generate('--device', 'host:1', *wait, n=4, code=69)
        self.assertIsNone(p.poll())
        p.kill()
        reading.join()
        p.communicate()
        self.assertIn('another coordinator is being served; it was not free within 12 s', text)


if __name__ == '__main__':
    unittest.main()
