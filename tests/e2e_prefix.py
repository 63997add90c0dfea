#!/usr/bin/env python3
"""Prompts kept on the disk: the tokens are the same without the cache, with an empty one, with a full
one, a damaged one and one that a killed run left; and a full one is read instead of computed.

usage: e2e_prefix.py TANDEM   (run from the source root; standard library only)"""
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

TANDEM = os.path.abspath(sys.argv.pop(1)) if len(sys.argv) > 1 else 'build/tandem'
GOLDEN = 'tests/data/golden/models/%s/model.gguf'
TARGET = 'configs/tales/tales-target.q8_0.gguf'
DRAFT = 'configs/tales/tales-draft.q8_0.gguf'
CHUNK = 64  # rows of a chunk on a host
TEXT = 'Once upon a time there was a king who had three sons and a garden with a tree of golden apples. '
HOST = ['--device', 'host:1', '--no-measure']


class Case(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.TemporaryDirectory()
        self.addCleanup(self.dir.cleanup)
        self.kept = os.path.join(self.dir.name, 'kept')
        self.stats = os.path.join(self.dir.name, 'stats.json')
        self.prompts = os.path.join(self.dir.name, 'in.jsonl')

    def write_prompts(self, *ends, text=TEXT * 2, alike=True):
        """alike: all begin with the text; else no two begin alike."""
        with open(self.prompts, 'w') as f:
            for i, end in enumerate(ends):
                prompt = text + end if alike else end + text
                f.write(json.dumps({'id': str(i), 'prompt': prompt, 'seed': i}) + '\n')

    def command(self, model, args):
        return [TANDEM, 'generate', '--target', model, '--in', self.prompts, '-n', '6', '--quiet', '--ignore-eos',
                '--stats', self.stats, *args]

    def run_once(self, model, *args, keep=True):
        """Tokens by id, the figures of the cache, positions computed, and the log."""
        options = ['--prefix-cache', self.kept + ':1G'] if keep else []
        r = subprocess.run(self.command(model, [*args, *options]), capture_output=True, text=True, timeout=600)
        self.assertEqual(r.returncode, 0, r.stderr)
        with open(self.stats) as f:
            stats = json.load(f)
        tokens = {line['id']: line['tokens'] for line in map(json.loads, r.stdout.splitlines())}
        return tokens, stats.get('prefix_cache'), stats['stages'][0]['prefill_rows'], r.stderr

    def files(self):
        return sorted(os.path.join(self.kept, name) for name in os.listdir(self.kept))


class Prefix(Case):
    def check(self, model, *args):
        """Off, cold, warm and damaged. Only full chunks are kept, and the last row of a prompt is run."""
        self.write_prompts('Then the first son', 'Then the second', text=TEXT * (8 if model == TARGET else 2))
        off, none, n_off, _ = self.run_once(model, *args, keep=False)
        self.assertIsNone(none)
        cold, figures, n_cold, _ = self.run_once(model, *args)
        self.assertEqual(cold, off)
        n_kept = figures['stored_positions']
        self.assertGreaterEqual(n_kept, 2 * CHUNK)
        self.assertEqual(n_cold + figures['restored_positions'], n_off)
        for path in self.files():
            self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)
        warm, figures, n_warm, log = self.run_once(model, *args)
        self.assertEqual(warm, off)
        self.assertEqual(figures['stored_positions'], 0)
        self.assertGreaterEqual(figures['restored_positions'], n_kept)
        self.assertEqual(n_warm + figures['restored_positions'], n_off)
        self.assertEqual(log, '')
        files = self.files()
        with open(files[0], 'r+b') as f:  # in what is kept, near its end
            f.seek(-5, os.SEEK_END)
            byte = f.read(1)
            f.seek(-5, os.SEEK_END)
            f.write(bytes([byte[0] ^ 0x10]))
        os.truncate(files[1], os.path.getsize(files[1]) - 1)
        bad = subprocess.run([TANDEM, 'prefix', 'verify', self.kept], capture_output=True, text=True)
        self.assertEqual(bad.returncode, 65)
        self.assertEqual({line.split(':')[0] for line in bad.stdout.splitlines()}, set(files[:2]))
        damaged, figures, _, log = self.run_once(model, *args)
        self.assertEqual(damaged, off)
        self.assertEqual(figures['damaged_files'], log.count('is left out'))
        self.assertGreaterEqual(figures['damaged_files'], 2)  # or more: the second line may be there before the writer
        self.assertGreaterEqual(figures['stored_positions'], 2 * CHUNK)
        good = subprocess.run([TANDEM, 'prefix', 'verify', self.kept], capture_output=True, text=True)
        self.assertEqual((good.returncode, good.stdout), (0, ''))

    def test_a_dense_model_and_a_draft(self):
        self.check(TARGET, *HOST, '--kv-k', 'q8_0', '--kv-v', 'q4_0')
        plain, figures, _, _ = self.run_once(TARGET, *HOST, '--kv-k', 'q8_0', '--kv-v', 'q4_0')
        drafted, again, _, _ = self.run_once(TARGET, *HOST, '--kv-k', 'q8_0', '--kv-v', 'q4_0', '--draft', DRAFT,
                                             '--draft-device', 'host:1', '--draft-fixed', '3')
        self.assertEqual(drafted, plain)
        self.assertEqual(again['restored_positions'], figures['restored_positions'])
        shutil.rmtree(self.kept)
        self.run_once(TARGET, *HOST, '--kv-k', 'q8_0', '--kv-v', 'q4_0')
        # Another cache, another context's end, other chunks: nothing of it is taken for the same.
        other, figures, _, _ = self.run_once(TARGET, *HOST)
        self.assertEqual(figures['restored_positions'], 0)
        self.assertEqual(other, self.run_once(TARGET, *HOST, keep=False)[0])
        listed = subprocess.run([TANDEM, 'prefix', 'list', self.kept, '--json'], capture_output=True, text=True)
        groups = json.loads(listed.stdout)
        self.assertEqual(len(groups), 2)
        self.assertEqual(sum(g['chunks'] for g in groups), len(self.files()))
        dropped = subprocess.run([TANDEM, 'prefix', 'drop', self.kept, '--model', groups[0]['model']],
                                 capture_output=True, text=True)
        self.assertEqual((dropped.returncode, self.files()), (0, []))

    def test_layers_of_other_types(self):
        args = [TARGET, *HOST, '--kv-k', 'q8_0', '--kv-v', 'q4_0']
        self.check(*args, '--kv-keep', 'first,last=f16')
        _, figures, _, _ = self.run_once(*args, '--kv-keep', 'first=f16')
        self.assertEqual(figures['restored_positions'], 0)  # another cache

    def run_drafted(self, model, draft, *args, keep=True):
        """As run_once, and the draft's figures."""
        tokens, figures, rows, log = self.run_once(model, *HOST, '--draft', draft, '--draft-fixed', '3',
                                                   '--draft-device', 'host:1', *args, keep=keep)
        with open(self.stats) as f:
            return tokens, figures, rows, log, json.load(f)['draft']

    def check_draft(self, model, draft, text):
        """Off, cold and warm: the draft's chunks are kept beside the target's, and found again."""
        self.write_prompts('Then', text=text)
        plain = self.run_once(model, *HOST, keep=False)[0]
        off, _, n_rows, _, d = self.run_drafted(model, draft, keep=False)
        self.assertNotIn('restored_positions', d)
        self.assertEqual(off, plain)
        n_draft = d['evaluated_rows']
        cold, figures, _, _, d = self.run_drafted(model, draft)
        self.assertEqual((cold, figures['restored_positions'], d['restored_positions']), (plain, 0, 0))
        warm, figures, n_warm, log, d = self.run_drafted(model, draft)
        self.assertEqual((warm, log), (plain, ''))
        self.assertGreaterEqual(figures['restored_positions'], 2 * CHUNK)
        self.assertEqual(n_warm + figures['restored_positions'], n_rows)
        self.assertEqual(d['restored_positions'], figures['restored_positions'])
        self.assertLess(d['evaluated_rows'], n_draft - CHUNK)
        # Another draft finds nothing of this one, nor of the target.
        _, _, _, _, d = self.run_drafted(model, draft, '--draft-kv-k', 'q8_0')
        self.assertEqual(d['restored_positions'], 0)

    def test_a_draft(self):
        self.check_draft(TARGET, DRAFT, TEXT * 8)

    def test_drafts_that_forget(self):
        for name in ('gemma3', 'qwen35moe'):
            with self.subTest(name):
                self.kept = os.path.join(self.dir.name, name)
                self.check_draft(GOLDEN % name, GOLDEN % name, TEXT * 2)

    def test_a_draft_of_another_process(self):
        self.write_prompts('Then', text=TEXT * 8)
        endpoint = 'ipc://' + os.path.join(self.dir.name, 'draft')
        kept = os.path.join(self.dir.name, 'kept by the draft')
        plain = self.run_once(TARGET, *HOST, keep=False)[0]
        for n_restored in (0, 1):
            worker = subprocess.Popen([TANDEM, 'draft', '--model', DRAFT, '--bind', endpoint, '--prefix-cache', kept],
                                      stderr=subprocess.PIPE, text=True)
            tokens = self.run_once(TARGET, *HOST, '--draft-endpoint', endpoint, '--draft-fixed', '3', keep=False)[0]
            worker.send_signal(signal.SIGTERM)
            log = worker.communicate(timeout=60)[1]
            self.assertEqual(tokens, plain)
            told = [line for line in log.splitlines() if 'positions of prompts' in line]
            self.assertEqual(len(told), 1, log)
            self.assertEqual('draft worker: 0 positions of prompts read' not in told[0], bool(n_restored), log)
            self.assertGreaterEqual(len(os.listdir(kept)), 2)

    def test_windows(self):
        self.check(GOLDEN % 'gemma3', *HOST)

    def test_recurrent_layers_and_experts(self):
        self.check(GOLDEN % 'qwen35moe', *HOST)

    def test_chunked_layers(self):
        self.check(GOLDEN % 'llama4', *HOST)

    def test_latent_attention_in_two_stages(self):
        self.check(GOLDEN % 'deepseek2', '--device', 'host:1@0-0', '--device', 'host:1', '--no-measure')

    def test_a_gpu(self):
        r = subprocess.run([TANDEM, 'devices', '--json'], capture_output=True, text=True)
        if '"vulkan:0"' not in r.stdout:
            self.skipTest('no Vulkan device')
        # A chunk has 256 rows there.
        self.write_prompts('Then', text=TEXT * 4)
        args = [GOLDEN % 'qwen35moe', '--device', 'vulkan:0', '--no-measure', '--ctx', '500', '--kv-k', 'q8_0']
        off = self.run_once(*args, keep=False)[0]
        cold, figures, _, _ = self.run_once(*args)
        self.assertEqual((cold, figures['stored_positions']), (off, 256))
        warm, figures, n_rows, _ = self.run_once(*args)
        self.assertEqual((warm, figures['restored_positions']), (off, 256))
        self.assertLess(n_rows, 256, 'rows computed')
        host, figures, _, _ = self.run_once(args[0], *HOST, '--ctx', '500', '--kv-k', 'q8_0')
        self.assertEqual(figures['restored_positions'], 0)

    def test_a_killed_run_leaves_what_it_read(self):
        self.write_prompts(*('%d. ' % i for i in range(40)), text=TEXT * 10, alike=False)
        args = [*HOST, '--prefix-cache', self.kept, '--parallel', '4']
        p = subprocess.Popen(self.command(TARGET, args), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while p.poll() is None and (not os.path.isdir(self.kept) or len(os.listdir(self.kept)) < 6):
            time.sleep(0.001)
        p.send_signal(signal.SIGKILL)
        p.wait()
        whole = [path for path in self.files() if path.endswith('.prefix')]
        self.assertGreaterEqual(len(whole), 5)
        after, figures, _, log = self.run_once(TARGET, *HOST, '--parallel', '4')
        self.assertEqual((figures['restored_positions'], log), (len(whole) * CHUNK, ''))
        self.assertEqual(after, self.run_once(TARGET, *HOST, '--parallel', '4', keep=False)[0])

    def kept_positions(self):
        """Of the target and of the draft."""
        r = subprocess.run([TANDEM, 'prefix', 'list', self.kept, '--json'], capture_output=True, text=True)
        groups = json.loads(r.stdout or '[]')
        return [sum(g['positions'] for g in groups if g['cache'].startswith('draft, ') == is_draft)
                for is_draft in (False, True)]

    def test_a_killed_batch_goes_on_without_reading_its_prompts_again(self):
        self.write_prompts(*('%d. ' % i for i in range(8)), text=TEXT * 10, alike=False)
        args = [*HOST, '--parallel', '4', '--draft', DRAFT, '--draft-device', 'host:1', '--draft-fixed', '3']
        out = os.path.join(self.dir.name, 'out.jsonl')
        whole = self.run_once(TARGET, *args, keep=False)
        batch = self.command(TARGET, [*args, '--prefix-cache', self.kept, '--out', out])
        p = subprocess.Popen(batch, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while p.poll() is None and (not os.path.isdir(self.kept) or len(os.listdir(self.kept)) < 8):
            time.sleep(0.001)
        p.send_signal(signal.SIGKILL)
        p.wait()
        with open(out) as f:
            self.assertEqual(f.read().count('tokens'), 0, 'killed before any line was done')
        target, draft = self.kept_positions()
        self.assertGreaterEqual(target, 2 * CHUNK)
        r = subprocess.run(batch, capture_output=True, text=True, timeout=600)
        self.assertEqual(r.returncode, 0, r.stderr)
        with open(self.stats) as f:
            stats = json.load(f)
        with open(out) as f:
            self.assertEqual({line['id']: line['tokens'] for line in map(json.loads, f)}, whole[0])
        self.assertEqual(stats['prefix_cache']['restored_positions'], target)
        self.assertEqual(stats['stages'][0]['prefill_rows'], whole[2] - target)
        self.assertEqual(stats['draft']['restored_positions'], draft)

    def test_the_folder_stays_within_its_bound(self):
        self.write_prompts('a', 'b', text=TEXT * 12)
        _, figures, _, _ = self.run_once(TARGET, *HOST)
        size = os.path.getsize(self.files()[0])
        shutil.rmtree(self.kept)
        r = subprocess.run(self.command(TARGET, [*HOST, '--prefix-cache', '%s:%dK' % (self.kept, 3 * size // 1000)]),
                           capture_output=True, text=True)
        self.assertEqual(r.returncode, 0, r.stderr)
        self.assertLessEqual(len(self.files()), 2)
        self.assertGreater(figures['stored_positions'], 2 * CHUNK)

    def test_what_is_no_file_is_named(self):
        self.write_prompts('a', text=TEXT * 12)
        want = self.run_once(TARGET, *HOST)[0]
        files = self.files()
        self.assertGreater(len(files), 2)
        for path, make in zip(files, (os.mkdir, lambda path: os.symlink('/dev/zero', path), os.mkfifo)):
            os.remove(path)
            make(path)
        bad = subprocess.run([TANDEM, 'prefix', 'verify', self.kept], capture_output=True, text=True, timeout=60)
        self.assertEqual(bad.returncode, 65)
        self.assertEqual(sorted(line.split(':')[0] for line in bad.stdout.splitlines()), files[:3])
        r = subprocess.run([TANDEM, 'prefix', 'list', self.kept], capture_output=True, text=True, timeout=60)
        self.assertEqual(r.returncode, 65)
        self.assertEqual(self.run_once(TARGET, *HOST)[0], want)
        r = subprocess.run([TANDEM, 'prefix', 'drop', self.kept], capture_output=True, text=True, timeout=60)
        self.assertEqual(r.returncode, 74)  # a folder is not removed, all else is
        self.assertIn(files[0], r.stderr)
        self.assertEqual(self.files(), files[:1])

    def test_what_cannot_be(self):
        self.write_prompts('a')
        for size in '5Q', '', 'x', '-1', ' 1G', '1.5G', '0K', '5', '9' * 30 + 'G':
            r = subprocess.run(self.command(TARGET, [*HOST, '--prefix-cache', self.kept + ':' + size]),
                               capture_output=True, text=True)
            self.assertEqual(r.returncode, 2, r.stderr)
            self.assertIn('size', r.stderr)
            self.assertEqual(os.listdir(self.dir.name), ['in.jsonl'])
        for value, word in ((self.kept + ':a/b', 'No such file'), (':5G', 'path'), (self.prompts, 'Not a directory'),
                            (self.kept + '/a/b', 'No such file')):
            r = subprocess.run(self.command(TARGET, [*HOST, '--prefix-cache', value]), capture_output=True, text=True)
            self.assertIn(r.returncode, (2, 74), r.stderr)
            self.assertIn(word, r.stderr)


class Hosts(Case):
    """Stages on other machines, each with a folder of its own."""

    def setUp(self):
        super().setUp()
        self.workers, self.started = {}, []
        self.addCleanup(self.stop)

    def stop(self):
        for worker in self.started:
            worker.kill()
            worker.wait()
            worker.stderr.close()
        self.workers, self.started = {}, []

    def start(self, name, *args, model=TARGET, keep=True):
        """Its log is read by nobody, and short."""
        options = ['--prefix-cache', os.path.join(self.dir.name, 'kept by ' + name)] if keep else []
        self.workers[name] = subprocess.Popen(
            [TANDEM, 'stage', '--bind', self.end(name), '--model', model, '--device', 'host:1', *options, *args],
            stderr=subprocess.PIPE, text=True)
        self.started.append(self.workers[name])
        for line in self.workers[name].stderr:
            if ': at ' in line:
                return
        self.fail('the worker did not start')

    def end(self, name):
        return 'ipc://%s/%s.sock' % (self.dir.name, name)

    def args(self, split, *args):
        return [*(x for name in self.workers for x in ('--host', '%s=%s' % (name, self.end(name)))),
                *(x for spec in split for x in ('--device', spec)), '--no-measure', *args]

    def files(self, name=None):
        kept = os.path.join(self.dir.name, 'kept by ' + name) if name else self.kept
        return sorted(os.path.join(kept, f) for f in os.listdir(kept)) if os.path.isdir(kept) else []

    def forget(self):
        for kept in [self.kept, *(os.path.join(self.dir.name, 'kept by ' + name) for name in self.workers)]:
            for f in os.listdir(kept) if os.path.isdir(kept) else ():
                os.unlink(os.path.join(kept, f))

    def wait_for(self, name, n):
        """Writers may still be at work when a run is over."""
        for _ in range(500):
            if len([f for f in self.files(name) if f.endswith('.prefix')]) >= n:
                return
            time.sleep(0.01)
        self.fail('%s has kept %d files; wanted: %d' % (name, len(self.files(name)), n))

    def check_split(self, model, split, *args, text):
        """Off, cold and warm, with the same text as of one machine; returns what was restored."""
        self.write_prompts('Then the first son', 'Then the second', text=text)
        wanted = self.run_once(model, *HOST, *args, keep=False)[0]
        off, _, n_off, _ = self.run_once(model, *self.args(split, *args), keep=False)
        cold, figures, n_cold, log = self.run_once(model, *self.args(split, *args))
        self.assertEqual((off if '--wire' in args else wanted, log), (cold, ''))
        self.assertEqual(n_cold + figures['restored_positions'], n_off)
        for name in {spec.split('/')[0] for spec in split if '/' in spec}:
            self.wait_for(name, 2)
        warm, figures, n_warm, log = self.run_once(model, *self.args(split, *args))
        self.assertEqual((warm, log), (cold, ''))
        self.assertEqual(n_warm + figures['restored_positions'], n_off)
        self.assertGreaterEqual(figures['restored_positions'], 2 * CHUNK)
        return figures['restored_positions']

    def test_every_split(self):
        self.start('a')
        self.start('b')
        for split in (['a/host:1'], ['a/host:1', 'b/host:1'], ['host:1', 'a/host:1'], ['a/host:1', 'host:1'],
                      ['a/host:1', 'a/host:1', 'host:1', 'b/host:1'],
                      ['host:1@0-2', 'b/host:1@3-4', 'a/host:1@5-6', 'host:1@7-9']):
            with self.subTest(split):
                self.check_split(TARGET, split, '--kv-k', 'q8_0', text=TEXT * 8)

    def test_other_layers_here_are_other_chunks(self):
        self.start('a')
        for split in (['a/host:1@0-4', 'host:1@5-9'], ['host:1@0-4', 'a/host:1@5-9']):
            with self.subTest(split):
                self.check_split(TARGET, split, text=TEXT * 8)

    def test_with_drafts_and_halves_on_the_way(self):
        self.start('a')
        self.start('b')
        split = ['host:1', 'a/host:1', 'b/host:1']
        draft = ['--draft', DRAFT, '--draft-device', 'host:1', '--draft-fixed', '3', '--parallel', '2']
        self.check_split(TARGET, split, *draft, text=TEXT * 8)
        with open(self.stats) as f:
            self.assertGreaterEqual(json.load(f)['draft']['restored_positions'], 2 * CHUNK)
        self.check_split(TARGET, split, '--wire', 'f16', text=TEXT * 8)
        _, figures, _, _ = self.run_once(TARGET, *self.args(split[::-1]))
        self.assertEqual(figures['restored_positions'], 0, 'other cuts')

    def test_a_draft_of_a_stage(self):
        self.start('a', model=DRAFT)
        self.write_prompts('Then', text=TEXT * 8)
        wanted = self.run_once(TARGET, *HOST, keep=False)[0]
        args = self.args(['host:1'], '--draft', DRAFT, '--draft-device', 'a/host:1', '--draft-fixed', '3')
        for n in range(2):
            self.assertEqual(self.run_once(TARGET, *args, keep=False)[0], wanted)
            self.wait_for('a', 2)
        r = subprocess.run([TANDEM, 'prefix', 'list', os.path.join(self.dir.name, 'kept by a'), '--json'],
                           capture_output=True, text=True)
        self.assertTrue(json.loads(r.stdout)[0]['cache'].startswith('draft, '))

    def test_every_kind_of_layer(self):
        for name in ('gemma3', 'llama4', 'qwen35moe', 'deepseek2', 'gpt-oss'):
            with self.subTest(name):
                self.stop()
                self.start('a', model=GOLDEN % name)
                self.check_split(GOLDEN % name, ['host:1@0-0', 'a/host:1'], text=TEXT * 2)
                self.forget()
                self.check_split(GOLDEN % name, ['a/host:1'], text=TEXT * 2)
                self.forget()

    def test_damage_is_said_once_and_computed(self):
        self.start('a')
        self.start('b')
        split = ['a/host:1', 'host:1', 'b/host:1']
        n_restored = self.check_split(TARGET, split, text=TEXT * 8)
        wanted = self.run_once(TARGET, *HOST, keep=False)[0]
        for path in self.files('b')[:3]:
            with open(path, 'r+b') as f:
                f.seek(-9, os.SEEK_END)
                byte = f.read(1)
                f.seek(-9, os.SEEK_END)
                f.write(bytes([byte[0] ^ 0x40]))
        got, figures, _, log = self.run_once(TARGET, *self.args(split))
        self.assertEqual(got, wanted)
        self.assertLess(figures['restored_positions'], n_restored)
        self.assertEqual(log.count('host b: a prompt kept there is damaged'), 1, log)
        for _ in range(500):  # replaced by then
            bad = subprocess.run([TANDEM, 'prefix', 'verify', os.path.join(self.dir.name, 'kept by b')],
                                 capture_output=True, text=True)
            if bad.returncode == 0:
                break
            time.sleep(0.01)
        self.assertEqual(bad.stdout, '')
        got, figures, _, log = self.run_once(TARGET, *self.args(split))
        self.assertEqual((got, figures['restored_positions'], log), (wanted, n_restored, ''))
        for path in self.files('a'):  # what one lacks, all compute
            os.unlink(path)
        got, figures, _, log = self.run_once(TARGET, *self.args(split))
        self.assertEqual((got, log), (wanted, ''))
        self.assertLess(figures['restored_positions'], n_restored)

    def test_one_that_keeps_none_is_said_once(self):
        self.start('a')
        self.start('b', keep=False)
        split = ['a/host:1', 'host:1', 'b/host:1']
        self.write_prompts('Then', text=TEXT * 8)
        wanted, _, n_off, _ = self.run_once(TARGET, *self.args(split), keep=False)
        for _ in range(2):
            got, figures, n_rows, log = self.run_once(TARGET, *self.args(split))
            self.assertEqual((got, n_rows, figures['restored_positions']), (wanted, n_off, 0))
            self.assertEqual(log.count('host b keeps none'), 1, log)
        self.assertEqual((self.files(), self.files('a')), ([], []))

    def test_a_killed_batch_goes_on_without_reading_its_prompts_again(self):
        self.start('a')
        self.start('b')
        split = ['a/host:1', 'host:1', 'b/host:1']
        self.write_prompts(*('%d. ' % i for i in range(8)), text=TEXT * 10, alike=False)
        wanted, _, n_off, _ = self.run_once(TARGET, *self.args(split, '--parallel', '4'), keep=False)
        args = self.args(split, '--parallel', '4', '--prefix-cache', self.kept)
        p = subprocess.Popen(self.command(TARGET, args), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while p.poll() is None and min(len(self.files(name)) for name in (None, 'a', 'b')) < 6:
            time.sleep(0.001)
        p.send_signal(signal.SIGKILL)
        p.wait()
        got, figures, n_rows, log = self.run_once(TARGET, *self.args(split, '--parallel', '4'))
        self.assertEqual((got, log), (wanted, ''))
        self.assertEqual(n_rows + figures['restored_positions'], n_off)
        self.assertGreaterEqual(figures['restored_positions'], CHUNK)  # what found no room went unkept, here or there

    def test_a_worker_that_is_started_again_reads_its_prompts_from_its_disk(self):
        self.start('a')
        self.start('b')
        split = ['a/host:1', 'host:1', 'b/host:1']
        self.write_prompts(*('%d. ' % i for i in range(4)), text=TEXT * 8, alike=False)
        wanted = self.run_once(TARGET, *HOST, '--parallel', '4', '-n', '300', '--ctx', '1024', keep=False)[0]
        out = os.path.join(self.dir.name, 'out.jsonl')
        args = self.args(split, '--prefix-cache', self.kept, '--parallel', '4', '-n', '300', '--ctx', '1024', '--trace',
                         os.path.join(self.dir.name, 'trace.json'), '--out', out)
        p = subprocess.Popen(self.command(TARGET, args), stderr=subprocess.PIPE, text=True)
        while p.poll() is None and min(len(self.files(name)) for name in (None, 'a', 'b')) < 4:
            time.sleep(0.001)
        self.workers['b'].kill()
        self.workers['b'].wait()
        self.start('b')
        log = p.communicate(timeout=300)[1]
        self.assertEqual(p.returncode, 0, log)
        with open(out) as f:
            self.assertEqual({line['id']: line['tokens'] for line in map(json.loads, f)}, wanted)
        with open(self.stats) as f:
            stats = json.load(f)
        self.assertEqual(stats['totals']['target_losses'], 1, log)
        self.assertGreaterEqual(stats['prefix_cache']['restored_positions'], 2 * CHUNK)

if __name__ == '__main__':
    unittest.main()
