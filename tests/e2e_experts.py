#!/usr/bin/env python3
"""Experts dealt over devices, as a user meets them: the text is the undealt one's whoever has which,
with drafts and without; a run says how it dealt, and one that goes on deals so again; what cannot be
dealt is refused.

usage: e2e_experts.py TANDEM   (run from the source root; standard library only)"""
import json
import os
import subprocess
import sys
import tempfile
import unittest

TANDEM = os.path.abspath(sys.argv.pop(1)) if len(sys.argv) > 1 else 'build/tandem'
DENSE = 'configs/tales/tales-target.q8_0.gguf'
N_EXPERTS = 12
TWO = ('--device', 'host:1', '--device', 'host:1')
FIELDS = ('status', 'text', 'tokens', 'reason', 'prompt_tokens', 'config', 'config_sha')


class Experts(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.shared = tempfile.TemporaryDirectory()
        cls.model = os.path.join(cls.shared.name, 'moe.gguf')
        subprocess.run([sys.executable, 'scripts/make_model.py', '--arch', 'qwen3moe', '--n-embd', '256', '--layers', '3',
                        '--ffn', '256', '--heads', '4', '--kv-heads', '2', '--experts', str(N_EXPERTS), '--experts-used',
                        '3', '--vocab', '600', '--type', 'Q4_K', '--out', cls.model], check=True, capture_output=True)
        cls.prompts = os.path.join(cls.shared.name, 'in.jsonl')
        with open(cls.prompts, 'w') as f:
            for i in range(8):
                f.write(json.dumps({'id': 'line %d' % i, 'prompt': 'a tale of %d hills ' % i * (1 + 6 * i)}) + '\n')

    @classmethod
    def tearDownClass(cls):
        cls.shared.cleanup()

    def setUp(self):
        self.dir = tempfile.TemporaryDirectory()
        self.addCleanup(self.dir.cleanup)

    def run_tandem(self, *args, model=None):
        return subprocess.run([TANDEM, 'generate', '--target', model or self.model, '--quiet', '--ignore-eos', *args],
                              capture_output=True, text=True, timeout=300)

    def lines(self, *args, out='out.jsonl', model=None):
        """What must not differ of the result lines, by id."""
        path = os.path.join(self.dir.name, out)
        r = self.run_tandem('--in', self.prompts, '--out', path, '-n', '24', '--ctx', '1024', '--seed', '7', *args,
                            model=model)
        self.assertEqual(r.returncode, 0, r.stderr)
        with open(path) as f:
            self.results = [json.loads(line) for line in f]
        self.assertEqual(len(self.results), 8)
        return {line['id']: {k: line[k] for k in FIELDS} for line in self.results}

    def test_the_text_is_the_undealt_one_whoever_has_which(self):
        wanted = self.lines('--device', 'host:1', '--parallel', '3')
        self.assertEqual({line['status'] for line in wanted.values()}, {'ok'})
        for i, place in enumerate(('experts=auto', 'experts=5,1', 'experts=0,2,4,6,8,10/1,3,5,7,9,11', 'experts=7-11,0/1-6')):
            got = self.lines(*TWO, '--place', place, '--parallel', '3', out='%d.jsonl' % i)
            self.assertEqual(got, wanted, place)
        got = self.lines(*TWO, '--device', 'host:2', '--place', 'experts=1,1,1', '--parallel', '1', out='three.jsonl')
        self.assertEqual(got, wanted)

    def test_drafts_do_not_change_it(self):
        dealt = (*TWO, '--place', 'experts=2,1', '--temp', '0.9')
        wanted = self.lines(*dealt, '--draft', 'none')
        for i, draft in enumerate((('--draft', self.model, '--draft-device', 'host:1', '--draft-fixed', '5'),
                                   ('--draft', self.model, '--draft-device', 'host:1', '--draft-fixed', '40', '--parallel', '4'),
                                   ('--draft-ngram', '--draft-fixed', '3'))):
            got = self.lines(*dealt, *draft, out='%d.jsonl' % i)
            self.assertEqual(got, wanted, draft)
            self.assertGreater(sum(line['drafted'] for line in self.results), 0)

    def test_a_run_says_how_it_dealt_and_goes_on_so(self):
        path, stats = (os.path.join(self.dir.name, name) for name in ('out.jsonl', 'stats.json'))
        auto = ('--in', self.prompts, '--out', path, '-n', '8', '--ctx', '1024', *TWO, '--place', 'experts=auto', '--stats', stats)
        r = self.run_tandem(*auto)
        self.assertEqual(r.returncode, 0, r.stderr)
        with open(path) as f:
            lines = f.readlines()
        placement = json.loads(lines[0])['placement']
        self.assertRegex(placement, r'^host:1@0-2 with experts=\d+,\d+ on host:1 \+ host:1$')
        with open(stats) as f:
            stage, = json.load(f)['stages']
        self.assertIn(stage['dealt'], placement)
        counts = [int(n) for n in stage['dealt'].partition('=')[2].split(',')]
        self.assertEqual((len(counts), sum(counts)), (2, N_EXPERTS))
        seat, = stage['seats']
        self.assertEqual(seat['device'], 'host:1')
        self.assertGreater(seat['bytes'], 0)
        with open(path, 'w') as f: # as if an earlier run had measured something else
            f.write(''.join(lines[:3]).replace(stage['dealt'], 'experts=11,1'))
        r = self.run_tandem(*auto)
        self.assertEqual(r.returncode, 0, r.stderr)
        with open(path) as f:
            self.assertEqual({json.loads(line)['placement'] for line in f}, {'host:1@0-2 with experts=11,1 on host:1 + host:1'})

    def test_hot_experts_are_dealt_by_their_counts(self):
        """A file in which layer 0's are asked by place: experts 3 and 9 as often as all others together."""
        stats, hot = (os.path.join(self.dir.name, name) for name in ('stats.json', 'hot.json'))
        wanted = self.lines(*TWO, '--place', 'experts=1,1', '--stats', stats)
        with open(stats) as f:
            stage, = json.load(f)['stages']
        asked = stage['asked']
        self.assertEqual(len(asked), 3 * N_EXPERTS)
        rows = [sum(asked[i:i + N_EXPERTS]) for i in range(0, len(asked), N_EXPERTS)]
        self.assertEqual(set(rows), {3 * (stage['prefill_rows'] + stage['verify_rows'])})
        self.assertEqual(self.lines(*TWO, '--place', 'experts=2,1', '--expert-stats', stats, out='counted.jsonl'), wanted)
        with open(hot, 'w') as f:
            json.dump({'stages': [{'asked': [500 if e in (3, 9) else 100 for e in range(N_EXPERTS)] * 3}]}, f)
        self.assertEqual(self.lines(*TWO, '--place', 'experts=1,5', '--expert-stats', hot, '--stats', stats, out='hot.jsonl'),
                         wanted)
        for text, needle, place in (('{"stages": []}', 'no counts', 'auto'), ('{"stages": [{"asked": [1, 2]}]}', '2 counts', '1,1'),
                                    ('{"stages": [{"asked": [-1]}]}', 'asked', '1,1'), ('{}', 'stages', '1,1'), ('[', 'json', '1,1')):
            with open(hot, 'w') as f:
                f.write(text)
            r = self.run_tandem('--prompt', 'a', '-n', '1', *TWO, '--place', 'experts=' + place, '--expert-stats', hot)
            self.assertEqual(r.returncode, 65, r.stderr)
            self.assertIn(needle, r.stderr)

    def test_a_skewed_router_is_shared_as_the_devices_are(self):
        """Hot experts as in texts, about as Zipf has it: three quarters of the rows for the first device. Which
        experts it has is settled when a run begins, and the same until it ends."""
        n, n_first, stats = 32, 24, os.path.join(self.dir.name, 'stats.json')
        model = os.path.join(self.dir.name, 'skewed.gguf')
        subprocess.run([sys.executable, 'scripts/make_model.py', '--arch', 'qwen3moe', '--n-embd', '256', '--layers', '3', '--ffn',
                        '256', '--heads', '4', '--kv-heads', '2', '--experts', str(n), '--experts-used', '4', '--router-skew',
                        '1.0', '--vocab', '600', '--type', 'Q4_K', '--out', model], check=True, capture_output=True)
        place = (*TWO, '--place', 'experts=3,1', '--parallel', '4', '--temp', '0.9', '--stats', stats)

        def rows(*args, out):
            """What was asked of each layer, and rows that each device has computed."""
            lines = self.lines(*place, *args, out=out, model=model)
            with open(stats) as f:
                stage, = json.load(f)['stages']
            asked = [stage['asked'][i:i + n] for i in range(0, 3 * n, n)]
            computed = [stage['expert_rows'], stage['seats'][0]['expert_rows']]
            self.assertEqual(sum(computed), sum(map(sum, asked)))
            return lines, asked, computed

        def by_heat(asked):
            """Experts of the first device: the hottest first, each for the device that lacks most rows for an expert
            that it has room for, of those that lack so many."""
            own, room, lacks = [], [n_first, n - n_first], [0.75 * sum(asked), 0.25 * sum(asked)]
            for e in sorted(range(n), key=lambda e: (-asked[e], e)):
                rank = lambda k: (lacks[k] >= asked[e], lacks[k] / (room[k] if lacks[k] >= asked[e] else 1), -k)
                to = max((k for k in (0, 1) if room[k]), key=rank)
                room[to] -= 1
                lacks[to] -= asked[e]
                own += [e] if to == 0 else []
            return own

        wanted, asked, computed = rows(out='first.jsonl')
        for layer in asked:
            self.assertGreater(max(layer), 4 * sorted(layer)[n // 2], layer)
        self.assertEqual(computed[0], sum(sum(layer[:n_first]) for layer in asked))
        learned = os.path.join(self.dir.name, 'learned.json')
        os.rename(stats, learned)
        first = [by_heat(layer) for layer in asked]
        lines, again, computed = rows('--expert-stats', learned, out='second.jsonl')
        self.assertEqual((lines, again), (wanted, asked))
        self.assertEqual(computed[0], sum(layer[e] for layer, own in zip(asked, first) for e in own))
        self.assertAlmostEqual(computed[0] / sum(computed), 0.75, delta=0.005)
        with open(self.prompts) as f:
            others = f.read().replace('tale of', 'word on').replace('hills', 'wells')
        prompts = os.path.join(self.dir.name, 'others.jsonl')
        with open(prompts, 'w') as f:
            f.write(others)
        _, other, computed = rows('--expert-stats', learned, '--in', prompts, '--seed', '8', out='third.jsonl')
        self.assertNotEqual(other, asked)
        self.assertEqual(computed[0], sum(layer[e] for layer, own in zip(other, first) for e in own))
        self.assertAlmostEqual(computed[0] / sum(computed), 0.75, delta=0.06)
        _, other, computed = rows('--in', prompts, '--seed', '8', out='fourth.jsonl')
        self.assertEqual(computed[0], sum(sum(layer[:n_first]) for layer in other))

    def test_a_plan_compares_layers_split_experts_dealt_and_experts_apart(self):
        def plan(*args, model=None):
            r = subprocess.run([TANDEM, 'plan', '--target', model or self.model, '--ctx', '1024', *args], capture_output=True,
                               text=True, timeout=600, env={**os.environ, 'TANDEM_CACHE_DIR': self.dir.name})
            self.assertEqual(r.returncode, 0, r.stderr)
            return r.stdout

        names = ['layers split', 'experts dealt', 'experts apart']
        experts = json.loads(plan(*TWO, '--json'))['experts']
        self.assertEqual([way['name'] for way in experts['ways']], names)
        self.assertEqual([way['flags'] for way in experts['ways']],
                         ['', '--place experts=auto', '--device host:1 --place experts=host:1'])
        self.assertRegex(experts['ways'][1]['dealt'], r'^experts=\d+,\d+$')
        for use in 'stream', 'batch':
            speeds = {way['name']: way[use + '_tokens_per_second'] for way in experts['ways']}
            self.assertGreater(min(speeds.values()), 0)
            self.assertGreaterEqual(speeds[experts['best_for_' + use]], 0.94 * max(speeds.values()))
        text = plan(*TWO)
        for name in names:
            self.assertRegex(text, r'(?m)^ +\d+\.\d +\d+\.\d  %s' % name)
        self.assertRegex(text, r'Best for a stream: .*\nBest for a batch: ')
        pinned = plan('--device', 'host:1@0-1', '--device', 'host:1@2-2')
        self.assertRegex(pinned, r'(?m)^ +- +-  experts dealt: not predicted: .*names layers')
        self.assertNotIn('experts', plan('--device', 'host:1'))
        self.assertNotIn('experts', plan(*TWO, model=DENSE))

    def test_what_cannot_be_dealt_is_refused(self):
        def fails(needle, *args, model=None):
            r = self.run_tandem('--prompt', 'a', '-n', '1', *args, model=model)
            self.assertEqual(r.returncode, 2, (args, r.stderr))
            self.assertIn(needle, r.stderr)
            self.assertIn('allowed: ', r.stderr)

        for value, needle in (('', 'place'), ('60', 'fewer shares'), ('1,1,1', 'more shares'), ('0,5', 'a share is 0'),
                              ('1,x', 'no list of shares'), ('1,1.5', 'no list of shares'), ('1,', 'no list of shares'),
                              ('1,99999999999999999999', 'no list of shares'), ('0-5/6-12', 'no such expert'),
                              ('0-5/5-11', 'dealt twice'), ('0-5/7-11', 'dealt to nobody'), ('0-11/', 'no list of experts'),
                              ('0-11', 'fewer lists'), ('0-3/4-7/8-11', 'more lists'), ('5-0/6-11', 'no list of experts'),
                              ('0-5//6-11', 'no list of experts'), ('0-5/6-1' + '1' * 600, 'place'), ('1-\n/2', 'place')):
            with self.subTest(value):
                fails(needle, *TWO, '--place', 'experts=' + value)
        fails('lists leave nothing', *TWO, '--place', 'experts=0-5/6-11', '--expert-stats', self.prompts)
        fails('no experts are dealt', '--device', 'host:1', '--expert-stats', self.prompts)
        fails('dense', *TWO, '--place', 'experts=auto', model=DENSE)
        fails('2..8', '--device', 'host:1', '--place', 'experts=auto')
        fails('2..8', *['--device', 'host:1'] * 9, '--place', 'experts=auto')
        fails('names layers', '--device', 'host:1@0-1', '--device', 'host:1', '--place', 'experts=1,1')
        fails('another machine', '--device', 'host:1', '--device', 'a/host:1', '--host', 'a=tcp://127.0.0.1:9', '--place',
              'experts=1,1')
        r = subprocess.run([TANDEM, 'plan', '--target', self.model, *TWO, '--place', 'experts=auto'], capture_output=True, text=True)
        self.assertEqual(r.returncode, 2, r.stderr)
        self.assertIn('allowed: ', r.stderr)


if __name__ == '__main__':
    unittest.main()
