#!/usr/bin/env python3
"""What goes in and out while a run goes on: programs that wait for their answer, standard descriptors
that are closed, files that are named twice, files that are not there.

usage: e2e_io.py TANDEM   (run from the source root; standard library only)"""
import json
import os
import subprocess
import sys
import tempfile
import unittest

TANDEM = os.path.abspath(sys.argv.pop(1)) if len(sys.argv) > 1 else 'build/tandem'
TARGET = 'configs/tales/tales-target.q8_0.gguf'
DRAFT = 'configs/tales/tales-draft.q8_0.gguf'
GENERATE = ['generate', '--target', TARGET, '--device', 'host:1', '--quiet', '-n', '4']


def run(*args, **kw):
    return subprocess.run([TANDEM, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=120, **kw)


def shell(line):
    """A line of sh in which $T is the program with the arguments of a small run."""
    command = ' '.join([TANDEM, *GENERATE])
    return subprocess.run(['sh', '-c', line.replace('$T', command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          stdin=subprocess.DEVNULL, text=True, timeout=120)


class Base(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.TemporaryDirectory()
        self.addCleanup(self.dir.cleanup)

    def path(self, name, text=None):
        p = os.path.join(self.dir.name, name)
        if text is not None:
            with open(p, 'w') as f:
                f.write(text)
        return p

    def fails(self, result, code, *needles):
        self.assertEqual(result.returncode, code, result.stderr)
        for needle in needles:
            self.assertIn(needle, result.stderr)


class Descriptors(Base):
    """0, 1 and 2 closed: an error where one is needed, never a hang, and no file in their place."""

    def test_closed_input_is_an_error_where_it_is_read(self):
        for line in '$T --in - <&-', '$T --in - 0>/dev/null':
            self.fails(shell(line), 74, 'standard input')
        self.fails(shell('%s tokenize --model %s --in - <&-' % (TANDEM, TARGET)), 74, 'standard input')
        r = shell('$T --prompt "The fox" <&-')
        self.assertEqual((r.returncode, r.stdout[:7]), (0, 'The fox'), r.stderr)

    def test_closed_output_is_an_error_where_it_is_written(self):
        source = self.path('in.jsonl', '{"prompt": "The fox"}\n')
        self.fails(shell('$T --prompt x >&-'), 74, 'standard output')
        self.fails(shell('$T --in %s >&-' % source), 74, 'standard output')
        self.fails(shell('$T --in %s --out - 1</dev/null' % source), 74, 'standard output')
        for closed in '>&-', '2>&-', '<&- >&- 2>&-':
            out = self.path('out.jsonl')
            r = shell('$T --in %s --out %s --stats %s %s' % (source, out, self.path('s.json'), closed))
            self.assertEqual(r.returncode, 0, r.stderr)
            with open(out) as f:
                lines = f.readlines()
            self.assertEqual([json.loads(x)['status'] for x in lines], ['ok'])
            os.unlink(out)

    def test_messages_do_not_land_in_a_file(self):
        source = self.path('in.jsonl', 'no json\n')
        out = self.path('out.jsonl')
        r = shell('$T --in %s --out %s <&- >&- 2>&-' % (source, out))
        self.assertEqual(r.returncode, 1)
        with open(out) as f:
            lines = f.readlines()
        self.assertEqual([json.loads(x)['status'] for x in lines], ['error'])


if __name__ == '__main__':
    unittest.main(verbosity=1)
