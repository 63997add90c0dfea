#!/usr/bin/env python3
"""scripts/bundle.sh: the archive is small, holds every library it needs but libc, and its run.sh says
that law 1 held, with nothing in the environment but a path and the software driver.

usage: e2e_bundle.py TANDEM   (run from the source root; standard library only)"""
import glob
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import unittest

TANDEM = os.path.abspath(sys.argv.pop(1))
DRIVERS = glob.glob('/usr/share/vulkan/icd.d/lvp_icd*.json')
LIBC = re.compile(r'(libc|libm|libpthread|libdl|librt|libresolv|ld-linux.*)\.so\.')


class Bundle(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.archive = os.path.join(cls.folder.name, 'made', 'bundle.tar.gz')
        made = subprocess.run(['scripts/bundle.sh', '--program', TANDEM, cls.archive], text=True,
                              capture_output=True, check=False)
        if made.returncode:
            raise AssertionError(made.stderr)
        with tarfile.open(cls.archive) as archive:
            archive.extractall(cls.folder.name)
        cls.top = os.path.join(cls.folder.name, 'bundle')

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def bare(self, *command, **extra):
        environment = {'PATH': '/usr/bin:/bin'}
        if DRIVERS:
            environment['VK_DRIVER_FILES'] = environment['VK_ICD_FILENAMES'] = DRIVERS[0]
        return subprocess.run(command, env=dict(environment, **extra), cwd=self.folder.name, text=True,
                              capture_output=True, timeout=700, check=False)

    def test_it_is_small(self):
        self.assertLess(os.path.getsize(self.archive), 64 << 20)

    def test_its_libraries_come_from_it(self):
        library = os.path.join(self.top, 'lib')
        listed = self.bare('ldd', os.path.join(self.top, 'bin', 'tandem'),
                           LD_LIBRARY_PATH=f'{library}:{library}/spare')
        self.assertEqual(listed.returncode, 0, listed.stderr)
        self.assertNotIn('not found', listed.stdout)
        for line in listed.stdout.splitlines():
            name, _, path = line.strip().partition(' => ')
            if path and not LIBC.match(os.path.basename(name)):
                self.assertTrue(path.startswith(library), line)
        self.assertIn('libzmq', listed.stdout)

    @unittest.skipUnless(DRIVERS, 'no llvmpipe; on Debian: apt-get install mesa-vulkan-drivers')
    def test_it_runs_in_a_bare_environment(self):
        ran = self.bare(os.path.join(self.top, 'run.sh'), '--quick', '--out', 'report')
        with open(os.path.join(self.folder.name, 'report', 'REPORT.md'), encoding='utf-8') as file:
            page = file.read()
        self.assertEqual(ran.returncode, 0, ran.stdout + ran.stderr + page)
        held = re.search(r'^- law 1: held in (\d+) of (\d+)$', page, re.MULTILINE)
        self.assertTrue(held, page)
        self.assertEqual(held[1], held[2])
        self.assertGreaterEqual(int(held[1]), 3)
        self.assertIn('- check: passed', page)
        self.check_is_whole(os.path.join(self.folder.name, 'report', 'check.json'))
        self.assertIn('llvmpipe', page)
        self.assertRegex(page, r'verify4 \| [0-9.]+')
        self.assertNotIn(self.folder.name, page)
        self.assertTrue(os.path.exists(os.path.join(self.folder.name, 'report.tar.gz')))

    def check_is_whole(self, path):
        with open(path, encoding='utf-8') as file:
            [d] = json.load(file)['devices']
        self.assertEqual([x for x in d['ops'] + d['parts'] if x['state'] != 'passed'
                          and 'left out' not in (x['reason'] or '')], [])
        self.assertGreaterEqual(len(d['ops']), 19)  # the last is a layer
        names = [p['name'] for p in d['parts']]
        self.assertEqual(names[-2:], ['beside ' + d['device'], 'loss'])
        self.assertEqual([n.split()[0] for n in names[:-2]], ['model'] * 5)

    def test_a_machine_without_a_gpu_is_told_so(self):
        ran = self.bare(os.path.join(self.top, 'run.sh'), '--quick', '--out', 'hostonly',
                        VK_DRIVER_FILES='/nowhere', VK_ICD_FILENAMES='/nowhere')
        self.assertEqual(ran.returncode, 3, ran.stdout + ran.stderr)
        self.assertIn('There is no GPU', ran.stdout)
        self.assertRegex(ran.stdout, r'law 1: held in ([1-9]\d*) of \1\b')


if __name__ == '__main__':
    unittest.main(argv=[sys.argv[0], '-v'])
