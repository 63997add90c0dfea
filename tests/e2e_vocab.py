#!/usr/bin/env python3
"""Drafts whose vocabulary is not the target's: the text is the same (law 1), and a draft that was
only renumbered is accepted exactly as often as before.

usage: e2e_vocab.py TANDEM   (run from the source root; standard library only)"""
import json
import os
import subprocess
import sys
import tempfile
import time
import unittest

TANDEM = os.path.abspath(sys.argv.pop(1)) if len(sys.argv) > 1 else 'build/tandem'
TARGET = 'configs/tales/tales-target.q8_0.gguf'
DRAFT = 'configs/tales/tales-draft.q8_0.gguf'
OTHER_VOCAB = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'other_vocab.py')
PROMPTS = ['Once upon a time', 'The fox said', 'A king had three sons, and', 'In the wood there',
           'Es war einmal \u00fcber \u4f60', 'She sat down']


class Vocab(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.dir = tempfile.TemporaryDirectory()
        cls.drafts = {'same': DRAFT}
        for name, options in (('permuted', ['--permute']), ('poorer', ['--permute', '--replace', '0.2']),
                              ('aligned', ['--replace', '0.02']), ('far', ['--permute', '--replace', '0.5'])):
            cls.drafts[name] = os.path.join(cls.dir.name, name + '.gguf')
            subprocess.run([sys.executable, OTHER_VOCAB, DRAFT, cls.drafts[name], *options], check=True,
                           stdout=subprocess.DEVNULL)
        cls.prompts = os.path.join(cls.dir.name, 'prompts.jsonl')
        with open(cls.prompts, 'w') as f:
            for i, prompt in enumerate(PROMPTS):
                for temp in (0, 0.7):
                    line = {'id': '%d-%g' % (i, temp), 'prompt': prompt, 'temp': temp, 'seed': i,
                            'repeat_penalty': 1.1 if i == 5 else 1}
                    f.write(json.dumps(line) + '\n')

    @classmethod
    def tearDownClass(cls):
        cls.dir.cleanup()

    def generate(self, *args):
        """Tokens by id, and accepted and drafted by id."""
        r = subprocess.run([TANDEM, 'generate', '--target', TARGET, '--device', 'host:1', '--in', self.prompts,
                            '-n', '60', '--parallel', '3', '--draft-fixed', '4', *args],
                           capture_output=True, text=True, timeout=300)
        self.assertEqual(r.returncode, 0, r.stderr)
        lines = [json.loads(line) for line in r.stdout.splitlines()]
        self.assertEqual(len(lines), 2 * len(PROMPTS))
        return ({line['id']: line['tokens'] for line in lines},
                {line['id']: (line['accepted'], line['drafted']) for line in lines})

    def draft(self, name):
        return self.generate('--draft', self.drafts[name], '--draft-device', 'host:1')

    def test_the_text_is_the_same_and_a_renumbered_draft_as_good(self):
        wanted, _ = self.generate()
        _, plain = self.draft('same')
        for name in ('permuted', 'poorer', 'aligned'):
            tokens, counts = self.draft(name)
            self.assertEqual(tokens, wanted, name)
            self.assertGreater(sum(a for a, _ in counts.values()), 0, name)
            if name == 'permuted':
                self.assertEqual(counts, plain)

    def test_a_far_vocabulary_is_refused_with_its_distance(self):
        r = subprocess.run([TANDEM, 'generate', '--target', TARGET, '--device', 'host:1', '--prompt', 'x',
                            '--draft', self.drafts['far'], '--draft-device', 'host:1'],
                           capture_output=True, text=True, timeout=60)
        self.assertEqual(r.returncode, 69, r.stderr)
        self.assertRegex(r.stderr, r"2048 of the target's 4096 tokens are among the draft's 4096")
        self.assertRegex(r.stderr, r'(?i)the first that differs is token \d+: ".+" at the target, ".+" at the draft')

    def worker(self, name, *args):
        endpoint = 'ipc://%s/s' % self.dir.name
        p = subprocess.Popen([TANDEM, 'draft', '--model', self.drafts[name], '--bind', endpoint,
                              '--device', 'host:1', *args], stderr=subprocess.DEVNULL)
        self.addCleanup(p.wait)
        self.addCleanup(p.terminate)
        for _ in range(200):
            if os.path.exists(endpoint[len('ipc://'):]):
                break
            time.sleep(0.05)
        return endpoint

    def test_a_worker_translates_when_told_the_target(self):
        wanted, _ = self.generate()
        _, plain = self.draft('same')
        tokens, counts = self.generate('--draft-endpoint', self.worker('permuted', '--vocab-of', TARGET))
        self.assertEqual(tokens, wanted)
        # A worker that is late for a round costs a draft, so the counts may differ, but not by much.
        self.assertGreater(sum(a for a, _ in counts.values()), sum(a for a, _ in plain.values()) // 2)

    def test_a_translated_draft_may_come_to_the_end_of_its_context(self):
        wanted, _ = self.generate()
        worker = self.worker('poorer', '--vocab-of', TARGET, '--ctx', '40')
        tokens, counts = self.generate('--draft-endpoint', worker)
        self.assertEqual(tokens, wanted)
        self.assertGreater(sum(a for a, _ in counts.values()), 0)

    def test_a_worker_that_was_not_told_is_refused(self):
        r = subprocess.run([TANDEM, 'generate', '--target', TARGET, '--device', 'host:1', '--prompt', 'x',
                            '--draft-endpoint', self.worker('permuted')], capture_output=True, text=True, timeout=60)
        self.assertEqual(r.returncode, 69, r.stderr)
        self.assertIn('--vocab-of', r.stderr)
        self.assertRegex(r.stderr, r'the first token that does is \d+')


if __name__ == '__main__':
    unittest.main()
