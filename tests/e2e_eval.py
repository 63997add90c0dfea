#!/usr/bin/env python3
"""tandem eval as a user meets it: perplexity that is the reference's, what caches cost, splits and
other devices, and what is said of wrong arguments, texts and models.

usage: e2e_eval.py TANDEM   (run from the source root; standard library only)"""
import array
import json
import math
import os
import pty
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

TANDEM = os.path.abspath(sys.argv.pop(1)) if len(sys.argv) > 1 else 'build/tandem'
MODEL = 'configs/tales/tales-target.q8_0.gguf'
TEXT = 'tests/data/tale.txt'
KEYS = ['kv', 'ppl', 'ppl_err', 'kld_mean', 'kld_median', 'kld_99', 'kld_99_9', 'kld_max', 'same_top', 'rms_dp',
        'bytes_per_position', 'decode_ms', 'verify_ms']
TIMES = ('decode_ms', 'verify_ms')
# TEXT begins the tales held back from the pair's training (in the public domain).
# llama.cpp v0.5.0: llama-perplexity -m MODEL -f TEXT -c 512 -b 512 -fa off, with -ctk and -ctv as named.
REFERENCE = {'f32': (21.9920, 1.90312), 'f16': (21.9986, 1.90356)}


def run(*args, model=MODEL, text=TEXT):
    return subprocess.run([TANDEM, 'eval', '--model', model, '--text', text, '--device', 'host:1', *args],
                          capture_output=True, text=True, timeout=300)


def kvs(*types):
    return [part for k, v in types for part in ('--kv', f'k={k},v={v}')]


def evaluate(*args, **files):
    r = run(*args, '--json', **files)
    assert r.returncode == 0 and not r.stderr, r.stderr
    return json.loads(r.stdout)


def timeless(figures):
    return [{key: value for key, value in row.items() if key not in TIMES} for row in figures]


