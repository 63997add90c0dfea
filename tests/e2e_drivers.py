#!/usr/bin/env python3
"""Two Vulkan drivers of two vendors in one process: both are listed and planned for whatever their
order, and a target split over them in either order writes the same text without a draft and with
one on either.

usage: e2e_drivers.py TANDEM ICD   (run from the source root; standard library only). ICD: the second
driver's file, added to those of the system; skipped where it or the first one is not there."""
import json
import os
import subprocess
import sys
import tempfile
import unittest

TANDEM, ICD = (os.path.abspath(p) for p in sys.argv[1:3])
TARGET = 'configs/tales/tales-target.q8_0.gguf'
DRAFT = 'configs/tales/tales-draft.q8_0.gguf'
A, B = 'vulkan:swiftshader', 'vulkan:llvmpipe'
LINES = [{'id': 'greedy', 'prompt': 'Once upon a time there was a king who', 'temp': 0},
         {'id': 'drawn', 'prompt': 'The old woman said to the fox', 'temp': 0.9, 'seed': 3},
         {'id': 'chain', 'prompt': 'In the forest', 'temp': 0.9, 'top_k': 40, 'top_p': 0.95,
          'repeat_penalty': 1.2, 'seed': 4}]


def run(*args):
    environment = dict(os.environ, VK_ADD_DRIVER_FILES=ICD)
    return subprocess.run([TANDEM, *args], env=environment, capture_output=True, text=True,
                          timeout=280, check=False)


def software(result):
    """The software GPUs of `devices --json`, by a word of their names."""
    found = {}
    for device in json.loads(result.stdout):
        for word in ('SwiftShader', 'llvmpipe'):
            if word in device['name']:
                found[word] = device
    return found


class Drivers(unittest.TestCase):
    def test_both_are_listed_as_what_they_are(self):
        result = run('devices', '--json')
        found = software(result)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(len({d['vendor_id'] for d in found.values()}), 2)
        self.assertEqual(len({d['driver_id'] for d in found.values()}), 2)
        for device in found.values():
            self.assertTrue(device['usable'], device['why_not'])
            self.assertEqual(device['kind'], 'software')
            self.assertIsNone(device['same_chip_as'])

    def test_a_plan_takes_both_in_the_order_asked_for(self):
        for first, second in ((A, B), (B, A)):
            result = run('plan', '--target', TARGET, '--device', first, '--device', second,
                         '--no-measure', '--json')
            self.assertEqual(result.returncode, 0, result.stderr)
            plan = result.stdout
            self.assertLess(plan.index(first), plan.index(second), plan)

    def generate(self, first, second, *args, n=20):
        result = run('generate', '--target', TARGET, '--device', first, '--device', second,
                     '--in', self.prompts, '-n', str(n), '--ignore-eos', '--ctx', '128', *args)
        self.assertEqual(result.returncode, 0, result.stderr)
        lines = [json.loads(line) for line in result.stdout.splitlines()]
        self.assertEqual(len(lines), len(LINES))
        return {line['id']: line['tokens'] for line in lines}, sum(line['accepted'] for line in lines)

    def test_the_text_of_a_split_does_not_depend_on_the_draft(self):
        with tempfile.TemporaryDirectory() as folder:
            self.prompts = os.path.join(folder, 'prompts.jsonl')
            with open(self.prompts, 'w', encoding='utf-8') as file:
                file.writelines(json.dumps(line) + '\n' for line in LINES)
            n_accepted = 0
            for first, second, draft in ((A, B, A), (B, A, 'host:1')):
                wanted, _ = self.generate(first, second, '--parallel', '1')
                self.assertTrue(all(len(tokens) == 20 for tokens in wanted.values()))
                got, accepted = self.generate(first, second, '--draft', DRAFT, '--draft-device', draft,
                                              '--draft-fixed', '4', '--parallel', '3')
                self.assertEqual(got, wanted, (first, second))
                n_accepted += accepted
            # One that still compiles when it is asked has nothing to say: that of the host has.
            self.assertGreater(n_accepted, 0)


if __name__ == '__main__':
    if not os.access(ICD, os.R_OK):
        print(f'skipped: {ICD} is not there; scripts/fetch_swiftshader.sh fetches it')
        sys.exit(77)
    here = software(run('devices', '--json'))
    if 'llvmpipe' not in here:
        print('skipped: Mesa\'s llvmpipe is not there; on Debian: apt-get install mesa-vulkan-drivers')
        sys.exit(77)
    if 'SwiftShader' not in here:
        sys.exit(f'{ICD} is there, but the device it is for is not listed')
    unittest.main(argv=[sys.argv[0], '-v'])