class Eval(unittest.TestCase):
    def test_perplexity_is_the_references(self):
        # Both round activations to 8 bits, at different places: with F16 weights the two agree to 3e-5.
        for figures, (ppl, err) in zip(evaluate(*kvs(('f16', 'f16'))), REFERENCE.values()):
            self.assertAlmostEqual(figures['ppl'] / ppl, 1, delta=5e-4)
            self.assertAlmostEqual(figures['ppl_err'] / err, 1, delta=1e-3)

    def test_a_coarser_cache_costs_more(self):
        base, same, f16, q8_0, k, v, q4_0 = evaluate(
            '--chunks', '2', *kvs(('f32', 'f32'), ('f16', 'f16'), ('q8_0', 'q8_0'), ('q4_0', 'q8_0'),
                                  ('q8_0', 'q4_0'), ('q4_0', 'q4_0')))
        for figures in base, same, f16, q8_0, k, v, q4_0:
            self.assertEqual(list(figures), KEYS)
            self.assertGreater(min(figures[key] for key in TIMES), 0)
        self.assertEqual(*timeless([same, base]))
        self.assertEqual(base['kv'], 'k=f32,v=f32')
        for key in KEYS:
            if key.startswith('kld') or key == 'rms_dp':
                self.assertEqual(base[key], 0, key)
        self.assertEqual(base['same_top'], 1)
        for cheap, dear in ((base, f16), (f16, q8_0), (q8_0, k), (q8_0, v), (k, q4_0), (v, q4_0)):
            self.assertLess(cheap['kld_mean'], dear['kld_mean'])
            self.assertLess(cheap['rms_dp'], dear['rms_dp'])
            self.assertGreater(cheap['bytes_per_position'], 0)
        self.assertLess(q4_0['same_top'], q8_0['same_top'])
        self.assertTrue(1e-3 < q4_0['kld_mean'] < 1e-2, q4_0)  # llama.cpp's, without its rotation: 2.6e-3
        self.assertTrue(q4_0['kld_median'] < q4_0['kld_99'] < q4_0['kld_99_9'] < q4_0['kld_max'])
        turned, keys, plain = evaluate('--chunks', '2', *kvs(('q4_0', 'q4_0,rotate=on'), ('q4_0', 'q4_0,rotate_k=on,rotate_v=off'),
                                                               ('q4_0', 'q4_0,rotate=off')))[1:]
        self.assertEqual((turned['kv'], keys['kv'], plain['kv']),
                         ('k=q4_0,v=q4_0,rotate=on', 'k=q4_0,v=q4_0,rotate_k=on,rotate_v=off', 'k=q4_0,v=q4_0,rotate=off'))
        self.assertEqual(len({x['kld_mean'] for x in (turned, keys, plain)}), 3)
        # 10 layers of 2 heads of 64 keys and as many values
        self.assertEqual([x['bytes_per_position'] for x in (base, f16, q8_0, k, v, q4_0)],
                         [10 * 2 * 2 * n for n in (256, 128, 68, 52, 52, 36)])

    def test_the_base_is_what_is_named(self):
        f32, f16 = evaluate('--chunks', '1', *kvs(('f16', 'f16')))
        base, other = evaluate('--chunks', '1', '--base', 'v=f16,k=f16', *kvs(('f32', 'f32')))
        self.assertEqual((base['kv'], base['ppl'], base['kld_max']), ('k=f16,v=f16', f16['ppl'], 0))
        self.assertEqual((other['kv'], other['ppl']), ('k=f32,v=f32', f32['ppl']))
        self.assertGreater(other['kld_mean'], 0)

    def test_layers_of_other_types_cost_what_they_are(self):
        args = ['--window', '64', '--chunks', '4']
        q4_0 = 'k=q4_0,v=q4_0'
        rows = evaluate(*args, '--kv', q4_0, '--kv', q4_0 + ',keep=first+last:f16', '--kv', q4_0 + ',keep=0-9:f16',
                        '--kv', 'k=f16,v=f16', '--kv', q4_0 + ',keep=4:f16/-,keep=5:-/q8_0')
        _, plain, ends, all_of_them, f16, own = rows
        self.assertEqual([row['kv'] for row in (ends, all_of_them, own)],
                         [q4_0 + ',keep=' + x for x in ('0+9:f16', '0-9:f16', '4:f16/-,keep=5:-/q8_0')])
        # Two heads of 64: f16 256 bytes, q8_0 136, q4_0 72; of keys and of values.
        self.assertEqual(plain['bytes_per_position'], 20 * 72)
        self.assertEqual(ends['bytes_per_position'], 16 * 72 + 4 * 256)
        self.assertEqual(own['bytes_per_position'], 18 * 72 + 256 + 136)
        self.assertEqual(*[{**row, 'kv': ''} for row in timeless([all_of_them, f16])])
        self.assertTrue(0 < f16['kld_mean'] < ends['kld_mean'] < plain['kld_mean'])
        split = evaluate(*args, '--device', 'host:1', '--kv', q4_0 + ',keep=first+last:f16')[1]
        self.assertEqual(*timeless([split, ends]))

    def test_keys_with_outlying_biases_are_kept(self):
        with tempfile.TemporaryDirectory() as folder:
            model, config = (os.path.join(folder, name) for name in ('loud.gguf', 'config.json'))
            subprocess.run([sys.executable, 'scripts/make_model.py', '--arch', 'qwen2', '--n-embd', '128', '--layers', '4',
                            '--heads', '2', '--type', 'F16', '--loud-keys', '0', '3', '--out', model], check=True,
                           stdout=subprocess.DEVNULL)
            args = ['--window', '64', '--chunks', '3']
            rows = evaluate(*args, '--kv', 'k=q8_0,v=f16', '--kv', 'k=q8_0,v=f16,keep=first+last:q8_0/-', '--kv',
                            'k=f16,v=f16', model=model)
            self.assertEqual([row['kv'] for row in rows[1:]], ['k=q8_0,v=f16,keep=0+3:f16/-',
                                                               'k=q8_0,v=f16,keep=0+3:q8_0/-', 'k=f16,v=f16'])
            _, by_default, insisted, _ = rows
            self.assertLess(100 * by_default['kld_mean'], insisted['kld_mean'])
            # What is written is what was measured, for who insists too.
            for keep, kept in (('', '0,3=f16/-'), (',keep=0+3:q8_0/-', '0,3=q8_0/-')):
                evaluate(*args, '--kv', 'auto:KLD=9', '--kv', 'k=q8_0,v=f16' + keep, '--write-config', config, model=model)
                with open(config, encoding='utf-8') as file:
                    self.assertEqual(json.load(file)['cache'], {'k': 'q8_0', 'v': 'f16', 'keep': [kept]})
                stats = os.path.join(folder, 'stats.json')
                subprocess.run([TANDEM, 'generate', '--config', config, '--target', model, '--device', 'host:1',
                                '--no-measure', '--prompt', 'a', '-n', '1', '--quiet', '--stats', stats], check=True,
                               stdout=subprocess.DEVNULL)
                with open(stats, encoding='utf-8') as file:
                    self.assertEqual(json.load(file)['config']['kv_keep'], [kept])

    def test_a_split_scores_as_one_device_does(self):
        args = ['--chunks', '1', *kvs(('q8_0', 'q4_0'))]
        self.assertEqual(timeless(evaluate(*args, '--device', 'host:1')), timeless(evaluate(*args)))

    def test_windows_are_scored_as_their_logits_say(self):
        """Each from the middle on, in chunks of a prompt, and after BOS where its first token was."""
        window, n_windows, sum_nll = 500, 2, 0
        figures = evaluate('--window', str(window), '--chunks', str(n_windows))[0]
        ids = self.tokens()
        for w in range(n_windows):
            own = ids[:1] + ids[w * window + 1:(w + 1) * window]
            sum_nll += sum(nll for nll, _ in self.judge(own, window // 2))
        self.assertAlmostEqual(math.log(figures['ppl']), sum_nll / n_windows / (window // 2 - 1), delta=1e-6)

    def tokens(self):
        with open(TEXT, encoding='utf-8') as file:
            text = file.read()
        return json.loads(subprocess.run([TANDEM, 'tokenize', '--model', MODEL, '--add-special', '--text', text],
                                         capture_output=True, text=True).stdout)

    def judge(self, ids, first):
        """-log p of each token after first, and whether it is the most probable: of `tandem logits`."""
        with tempfile.TemporaryDirectory() as folder:
            out = os.path.join(folder, 'logits')
            subprocess.run([TANDEM, 'logits', '--model', MODEL, '--device', 'host:1', '--tokens', ','.join(map(str, ids)),
                            '--kv-k', 'f32', '--kv-v', 'f32', '--out', out], check=True)
            logits = array.array('f')
            with open(out, 'rb') as file:
                logits.frombytes(file.read())
        n_vocab = len(logits) // len(ids)
        for i in range(first, len(ids) - 1):
            row = logits[i * n_vocab:(i + 1) * n_vocab]
            yield math.log(math.fsum(map(math.exp, row))) - row[ids[i + 1]], row[ids[i + 1]] == max(row)

    def test_a_task_scores_what_it_repeats(self):
        window = 128
        base, other = evaluate('--window', str(window), '--chunks', '6', '--task', 'copy', *kvs(('q4_0', 'q4_0')))
        ids, sum_nll, right = self.tokens(), 0, []
        for w in range(6):
            own = ids[:1] + ids[w * window + 1:(w + 1) * window]
            at = 1 + (window - 2 * 32 - 1) * (w % 5) // 4
            judged = list(self.judge(own[:-32] + own[at:at + 32], window - 25))
            sum_nll += sum(nll for nll, _ in judged)
            right.append(sum(is_right for _, is_right in judged))
        self.assertAlmostEqual(math.log(base['ppl']), sum_nll / 6 / 24, delta=1e-6)
        self.assertEqual(base['right'], sum(right) / 6 / 24)
        self.assertEqual([base['right_at_%s' % depth] for depth in (0, 25, 50, 75, 100)],
                         [(right[0] + right[5]) / 48, *[n / 24 for n in right[1:5]]])
        self.assertEqual(base['whole'], 0)
        self.assertGreater(other['kld_mean'], 0)
        needle = evaluate('--window', '128', '--chunks', '1', '--task', 'needle')[0]
        self.assertEqual('right_at_0' in needle, 'right_at_25' not in needle, needle)  # one window: one depth
        self.fails(2, '--task: "x"; allowed: copy, needle', args=['--task', 'x'])
        self.fails(2, '--window: 64; allowed with --task copy: at least 128', args=['--task', 'copy', '--window', '64'])
        self.fails(2, '--draft does not go with --task', args=['--task', 'copy', '--draft', MODEL])

    def test_the_table_tells_the_same(self):
        args = ['--chunks', '1', *kvs(('q8_0', 'f16'))]
        with tempfile.TemporaryDirectory() as folder:
            out = ('--out', os.path.join(folder, 'out'))  # so that both show the same times
            figures, r = evaluate(*args, *out), run(*args, *out)
        lines = r.stdout.splitlines()
        self.assertEqual(lines[0], '1 windows of 512 tokens, 255 positions scored; divergence from k=f32,v=f32')
        rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines[2:]]
        self.assertEqual(len({len(line) for line in lines[2:]}), 1)
        self.assertEqual([row[0] for row in rows[2:]], ['k=f32,v=f32', 'k=q8_0,v=f16'])
        for row, want in zip(rows[2:], figures):
            self.assertEqual(row[1:], ['%.4f' % want['ppl'], '%.4f' % want['ppl_err'],
                                       *['%.6f' % want[key] for key in KEYS[3:8]], '%.2f %%' % (100 * want['same_top']),
                                       '%.3f %%' % (100 * want['rms_dp']), str(want['bytes_per_position']),
                                       *['%.3f' % want[key] for key in TIMES]])

    def test_a_run_that_was_ended_goes_on_where_it_was(self):
        args = ['--window', '128', '--chunks', '6', *kvs(('q8_0', 'q4_0'), ('q4_0', 'q4_0'))]
        with tempfile.TemporaryDirectory() as folder:
            whole, part = os.path.join(folder, 'whole'), os.path.join(folder, 'part')
            want = evaluate(*args, '--out', whole)
            with open(whole, 'rb') as file:
                lines = file.readlines()
            self.assertEqual(len(lines), 1 + 3 * 6 + 3)  # of what it is; caches by windows; speeds
            self.assertEqual(evaluate(*args, '--out', whole), want)  # the times too: nothing is measured again
            self.assertEqual(timeless(evaluate(*args)), timeless(want))
            for n_lines, n_bytes in ((1, 0), (3, 20), (10, 0), (20, 0)):
                with open(part, 'wb') as file:
                    file.write(b''.join(lines[:n_lines]) + lines[n_lines][:n_bytes])
                r = run(*args, '--out', part, '--json')
                self.assertEqual(r.returncode, 0, r.stderr)
                self.assertEqual('was not finished and is removed' in r.stderr, n_bytes > 0, r.stderr)
                self.assertEqual(timeless(json.loads(r.stdout)), timeless(want), n_lines)
                with open(part, 'rb') as file:
                    again = file.readlines()
                self.assertEqual(again[:19], lines[:19])
            os.remove(part)
            with subprocess.Popen([TANDEM, 'eval', '--model', MODEL, '--text', TEXT, '--device', 'host:1', *args,
                                   '--out', part], stdout=subprocess.DEVNULL) as p:
                while not os.path.exists(part) or os.path.getsize(part) < 5000:
                    time.sleep(0.005)
                p.kill()
            self.assertEqual(timeless(evaluate(*args, '--out', part)), timeless(want))

    def test_a_file_serves_other_caches_and_fewer_windows(self):
        with tempfile.TemporaryDirectory() as folder:
            out = ['--window', '128', '--out', os.path.join(folder, 'out')]
            base, q4_0 = evaluate(*out, *kvs(('q4_0', 'q4_0')))
            few = evaluate(*out, '--chunks', '2', *kvs(('f16', 'f16'), ('q4_0', 'q4_0')))
            self.assertEqual(timeless(few), timeless(evaluate('--window', '128', '--chunks', '2',
                                                              *kvs(('f16', 'f16'), ('q4_0', 'q4_0')))))
            f16 = timeless(evaluate('--window', '128', *kvs(('f16', 'f16'))))[1]
            self.assertEqual(timeless(evaluate(*out, *kvs(('f16', 'f16'), ('q4_0', 'q4_0')))),
                             [*timeless([base]), f16, *timeless([q4_0])])

    def test_a_file_of_other_figures_is_refused(self):
        with tempfile.TemporaryDirectory() as folder:
            path, text = os.path.join(folder, 'out'), os.path.join(folder, 'text')
            args = ['--chunks', '1', '--out', path]
            evaluate(*args)
            with open(path, 'rb') as file:
                before = file.read()
            with open(TEXT, 'rb') as file, open(text, 'wb') as copy:
                copy.write(file.read()[:-9])
            for more, files, needle in ((['--window', '256'], {}, 'window is "512" there and "256" now'),
                                        (['--base', 'k=f16,v=f32'], {}, 'base is "k=f32,v=f32" there and "k=f16,v=f32" now'),
                                        (['--task', 'copy'], {}, 'task is "none" there and "copy" now'),
                                        ([], {'text': text}, 'text is "'),
                                        ([], {'model': 'configs/tales/tales-draft.q8_0.gguf'}, 'model is "'),
                                        (['--device', 'scalar'], {}, 'layers is "0 on host, ')):
                r = run(*args, *more, **files)
                self.assertEqual((r.returncode, r.stdout), (65, ''), r.stderr)
                self.assertIn(path + ': ', r.stderr)
                self.assertIn(needle.replace(', ', ''), r.stderr)
            lines = before.splitlines(keepends=True)
            for content, needle in ((lines[1] + lines[0], 'does not say what it is of'), (b'{"id": "a"}\n', 'first line'),
                                    (b'something else\n', path),
                                    (lines[0] + lines[1].replace(b'"same_top":255', b'"same_top":256'), '0..255'),
                                    (lines[0] + lines[1].replace(b'"same_top":255,', b''), 'same_top: is missing'),
                                    (lines[0] + lines[1].replace(b'"window":0,', b''), 'window: is missing'),
                                    (lines[0] + lines[1].replace(b'"kld":', b'"Kld":'), 'did you mean "kld"'),
                                    (lines[0] + lines[2].replace(b'verify_ms', b'verify_mz'), 'verify_ms'),
                                    (lines[0] + lines[1].replace(b'"kld_bits":[0,', b'"kld_bits":['), '255 of a window'),
                                    (lines[0] + lines[1].replace(b'"kld_bits":[0,', b'"kld_bits":[-1,'), 'kld_bits'),
                                    (lines[0] + lines[1].replace(b'"window":0', b'"window":-1'), 'window')):
                with open(path, 'wb') as file:
                    file.write(content)
                self.fails(65, needle, args=args)
                with open(path, 'rb') as file:
                    self.assertEqual(file.read(), content)
        self.fails(2, '--out', args=['--out', TEXT])
        self.fails(2, '--out', args=['--out', '-'])

    def test_a_choice_that_cannot_be_written_is_told_before_it_is_measured(self):
        with tempfile.TemporaryDirectory() as folder:
            out = os.path.join(folder, 'out')
            self.fails(74, folder + ': cannot be written: Is a directory',
                       args=['--kv', 'auto:KLD=1', '--chunks', '1', '--write-config', folder, '--out', out])
            self.assertFalse(os.path.exists(out))

    def test_a_draft_is_accepted_as_often_as_it_is_right(self):
        args = ['--window', '128', '--chunks', '3', *kvs(('f32', 'f32'), ('q4_0', 'q4_0'))]
        draft = ('--draft', 'configs/tales/tales-draft.q8_0.gguf')
        with tempfile.TemporaryDirectory() as folder:
            out = ('--out', os.path.join(folder, 'out'))
            figures = evaluate(*args, *draft, *out)
            base, same, q4_0 = timeless(figures)
            self.assertEqual(list(figures[0]), [*KEYS, 'acceptance', 'tokens_per_verification'])
            self.assertEqual(base, same)
            for row in base, q4_0:
                self.assertTrue(0.05 < row['acceptance'] < 0.95 and 1 < row['tokens_per_verification'] < 8, row)
            with open(out[1], encoding='utf-8') as file:
                lines = file.readlines()
            counts = [line for line in map(json.loads, lines) if 'draft' in line]
            self.assertEqual(len(counts), 3 * 3)
            for line in counts:  # a verification gives what is accepted and a token of its own
                self.assertEqual(line['tokens'], line['accepted'] + line['rounds'])
            with open(out[1], 'w', encoding='utf-8') as file:
                file.write(''.join(lines[:-4]))
            self.assertEqual(timeless(evaluate(*args, *draft, *out)), [base, same, q4_0])
            # A draft that is the target is always right: 32 tokens take a prompt's and four of 8.
            for row in evaluate(*args, '--draft', MODEL, *out):
                self.assertEqual((row['acceptance'], row['tokens_per_verification']), (1, 32 / 5))
        # Layers of other types are the target's: the draft has none of that number.
        row = evaluate('--window', '128', '--chunks', '1', *draft, '--kv', 'k=q8_0,v=q8_0,keep=9:f16')[1]
        self.assertTrue(0.05 < row['acceptance'] < 0.95, row)
        self.fails(74, 'cannot be opened', args=['--draft', '/nonexistent'])
        self.fails(65, 'is no GGUF file', args=['--draft', TEXT])

    def test_the_cache_found_is_the_best_within_the_bound(self):
        types = ('f16', 'q8_0', 'q4_0')
        pairs = [(k, v) for k in types for v in types]
        args = ['--window', '128', '--chunks', '6']
        with tempfile.TemporaryDirectory() as folder:
            config = os.path.join(folder, 'config')
            out = ('--out', os.path.join(folder, 'out'))
            base, *all_of_them = timeless(evaluate(*args, *kvs(*pairs), *out))
            front = [x for x in all_of_them if not any(
                y['kld_mean'] <= x['kld_mean'] and y['bytes_per_position'] <= x['bytes_per_position'] and y != x
                for y in all_of_them)]
            self.assertTrue(3 <= len(front) < 9, front)
            for goal, best in (('KLD=0.001', min((x['bytes_per_position'], x['kld_mean'], x['kv'])
                                                 for x in all_of_them if x['kld_mean'] <= 0.001)),
                               ('BYTES=3K', min((x['kld_mean'], x['bytes_per_position'], x['kv'])
                                                for x in all_of_them if x['bytes_per_position'] <= 3072))):
                rows = evaluate(*args, '--kv', 'auto:' + goal, *kvs(*pairs), *out, '--write-config', config)
                chosen, = [row for row in rows if row['chosen']]
                self.assertEqual(chosen['kv'], best[2])
                with open(config, encoding='utf-8') as file:
                    cache = json.load(file)['cache']
                self.assertEqual('k={k},v={v}'.format(**cache), best[2])
                self.assertEqual(rows, sorted(rows, key=lambda row: -row['bytes_per_position']))
                self.assertEqual(sorted(row['kv'] for row in rows), sorted(x['kv'] for x in [base, *all_of_them]))
                self.assertEqual({row['kv'] for row in rows if not row['dominated']}, {x['kv'] for x in [base, *front]})
                again = {x['kv']: x for x in [base, *all_of_them]}
                for row in rows:
                    if row['windows'] == 6:
                        own = {key: row[key] for key in KEYS}
                        self.assertEqual(*timeless([own]), again[row['kv']])
                    self.assertTrue(row['windows'] == 6 or row['dominated'])
            r = subprocess.run([TANDEM, 'generate', '--config', config, '--target', MODEL, '--device', 'host:1',
                                '--no-measure', '--prompt', 'Once', '-n', '2', '--quiet'], capture_output=True, text=True)
            self.assertEqual(r.returncode, 0, r.stderr)

    def test_all_types_are_tried_and_a_search_goes_on(self):
        listed = run('--kv', 'k=f32,v=').stderr.split('allowed: ')[1].split()
        types = [name.strip(',') for name in listed if name.strip(',') != 'f32']
        args = ['--window', '16', '--chunks', '2', '--kv', 'auto:KLD=0.001']
        with tempfile.TemporaryDirectory() as folder:
            out = os.path.join(folder, 'out')
            want = evaluate(*args, '--out', out)
            small = [name for name in types if name not in ('f16', 'bf16')]
            self.assertEqual(sorted(row['kv'] for row in want), sorted(
                ['k=f32,v=f32', *[f'k={k},v={v}' for k in types for v in types],
                 *[f'k={k},v={v},keep=0+9:f16' for k in small for v in small]]))
            with open(out, 'rb') as file:
                lines = file.readlines()
            with open(out, 'wb') as file:
                file.write(b''.join(lines[:len(lines) // 2]))
            self.assertEqual(timeless(evaluate(*args, '--out', out)), timeless(want))
            # Few seconds: what is whole is shown, and the next run goes on from there.
            os.remove(out)
            hasty = run(*args, '--out', out, '--seconds', '0.001', '--json')
            self.assertIn(hasty.returncode, (0, 75), hasty.stderr)
            if hasty.returncode == 0:
                self.assertEqual({row['windows'] for row in json.loads(hasty.stdout)}, {1})
            self.assertEqual(timeless(evaluate(*args, '--out', out)), timeless(want))

    def test_a_search_leaves_out_what_a_family_is_known_not_to_bear(self):
        model = 'tests/data/golden/models/gpt-oss/model.gguf'
        args = ['--window', '16', '--chunks', '1', '--kv', 'auto:KLD=9']
        r = run(*args, '--json', model=model)
        self.assertIn('caches below K F16, V F16 are left out, as of gpt-oss (gpt-oss-20b with q8_0', r.stderr)
        self.assertEqual(sorted(row['kv'] for row in json.loads(r.stdout)),
                         sorted(['k=f32,v=f32', *[f'k={k},v={v}' for k in ('f16', 'bf16') for v in ('f16', 'bf16')]]))
        named = evaluate(*args, '--kv', 'k=q8_0,v=q8_0', model=model)  # who names one has it tried
        self.assertEqual([row['kv'] for row in named if row['chosen']], ['k=q8_0,v=q8_0'])

    def test_layers_kept_otherwise_may_be_the_choice(self):
        plain, kept = ('k=q8_0,v=q8_0', 'k=q8_0,v=q8_0,keep=0+9:f16')
        with tempfile.TemporaryDirectory() as folder:
            config, out = (os.path.join(folder, name) for name in ('config', 'out'))
            args = ['--window', '64', '--chunks', '2', '--out', out]
            _, q8_0, ends = evaluate(*args, '--kv', plain, '--kv', kept)
            self.assertLess(ends['kld_mean'], q8_0['kld_mean'])
            # More bytes than pairs of a bound between the two have, and less than those of f16.
            rows = evaluate(*args, '--kv', 'auto:BYTES=%d' % ends['bytes_per_position'], '--write-config', config)
            chosen, = [row for row in rows if row['chosen']]
            self.assertLessEqual(chosen['kld_mean'], ends['kld_mean'])
            self.assertIn(kept, [row['kv'] for row in rows])
            rows = evaluate(*args, '--kv', 'auto:KLD=9', '--kv', kept, '--write-config', config)
            with open(config, encoding='utf-8') as file:
                self.assertEqual(json.load(file), {'cache': {'k': 'q8_0', 'v': 'q8_0', 'keep': ['0,9=f16']}})

    def test_a_bound_that_no_cache_reaches_is_told(self):
        given = ['--window', '64', '--chunks', '2', *kvs(('q8_0', 'q4_0'), ('q4_0', 'q4_0'))]
        with tempfile.TemporaryDirectory() as folder:
            config = os.path.join(folder, 'config')
            for goal, needle in (('KLD=1e-9', 'small a divergence as 1e-09; nearest is k=q8_0,v=q4_0'),
                                 ('BYTES=1K', 'few bytes a position as 1024; nearest is k=q4_0,v=q4_0')):
                r = run(*given, '--kv', 'auto:' + goal, '--json', '--write-config', config)
                self.assertEqual(r.returncode, 1, r.stderr)
                self.assertIn(needle, r.stderr)
                self.assertEqual(len(json.loads(r.stdout)), 3)
                self.assertFalse(os.path.exists(config))
            r = run(*given, '--kv', 'auto:KLD=1')
            self.assertIn('\n| > k=q4_0,v=q4_0 | ', r.stdout)
            self.assertIn('\nchosen: k=q4_0,v=q4_0 with a mean divergence of 0.00', r.stdout)
        for value in ('auto:', 'auto:KLD', 'auto:KLD=', 'auto:KLD=0', 'auto:KLD=-1', 'auto:KLD=nan', 'auto:KLD=1K',
                      'auto:BYTES=1G', 'auto:BYTES=K', 'auto:BYTES=' + '1' * 400, 'auto:PPL=1'):
            self.fails(2, '--kv auto: "', 'allowed: KLD=X above 0, or BYTES=N', args=['--kv', value])
        self.fails(2, 'given twice', args=['--kv', 'auto:KLD=1', '--kv', 'auto:BYTES=1'])
        self.fails(2, '--seconds needs --kv auto', args=['--seconds', '1'])
        self.fails(2, '--write-config needs --kv auto', args=['--write-config', 'x'])

    def test_a_terminal_is_told_what_is_left(self):
        main, other = pty.openpty()
        with subprocess.Popen([TANDEM, 'eval', '--model', MODEL, '--text', TEXT, '--device', 'host:1', '--chunks', '3',
                               *kvs(*[('q4_0', 'q4_0')] * 4)], stdout=subprocess.DEVNULL, stderr=other) as p:
            os.close(other)
            seen = b''
            try:
                while more := os.read(main, 4096):
                    seen += more
            except OSError:  # closed at the other end
                pass
        os.close(main)
        self.assertEqual(p.returncode, 0)
        self.assertRegex(seen.decode(), r'window \d of 3, perplexity of k=f32,v=f32 so far \d+\.\d+, \d+ s left')

    def fails(self, code, *needles, args=(), **files):
        r = run(*args, **files)
        self.assertEqual((r.returncode, r.stdout), (code, ''), r.stderr)
        for needle in needles:
            self.assertIn(needle, r.stderr)

    def test_wrong_arguments_are_refused(self):
        for keep, needle in (('1', 'allowed: LAYERS:TYPE'), ('1=f16', 'allowed: LAYERS:TYPE'), ('x:f16', 'layers "x"'),
                             ('99:f16', 'layer 99 of'), ('1:f17', '"f17"; allowed: f32')):
            self.fails(2, '--kv', needle, args=['--kv', 'k=f16,v=f16,keep=' + keep])
        for value in ('k=q8_0', 'v=q8_0', '', ',', 'k=f16,v=f16,', 'k=f16,k=f16', 'k=f16,v=f16,k=f16', 'f16',
                      'k=f16,v=f16,rotate=on,', 'k=f16,rotate=on', 'k=f16,v=f16,rotate', 'K=f16,v=f16'):
            self.fails(2, '--kv: ', 'allowed: k=TYPE,v=TYPE', args=['--kv', value])
        for value in ('rotate=', 'rotate=yes', 'rotate_k=onn', 'rotate_v=' + 'x' * 4000):
            self.fails(2, '--kv: ', 'on', args=['--kv', 'k=f16,v=f16,' + value])
        for value in ('k=q9_9,v=f16', 'k=f16;v=f16', 'k=f16,v=', 'k=q4_k,v=f16', 'k=f16,v=' + 'q' * 4000):
            self.fails(2, '--kv: ', 'allowed: f32, f16, ', args=['--kv', value])
        self.fails(2, '--base: "f16"', args=['--base', 'f16'])
        self.fails(2, '--kv: more than 16', args=kvs(*[('f16', 'f16')] * 17))
        self.fails(2, '--chunks: "0"; allowed: an integer 1..', args=['--chunks', '0'])
        self.fails(2, '--window: "7"; allowed: an integer 8..', args=['--window', '7'])
        self.fails(2, 'another machine', args=['--device', 'a/host'])
        r = subprocess.run([TANDEM, 'eval', '--model', MODEL], capture_output=True, text=True)
        self.assertEqual(r.returncode, 2)
        self.assertIn('--text FILE', r.stderr)

    def test_texts_that_cannot_be_scored_are_refused(self):
        self.fails(74, '/nonexistent: cannot be opened', text='/nonexistent')
        self.fails(65, 'a regular file is wanted', text='tests')
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, 'text')
            for content, *needles in ((b'', 'tokens, which fill no window of 512'),
                                      (b'Once upon a time', 'tokens, which fill no window of 512', '--window'),
                                      (b'Once upon\xff a time', 'byte 9 is 0xff, no UTF-8'),
                                      (b' ' * ((16 << 20) + 1), '16777217', '16777216')):
                with open(path, 'wb') as file:
                    file.write(content)
                self.fails(65, path, *needles, text=path)

    def test_models_that_cannot_be_used_are_refused(self):
        self.fails(65, 'is no GGUF file', model=TEXT)
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, 'text')
            with open(path, 'w', encoding='utf-8') as file:
                file.write('7' * (8 << 20))  # a token each
            r = run('--window', str(8 << 20), *kvs(*[('f32', 'f32')] * 16), text=path)
        self.assertEqual(r.returncode, 75, r.stderr)
        self.assertIn('host', r.stderr)
        self.assertRegex(r.stderr, r'\d+ [MG]iB')


class Picture(unittest.TestCase):
    ROWS = [('k=f32,v=f32', 10240, 0), ('k=f16,v=f16', 5120, 1e-6), ('k=q8_0,v=f16', 3920, 3e-5),
            ('k=q8_0,v=q8_0', 2720, 1e-5), ('k=q4_0,v=q4_0', 1440, 2e-3)]

    def draw(self, *args, env=None):
        return subprocess.run(['scripts/kv_pareto.sh', *args], capture_output=True, text=True, env=env)

    def write(self, folder, rows):
        path = os.path.join(folder, 'eval.json')
        with open(path, 'w', encoding='utf-8') as file:
            json.dump([{'kv': kv, 'bytes_per_position': n, 'kld_mean': kld} for kv, n, kld in rows], file)
        return path

    @unittest.skipUnless(shutil.which('gnuplot'), 'no gnuplot here')
    def test_caches_and_their_front_are_drawn(self):
        with tempfile.TemporaryDirectory() as folder:
            out = os.path.join(folder, 'kv.svg')
            path = self.write(folder, self.ROWS)
            r = self.draw(path, 'other=' + path, out)
            self.assertEqual((r.returncode, r.stdout, r.stderr), (0, '', ''))
            with open(out, encoding='utf-8') as file:
                picture = file.read()
            for text in ('>q8_0,f16<', '>q4_0,q4_0<', 'eval.json', 'other', 'bytes a position', 'from k=f32,v=f32'):
                self.assertIn(text, picture)
            many = self.ROWS + [(f'k=x{i},v=x', 4000 + i, 0.1) for i in range(20)]
            self.assertEqual(self.draw(self.write(folder, many), out).returncode, 0)
            with open(out, encoding='utf-8') as file:
                picture = file.read()  # now the front alone is named
            self.assertIn('>q8_0,q8_0<', picture)
            self.assertNotIn('>q8_0,f16<', picture)
            for content in ('', '[]', '{}', '[{"kv": "a"}]', '[{"kv": 1, "bytes_per_position": 1, "kld_mean": 1}]'):
                with open(path, 'w', encoding='utf-8') as file:
                    file.write(content)
                r = self.draw(path, out)
                self.assertNotEqual(r.returncode, 0)
                self.assertIn('not what `tandem eval --json` prints', r.stderr)
            self.assertEqual(self.draw(self.write(folder, self.ROWS[:1]), out).returncode, 1)
            self.assertEqual(self.draw(path, path).returncode, 1)
            with open(out, encoding='utf-8') as file:
                self.assertEqual(file.read(), picture)  # none of these has touched it
            hostile = [('k=a"\nsystem "touch %s/x"' % folder, 10, 1), ('b', 20, 0.5)]
            self.assertEqual(self.draw(self.write(folder, hostile), out).returncode, 0)
            self.assertFalse(os.path.exists(folder + '/x'))

    def test_a_missing_gnuplot_is_named(self):
        with tempfile.TemporaryDirectory() as folder:
            for tool in ('sed', 'sh'):
                os.symlink(shutil.which(tool), os.path.join(folder, tool))
            r = self.draw('eval.json', 'out.svg', env={'PATH': folder})
        self.assertEqual((r.returncode, r.stderr), (69, 'kv_pareto.sh: gnuplot is not installed (Debian, Ubuntu: gnuplot-nox)\n'))


if __name__ == '__main__':
    unittest.main()
